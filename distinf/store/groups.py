"""One unit's arrays as one Zarr group: written whole, read back, and verified on every read.

zarr encodes and decodes; the bytes travel through `Blobs`. A reader is given the manifest from a
commit record, never a listing: an object that the manifest names must be there with its sha256
(plain zarr would read a missing chunk as zeros), and one that it does not name is not read. What
the objects may be is checked first (see `layout`), so nothing else reaches zarr.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore

from distinf.blobs import Blobs
from distinf.digest import sha256
from distinf.errors import SEE, CorruptionError
from distinf.store.layout import ITEM_BYTES, Manifest
from distinf.store.objects import at_once, checked_layouts, chunk_sizes, intact, verify_group

Arrays = Mapping[str, np.ndarray]

CHUNK_BYTES = 8 << 20
LEAST_BYTES = 64 << 10  # a column of 4 bytes a row would else be hundreds of tiny files


def encode(arrays: Arrays, *, chunk_rows: int | None = None) -> dict[str, bytes]:
    """Zarr v3 objects of a group by key; arrays are chunked along their first axis only.

    `chunk_rows` rows a chunk and no less than 64 KiB, or about 8 MiB where it is None. No
    compression: gradients and radio samples are noise to a compressor (measured: 8 % smaller, half
    the speed).
    """
    memory = MemoryStore()
    group = zarr.create_group(memory)
    for name, values in arrays.items():
        values = np.asarray(values, order="C")
        if str(values.dtype.newbyteorder("=")) not in ITEM_BYTES or "/" in name:
            raise ValueError(f"array '{name}' of {values.dtype}: only numbers are stored")
        chunks = _chunks(values, chunk_rows) if values.ndim else ()
        target = group.create_array(
            name, shape=values.shape, chunks=chunks, dtype=values.dtype, compressors=None,
            config={"write_empty_chunks": True},
        )  # fmt: skip
        if values.size:
            target[...] = values
    return {key: buffer.to_bytes() for key, buffer in memory._store_dict.items()}


def _chunks(values: np.ndarray, chunk_rows: int | None) -> tuple[int, ...]:
    row_bytes = max(1, values[:1].nbytes)
    rows = max(chunk_rows or 1, (LEAST_BYTES if chunk_rows else CHUNK_BYTES) // row_bytes)
    return (min(rows, max(1, len(values))), *(max(1, side) for side in values.shape[1:]))


def write_group(
    blobs: Blobs,
    group: str,
    arrays: Arrays,
    *,
    chunk_rows: int | None = None,
    may_hold_nan: Iterable[str] = (),
) -> dict[str, Any]:
    """Check finite, write durably, read back -> the manifest that a commit record carries.

    Raises ValueError for a non-finite value in an array not named in `may_hold_nan`, and
    CorruptionError if what was read back is not what was written.
    """
    for name, values in arrays.items():
        if name in set(may_hold_nan) or not np.issubdtype(values.dtype, np.floating):
            continue
        if not np.isfinite(values).all():
            raise ValueError(f"{group}: array '{name}' has a non-finite value; nothing committed")
    objects = encode(arrays, chunk_rows=chunk_rows)

    def write(key: str) -> str:
        blobs.put(f"{group}/{key}", objects[key])
        return sha256(objects[key])

    files = dict(zip(objects, at_once(write, objects), strict=True))
    manifest = {"group": group, "files": files, "bytes": sum(map(len, objects.values()))}
    verify_group(blobs, manifest)
    return manifest


def read_group(
    blobs: Blobs, manifest: Manifest, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Whole arrays of a committed group by name (all of them where `names` is None)."""
    group = open_group(blobs, manifest)
    wanted = sorted(dict(group.arrays())) if names is None else names
    return {name: np.asarray(array_of(group, name)[...]) for name in wanted}


def open_group(blobs: Blobs, manifest: Manifest) -> zarr.Group:
    """A read-only Zarr group whose every chunk is verified as it is read.

    CorruptionError before anything is allocated if it is not such a group as `write_group` writes.
    """
    metadata: dict[str, bytes] = {}
    sizes = chunk_sizes(checked_layouts(blobs, manifest, metadata))
    if not metadata:
        raise CorruptionError(f"{manifest['group'] or 'a group'} has no arrays; {SEE}")
    store = _Committed(blobs, manifest, sizes, metadata)
    return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)


def array_of(group: zarr.Group, name: str) -> zarr.Array:
    """An array of an opened group; CorruptionError if it was not committed."""
    try:
        return group[name]
    except KeyError:
        raise CorruptionError(f"{group.store} has no array '{name}'; {SEE}") from None


class _Committed(Store):  # type: ignore[misc]
    """A zarr store that serves exactly the manifest's objects."""

    def __init__(
        self,
        blobs: Blobs,
        manifest: Manifest,
        sizes: Mapping[str, int],
        metadata: Mapping[str, bytes],
    ):
        super().__init__(read_only=True)
        self._metadata = metadata
        self._blobs = blobs
        self._manifest = manifest
        self._sizes = sizes

    def __str__(self) -> str:
        return str(self._manifest["group"])

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key not in self._manifest["files"]:
            if "/c/" in key or key.endswith("/c"):
                raise CorruptionError(f"{self._manifest['group']}/{key} was never committed")
            return None
        if byte_range is not None:
            raise ValueError("a committed chunk is read whole, so that its sha256 can be checked")
        if key in self._metadata:
            return prototype.buffer.from_bytes(self._metadata[key])
        return prototype.buffer.from_bytes(
            intact(self._blobs, self._manifest, key, self._sizes.get(key))
        )

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key in self._manifest["files"]

    async def list(self) -> AsyncIterator[str]:
        for key in self._manifest["files"]:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self._manifest["files"]:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        inside = f"{prefix.rstrip('/')}/" if prefix else ""
        names = (
            k[len(inside) :].split("/")[0] for k in self._manifest["files"] if k.startswith(inside)
        )
        for name in sorted(set(names)):
            yield name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Committed) and other._manifest == self._manifest

    @property
    def supports_writes(self) -> bool:
        return False

    @property
    def supports_deletes(self) -> bool:
        return False

    @property
    def supports_listing(self) -> bool:
        return True

    @property
    def supports_partial_writes(self) -> bool:
        return False

    async def set(self, key: str, value: Buffer) -> None:
        raise PermissionError("a committed group is read-only")

    async def delete(self, key: str) -> None:
        raise PermissionError("a committed group is read-only")
