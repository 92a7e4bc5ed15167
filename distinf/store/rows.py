"""Rows of a split, as if the committed units were one array: reads whole or row by row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr

from distinf.errors import CorruptionError
from distinf.store.blobs import Blobs
from distinf.store.groups import open_group, read_group


class Rows:
    """Committed units in row order. Nothing is read before the first verb."""

    def __init__(self, blobs: Blobs, units: Sequence[tuple[int, int, Mapping[str, Any]]]):
        """`units`: (start, stop, manifest) of each committed unit, any order."""
        self._blobs = blobs
        self._units = sorted(units, key=lambda unit: unit[0])
        self._open: dict[int, zarr.Group] = {}
        expected = 0
        for start, stop, _ in self._units:
            if start != expected:
                raise CorruptionError(f"rows {expected}:{start} have no committed unit; run again")
            expected = stop
        self._starts = np.array([start for start, _, _ in self._units], dtype=np.int64)
        self._count = expected

    def __len__(self) -> int:
        return self._count

    def columns(self, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Whole arrays [rows, ...] by name, concatenated over the units in row order."""
        parts = [read_group(self._blobs, manifest, names) for _, _, manifest in self._units]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The rows named by `ids` [n], in that order, of every array; each chunk verified."""
        ids = np.asarray(ids, dtype=np.int64)
        if len(ids) and (ids.min() < 0 or ids.max() >= self._count):
            raise IndexError(f"row ids must lie in 0:{self._count}")
        owners = np.searchsorted(self._starts, ids, side="right") - 1
        taken: dict[str, np.ndarray] = {}
        for owner in np.unique(owners):
            places = np.flatnonzero(owners == owner)
            inside = ids[places] - self._starts[owner]
            for name, array in self._group(int(owner)).arrays():
                values = array.oindex[np.sort(inside)]
                if name not in taken:
                    taken[name] = np.empty((len(ids), *values.shape[1:]), dtype=values.dtype)
                taken[name][places[np.argsort(inside, kind="stable")]] = values
        return taken

    def _group(self, owner: int) -> zarr.Group:
        if owner not in self._open:
            self._open[owner] = open_group(self._blobs, self._units[owner][2])
        return self._open[owner]
