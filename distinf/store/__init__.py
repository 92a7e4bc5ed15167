"""Arrays on disk or in a bucket: one Zarr group per attempt at a unit, verified on every read."""

from distinf.store.blobs import Blobs, open_root
from distinf.store.groups import damage, open_group, read_group, verify_group, write_group
from distinf.store.rows import CachedRows, Rows

__all__ = [
    "Blobs",
    "CachedRows",
    "Rows",
    "damage",
    "open_group",
    "open_root",
    "read_group",
    "verify_group",
    "write_group",
]
