"""Rows of a split, as if the committed units were one array: reads whole or row by row."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from distinf.blobs import Blobs
from distinf.errors import SEE, CorruptionError
from distinf.store.groups import Stored, open_group

OPEN_UNITS = 1_024  # units whose arrays stay open, about 11 kB each: no metadata is read twice


class Rows:
    """Committed units in row order. Nothing is read before the first verb."""

    def __init__(self, blobs: Blobs, units: Sequence[tuple[int, int, Mapping[str, Any]]]):
        """`units`: (start, stop, manifest) of each committed unit, any order."""
        self._blobs = blobs
        self._units = sorted(units, key=lambda unit: unit[0])
        self._open: dict[int, dict[str, Stored]] = {}
        self._kinds: Any = None  # of the first unit's arrays, by name: a row's shape, and its dtype
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
        """Whole arrays [rows, ...] by name, in row order; no row is in memory twice."""
        found: dict[str, np.ndarray] = {}
        for owner, (start, stop, _) in enumerate(self._units):
            arrays = self._arrays(owner)
            for name in sorted(arrays) if names is None else names:
                values = self._named(arrays, name).values()
                if name not in found:
                    found[name] = np.empty((self._count, *values.shape[1:]), dtype=values.dtype)
                found[name][start:stop] = values
        return found

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
            for name, array in self._arrays(int(owner)).items():
                values = array.take(np.sort(inside))
                if name not in taken:
                    taken[name] = np.empty((len(ids), *values.shape[1:]), dtype=values.dtype)
                taken[name][places[np.argsort(inside, kind="stable")]] = values
        return taken

    def _arrays(self, owner: int) -> dict[str, Stored]:
        """A unit's arrays, opened; the first opened of too many are let go."""
        if owner not in self._open:
            if len(self._open) == OPEN_UNITS:
                del self._open[next(iter(self._open))]
            self._open[owner] = self._checked(owner)
        return self._open[owner]

    @staticmethod
    def _named(arrays: Mapping[str, Stored], name: str) -> Stored:
        if name not in arrays:
            raise CorruptionError(f"no array '{name}' was committed; {SEE}")
        return arrays[name]

    def _checked(self, owner: int) -> dict[str, Stored]:
        """The unit's arrays; CorruptionError unless they are its rows of what the first has."""
        start, stop, manifest = self._units[owner]
        arrays = open_group(self._blobs, manifest)
        rows = {name: array.shape[:1] for name, array in arrays.items()}
        kinds = {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}
        if self._kinds is None:
            self._kinds = kinds
        if kinds != self._kinds or any(count != (stop - start,) for count in rows.values()):
            raise CorruptionError(
                f"{manifest['group']} does not hold rows {start}:{stop} of the arrays that its "
                f"commit record says; {SEE}"
            )
        return arrays


class CachedRows:
    """Rows from memory once they were read, where they are few enough, else chunk by chunk."""

    def __init__(self, rows: Callable[[], Rows], in_memory: Callable[[], bool]):
        """Both are called once, on first use."""
        self._open = rows
        self._in_memory = in_memory

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """As Rows.take."""
        if self._columns is not None:
            return {name: values[ids] for name, values in self._columns.items()}
        return self._rows.take(ids)

    @cached_property
    def _rows(self) -> Rows:
        return self._open()

    @cached_property
    def _columns(self) -> dict[str, np.ndarray] | None:
        return self._rows.columns() if self._in_memory() else None
