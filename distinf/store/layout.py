"""What a commit record may say of a group, checked before a byte of it is decoded.

Anyone can compute a checksum, so a record from somebody else is believed no further than this: its
names stay inside its group, and its metadata is what `groups.encode` writes, which is Zarr v3 with
regular chunks of numbers and no codec but bytes. Every size follows from that, so that nothing
is allocated or read beyond what lies there.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distinf.errors import CorruptionError

Manifest = Mapping[str, Any]  # {"group": prefix, "files": {key: sha256}, "bytes": int}

METADATA = "zarr.json"
METADATA_BYTES = 64 << 10  # ours have about 500
MOST_SIDES = 32
ITEM_BYTES = {
    "bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "float16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
}  # fmt: skip
GROUP = {"zarr_format": 3, "node_type": "group"}
ARRAY = {
    "zarr_format": 3,
    "node_type": "array",
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
}
FREE = {"attributes", "storage_transformers", "shape", "data_type", "chunk_grid", "codecs"}
FREE |= {"fill_value"}  # which no chunk is ever read as


@dataclass(frozen=True)
class ArrayLayout:
    """An array's shape and chunks: some rows each, the last of them as long as the others."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.item_bytes

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunk) * self.item_bytes

    @property
    def chunks(self) -> int:
        if not math.prod(self.shape):
            return 0
        return -(-self.shape[0] // self.chunk[0]) if self.shape else 1

    def chunk_place(self, number: int) -> list[str]:
        """Its place on the grid, as its key has it."""
        return [str(number), *["0"] * (len(self.shape) - 1)] if self.shape else []

    def chunk_keys(self) -> Iterable[str]:
        for number in range(self.chunks):
            yield "/".join(["c", *self.chunk_place(number)])


def is_inside(name: Any) -> bool:
    """Whether a key names something below its root, and nothing else."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name:
        return False
    parts = name.split("/")
    return all(part not in ("", ".", "..") and len(part.encode()) < 256 for part in parts)


def check_manifest(manifest: Any) -> None:
    """CorruptionError for a manifest that names what no group of ours can hold."""
    kinds = {"group": str, "files": dict, "bytes": int}
    if not isinstance(manifest, Mapping) or any(
        not isinstance(manifest.get(key), kind) for key, kind in kinds.items()
    ):
        raise CorruptionError("a commit record has no manifest of its files")
    files, group = manifest["files"], manifest["group"]
    if files and not is_inside(group):
        raise CorruptionError(f"a commit record names the group {group!r}, which is none of a run")
    for key, check in files.items():
        if not is_inside(key):
            raise CorruptionError(f"{group} holds no {key!r}, as its commit record says")
        if not isinstance(check, str):
            raise CorruptionError(f"{group}/{key} has no checksum in its commit record")
    if not 0 <= manifest["bytes"] < 2**63:
        raise CorruptionError(f"{group} cannot be of {manifest['bytes']} bytes")


def layouts(manifest: Manifest, read: Callable[[str], bytes]) -> dict[str, ArrayLayout]:
    """The group's arrays by name, of a manifest that names exactly their objects.

    `read` gives the metadata by key. CorruptionError for what `groups.encode` does not write.
    """
    check_manifest(manifest)
    group, files = manifest["group"], manifest["files"]
    found: dict[str, ArrayLayout] = {}
    expected, size = {METADATA} if files else set(), 0
    for key in files:
        if key.rpartition("/")[2] != METADATA or key.count("/") > 1:
            continue
        data = read(key)
        expected.add(key)
        size += len(data)
        if (array := _array(data, f"{group}/{key}", is_root=key == METADATA)) is None:
            continue
        found[key[: -len(METADATA) - 1]] = array
        if array.chunks > len(files):
            raise CorruptionError(f"{group}/{key} asks for chunks that were never committed")
        expected |= {f"{key[: -len(METADATA)]}{chunk}" for chunk in array.chunk_keys()}
        size += array.chunks * array.chunk_bytes
    _same_keys(group, set(files), expected)
    if size != manifest["bytes"]:
        raise CorruptionError(
            f"{group} has {size} bytes by its arrays, {manifest['bytes']} by its commit record"
        )
    return found


def _same_keys(group: str, named: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - named):
        raise CorruptionError(f"{group}/{missing[0]} was never committed")
    if extra := sorted(named - expected):
        raise CorruptionError(f"{group}/{extra[0]} belongs to no array of its group")


def _array(data: bytes, name: str, is_root: bool) -> ArrayLayout | None:
    """What the metadata says; None for that of the group, which is its root."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found.get("attributes", {}) == {}:
        if is_root and {k: v for k, v in found.items() if k != "attributes"} == GROUP:
            return None
        if not is_root and (array := _layout(found)) is not None:
            return array
    raise CorruptionError(f"{name} is not metadata of an array as it is written here")


def _layout(found: Mapping[str, Any]) -> ArrayLayout | None:
    fixed = {k: v for k, v in found.items() if k not in FREE}
    dtype, shape = found.get("data_type"), found.get("shape")
    if fixed != ARRAY or found.get("storage_transformers", []) != []:
        return None
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return None
    if not _codec_is_bytes(found.get("codecs"), ITEM_BYTES[dtype]) or not _is_zero(
        found.get("fill_value"), dtype
    ):
        return None
    grid = found.get("chunk_grid")
    inner = grid.get("configuration") if isinstance(grid, dict) else None
    chunk = inner.get("chunk_shape") if isinstance(inner, dict) else None
    if grid != {"name": "regular", "configuration": {"chunk_shape": chunk}}:
        return None
    if not isinstance(shape, list) or not isinstance(chunk, list) or len(chunk) != len(shape):
        return None
    if not _sides(shape, least=0) or not _sides(chunk, least=1):
        return None
    if chunk[1:] != [max(1, side) for side in shape[1:]]:
        return None
    return ArrayLayout(tuple(shape), tuple(chunk), dtype)


def _sides(value: list[Any], least: int) -> bool:
    """Sides of an array that can be: sizes are counted in 63 bits."""
    if len(value) > MOST_SIDES or not all(type(side) is int and side >= least for side in value):
        return False
    return math.prod(max(1, side) for side in value) < 2**58  # type: ignore[no-any-return]


def _codec_is_bytes(codecs: Any, item_bytes: int) -> bool:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    return codecs == [little] or (item_bytes == 1 and codecs == [{"name": "bytes"}])


def _is_zero(value: Any, dtype: str) -> bool:
    if dtype.startswith("complex"):
        return isinstance(value, list) and value == [0, 0]
    kind = bool if dtype == "bool" else float if dtype.startswith("float") else int
    return isinstance(value, kind) and value == 0
