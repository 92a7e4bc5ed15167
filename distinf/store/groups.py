"""One unit's arrays as one Zarr group: written whole, read back, and verified on every read.

zarr writes the metadata, as any reader of Zarr v3 has it; a chunk, which is rows of raw numbers,
is read without zarr, in a tenth of the time. The bytes travel through `Blobs`. A reader is given
the manifest from a commit record, never a listing: an object that the manifest names must be there
with its sha256 (plain zarr would read a missing chunk as zeros), and one that it does not name is
not read. What the objects may be is checked first (see `layout`).
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from distinf.blobs import Blobs, Buffer
from distinf.digest import sha256
from distinf.errors import SEE, CorruptionError
from distinf.store.layout import ITEM_BYTES, METADATA, ArrayLayout, Manifest, is_inside
from distinf.store.objects import checked_layouts, intact

Arrays = Mapping[str, np.ndarray]

CHUNK_BYTES = 8 << 20
AT_ONCE, AT_ONCE_BYTES = 8, 64 << 20  # objects written and read back at a time; at least one
LEAST_BYTES = 64 << 10  # a column of 4 bytes a row would else be hundreds of tiny files


def encode(arrays: Arrays, *, chunk_rows: int | None = None) -> dict[str, Buffer]:
    """Zarr v3 objects of a group by key, views of the arrays where they can be; arrays are chunked
    along their first axis only.

    `chunk_rows` rows a chunk and no less than 64 KiB, or about 8 MiB where it is None. No
    compression: gradients and radio samples are noise to a compressor (measured: 8 % smaller, half
    the speed).
    """
    objects: dict[str, Buffer] = {METADATA: _group_metadata()}
    for name, values in arrays.items():
        values = np.asarray(values, order="C")
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        dtype = str(values.dtype.newbyteorder("="))
        if dtype not in ITEM_BYTES:
            raise ValueError(f"array '{name}' of {values.dtype}: only numbers are stored")
        if not is_inside(name) or "/" in name or name == METADATA:
            raise ValueError(f"array {name!r}: cannot be called that, as folders are")
        layout = ArrayLayout(values.shape, _chunk(values, chunk_rows), dtype)
        objects[f"{name}/{METADATA}"] = _array_metadata(layout)
        for number, key in enumerate(layout.chunk_keys()):
            part = values
            if values.ndim:
                part = values[number * layout.chunk[0] : (number + 1) * layout.chunk[0]]
            whole = part.nbytes == layout.chunk_bytes
            data = part.data.cast("B") if whole else part.tobytes().ljust(layout.chunk_bytes, b"\0")
            objects[f"{name}/{key}"] = data
    return objects


@cache
def _group_metadata() -> bytes:
    memory = MemoryStore()
    zarr.create_group(memory)
    return memory._store_dict[METADATA].to_bytes()  # type: ignore[no-any-return]


@lru_cache(1024)
def _array_metadata(layout: ArrayLayout) -> bytes:
    """As zarr writes it: what it asks for takes longer than to write a small array."""
    memory = MemoryStore()
    zarr.create_array(
        memory, shape=layout.shape, chunks=layout.chunk, dtype=layout.dtype, compressors=None
    )
    return memory._store_dict[METADATA].to_bytes()  # type: ignore[no-any-return]


def _chunk(values: np.ndarray, chunk_rows: int | None) -> tuple[int, ...]:
    if not values.ndim:
        return ()
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
        name, data = f"{group}/{key}", objects[key]
        blobs.put(name, data)
        if not blobs.holds(name, data):
            raise CorruptionError(f"{name} does not read as it was written")
        return sha256(data)

    # A disk syncs many files in the time of one, and a bucket answers many requests.
    few = AT_ONCE_BYTES // max(map(len, objects.values()))
    with ThreadPoolExecutor(max(1, min(AT_ONCE, few))) as threads:
        files = dict(zip(objects, threads.map(write, objects), strict=True))
    return {"group": group, "files": files, "bytes": sum(map(len, objects.values()))}


def read_group(
    blobs: Blobs, manifest: Manifest, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Whole arrays of a committed group by name (all of them where `names` is None)."""
    group = open_group(blobs, manifest)
    wanted = sorted(group) if names is None else names
    return {name: array_of(group, manifest, name).values() for name in wanted}


def open_group(blobs: Blobs, manifest: Manifest) -> dict[str, "Stored"]:
    """A committed group's arrays by name, every chunk of which is verified as it is read.

    CorruptionError before anything is allocated if it is not such a group as `write_group` writes.
    """
    found = checked_layouts(blobs, manifest)
    if not manifest["files"]:
        raise CorruptionError(f"{manifest['group'] or 'a group'} has no arrays; {SEE}")
    return {name: Stored(blobs, manifest, name, layout) for name, layout in found.items()}


def array_of(group: Mapping[str, "Stored"], manifest: Manifest, name: str) -> "Stored":
    """An array of an opened group; CorruptionError if it was not committed."""
    if name not in group:
        raise CorruptionError(f"{manifest['group']} has no array '{name}'; {SEE}")
    return group[name]


@dataclass(frozen=True)
class Stored:
    """An array of a committed group: its chunks are whole rows of raw numbers."""

    blobs: Blobs
    manifest: Manifest
    name: str
    layout: ArrayLayout

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.layout.dtype)

    def values(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """All of it, or its rows from `start` to `stop`."""
        if not self.shape:
            return self._chunk(0).copy()
        start, stop, _ = slice(start, stop).indices(self.shape[0])
        found, rows = self._room(max(0, stop - start)), self.layout.chunk[0]
        for chunk in range(start // rows, -(-stop // rows) if found.size else 0):
            first, last = max(start, chunk * rows), min(stop, (chunk + 1) * rows)
            part = slice(first - chunk * rows, last - chunk * rows)
            found[first - start : last - start] = self._chunk(chunk)[part]
        return found

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows [n], in rising order; each chunk is read once."""
        found = self._room(len(rows))
        chunks, inside = np.divmod(rows, self.layout.chunk[0])
        for chunk in np.unique(chunks) if found.size else ():
            first, last = np.searchsorted(chunks, [chunk, chunk + 1])
            found[first:last] = self._chunk(int(chunk))[inside[first:last]]
        return found

    def _room(self, rows: int) -> np.ndarray:
        return np.empty((rows, *self.shape[1:]), dtype=self.dtype)

    def _chunk(self, number: int) -> np.ndarray:
        key = "/".join([self.name, "c", *self.layout.chunk_place(number)])
        data = intact(self.blobs, self.manifest, key, self.layout.chunk_bytes)
        return np.frombuffer(data, self.dtype.newbyteorder("<")).reshape(self.layout.chunk)
