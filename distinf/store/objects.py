"""The objects of a committed group, each verified as it is read. No array is decoded here."""

from collections.abc import Mapping

from distinf.blobs import Blobs
from distinf.digest import sha256
from distinf.errors import CorruptionError, in_one_line
from distinf.store.layout import METADATA_BYTES, ArrayLayout, Manifest, layouts

REPAIR = "`distinf verify --repair` makes it again"
LARGE_BYTES = 64 << 20  # an array of more is allocated once all its chunks are seen to be there


def damage(blobs: Blobs, manifest: Manifest) -> list[str]:
    """One line for every object that the manifest names and that is not intact."""
    try:
        sizes = chunk_sizes(checked_layouts(blobs, manifest))
    except (CorruptionError, OSError) as error:
        return [in_one_line(error, str(manifest.get("group")))]
    found = []
    for key in manifest["files"]:
        try:
            intact(blobs, manifest, key, sizes.get(key))
        except (CorruptionError, OSError) as error:
            found.append(in_one_line(error, f"{manifest['group']}/{key}"))
    return found


def checked_layouts(blobs: Blobs, manifest: Manifest) -> dict[str, ArrayLayout]:
    """The group's arrays, all of whose bytes are there: of large ones every chunk's size."""

    def read(key: str) -> bytes:
        return intact(blobs, manifest, key, METADATA_BYTES, most=True)

    found = layouts(manifest, read)
    for name, array in found.items():
        if array.bytes > LARGE_BYTES:
            for key in array.chunk_keys():
                _refuse_other_size(blobs, f"{manifest['group']}/{name}/{key}", array.chunk_bytes)
    return found


def chunk_sizes(found: Mapping[str, ArrayLayout]) -> dict[str, int]:
    """The bytes of each chunk by its key."""
    return {
        f"{name}/{key}": array.chunk_bytes
        for name, array in found.items()
        for key in array.chunk_keys()
    }


def _refuse_other_size(blobs: Blobs, name: str, size: int) -> None:
    try:
        found = blobs.size(name)
    except KeyError:
        raise _missing(name) from None
    if found != size:
        raise CorruptionError(f"{name} has {found} bytes instead of {size}; {REPAIR}")


def _missing(name: str) -> CorruptionError:
    return CorruptionError(f"{name} is missing but was committed; {REPAIR}")


def intact(
    blobs: Blobs, manifest: Manifest, key: str, size: int | None = None, most: bool = False
) -> bytes:
    """The object's bytes, as they were committed; `size` is what it has to be, or may at most."""
    name = f"{manifest['group']}/{key}"
    try:
        data = blobs.get(name, most=size)
    except KeyError:
        raise _missing(name) from None
    right = size is None or most or len(data) == size
    if not right or sha256(data) != manifest["files"][key]:
        raise CorruptionError(f"{name} is not what was committed (sha256 differs); {REPAIR}")
    return data
