"""What a run's folder holds: units that are committed, how long they took, what is kept of them."""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from distinf.errors import SEE, CorruptionError
from distinf.runtime import Ledger, Unit
from distinf.runtime.activity import HERE
from distinf.runtime.litter import TOLD
from distinf.runtime.records import Record
from distinf.store import Rows, open_root, read_group

TIMES, LONGEST_S = ("began", "seconds", "busy_s"), 1e12  # of a note; what is more is damage
TELL_S = 5.0  # seconds between two words on a unit's progress, at least

Made = TypeVar("Made")


class Stored:
    """A run's folder, as one process reads it; it opens nothing before it is asked."""

    def __init__(self, root: str, name: str):
        self.name = name  # of a variation; "" for the run itself
        self._root = root
        self._cache: dict[Any, Any] = {}
        self._told: dict[str, float] = {}

    @cached_property
    def blobs(self) -> Any:
        return open_root(self._root)

    def ledger(self, stage: str) -> Ledger:
        return self.cached(("ledger", stage), lambda: Ledger(self.blobs, stage))

    def forget_cached(self) -> None:
        """Read and make everything anew, as records were taken out."""
        self._cache.clear()

    def tell(self, unit: Unit, share: float) -> None:
        """Say how much of a unit is done, 0 to 1, for people who wait for a long one.

        It may be said often: the first word and then one every few seconds is stored.
        """
        HERE.report()
        now = time.monotonic()
        if now - self._told.get(unit.id, -TELL_S) >= TELL_S:
            self._told[unit.id] = now
            with contextlib.suppress(OSError):  # a word the less
                self.blobs.put(f"{TOLD}/{unit.stage}/{unit.id}", f"{share:.4f}".encode())

    def told(self, stage: str, unit_ids: Collection[str]) -> float:
        """The sum of the shares that were told of these units."""
        total = 0.0
        for name in self.blobs.names(f"{TOLD}/{stage}"):
            if name.rsplit("/", 1)[-1] in unit_ids:
                with contextlib.suppress(KeyError, ValueError, OSError):  # committed, or damaged
                    share = float(self.blobs.get(name))
                    total += share if 0 <= share <= 1 else 0.0
        return total

    def done(self, units: Sequence[Unit]) -> dict[str, Record]:
        """Commit records by unit id, of those units that have one."""
        return self.ledger(units[0].stage).read(units) if units else {}

    def arrays(self, unit: Unit, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """A committed unit's arrays; CorruptionError if it has no record."""
        return read_group(self.blobs, self.manifest(unit), names)

    def manifest(self, unit: Unit) -> Mapping[str, Any]:
        """Which files are a committed unit's; CorruptionError if it has no record."""
        return _manifest(self.record(unit))

    def record(self, unit: Unit) -> Record:
        """A unit's commit record; CorruptionError if it has none."""
        return _there(unit, self.ledger(unit.stage).get(unit))

    def records(self, units: Sequence[Unit]) -> list[Record]:
        """Of each of the units; CorruptionError if one has none."""
        done = self.done(units)
        return [_there(unit, done.get(unit.id)) for unit in units]

    def rows(self, units: Sequence[Unit]) -> Rows:
        """Committed units of a row range as one array."""
        parts = zip(units, self.records(units), strict=True)
        return Rows(self.blobs, [(u.start, u.stop, _manifest(record)) for u, record in parts])

    def cached(self, key: Any, make: Callable[[], Made]) -> Made:
        """The value made once per process for this key."""
        if key not in self._cache:
            self._cache[key] = make()
        found: Made = self._cache[key]
        return found

    def latest(self, kind: str, of: Any, make: Callable[[], Made]) -> Made:
        """The value made once for `of`; of a kind only the last is kept, since they are large."""
        slot = self._cache.get(("latest", kind))
        if slot is None or slot[0] != of:
            self.let_go(kind)  # freed before the next is made
            slot = self._cache["latest", kind] = (of, make())
        found: Made = slot[1]
        return found

    def let_go(self, kind: str) -> None:
        """Of the value that `latest` keeps."""
        self._cache.pop(("latest", kind), None)

    def note_time(self, stage: str, began: float, seconds: float, busy_s: float) -> None:
        """Remember what a stage took this time; a resumed run adds one note to the others."""
        note = {"stage": stage, "began": began, "seconds": seconds, "busy_s": busy_s}
        note["run"] = self.name
        with contextlib.suppress(OSError):  # a full disk: the work is done all the same
            self.blobs.put(f"timing/{stage}-{int(began * 1e3)}.json", json.dumps(note).encode())

    def times(self) -> list[dict[str, Any]]:
        """All notes of `note_time` that can be read, a variation's only in that variation."""
        found = []
        for name in self.blobs.names("timing"):
            with contextlib.suppress(
                CorruptionError, KeyError, ValueError, OSError, RecursionError
            ):
                note = json.loads(self.blobs.get(name))
                if _is_time(note) and note.get("run", "") == self.name:
                    found.append(note)
        return found


def _manifest(record: Record) -> Mapping[str, Any]:
    if "manifest" not in record:
        raise CorruptionError(f"the commit record of {record['unit']} names no files; {SEE}")
    return record["manifest"]  # type: ignore[no-any-return]


def _is_time(note: Any) -> bool:
    if not isinstance(note, dict) or not isinstance(note.get("stage"), str):
        return False
    numbers = [note.get(key) for key in TIMES]
    return all(isinstance(n, int | float) and 0 <= n < LONGEST_S for n in numbers)


def _there(unit: Unit, record: Record | None) -> Record:
    if record is None:
        raise CorruptionError(f"{unit.describe()} has no commit record; run again")
    return record
