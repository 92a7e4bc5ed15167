"""The ledger: which units are done, and which bytes are their result.

A commit record is a small JSON object that carries its own sha256. It is put if absent, so the
first attempt to commit a unit wins and a late one changes nothing. When about a thousand loose
records have gathered they are sealed into one segment, also put if absent: reading a hundred
segments is fast where reading a hundred thousand files is not. What a segment says of a unit
stands, whatever a late writer puts beside it.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distinf.blobs import Blobs
from distinf.digest import sha256
from distinf.errors import SEE, CorruptionError, in_one_line
from distinf.runtime.records import RECORD_BYTES, Record, believed, seal, unseal
from distinf.runtime.units import Unit

SEGMENT_RECORDS = 1_000
SEGMENT_BYTES = 1 << 30
SEGMENT = "segment-"


@dataclass
class Examined:
    """All that lies in a ledger.

    records   those that stand, by unit id
    places    the file that each is in
    problems  one line by file, for each that cannot be believed
    """

    records: dict[str, Record] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


Segment = tuple[int, list[Record]]  # its number and its records


class Ledger:
    """The commit records of one stage, under `ledger/<stage>/`."""

    def __init__(self, blobs: Blobs, stage: str):
        self.stage = stage
        self._blobs = blobs
        self._prefix = f"ledger/{stage}"
        self._segments: dict[str, Segment] = {}  # by name
        self._sealed: dict[str, Record] = {}  # what they say, by unit id
        self._loose: dict[str, Record] = {}  # what stands beside them

    def commit(self, unit: Unit, attempt: int, content: Mapping[str, Any]) -> Record:
        """Put the unit's record if there is none -> the record that stands (maybe another's)."""
        record = {
            "unit": unit.id,
            **unit.as_json(),
            "attempt": attempt,
            "committed": time.time(),
            **content,
        }
        name = self._name(unit.id)
        is_loose = self._blobs.put_if_absent(name, seal(record))
        standing = self.get(unit)
        if is_loose and unit.id in self._sealed:  # it came after its unit's record was sealed
            self._blobs.delete(name)
        return record if standing is None else standing

    def read(self, units: Iterable[Unit] | None = None) -> dict[str, Record]:
        """Records by unit id, of the given units or of all."""
        wanted = None if units is None else {unit.id for unit in units}
        if wanted is None or not wanted <= self._loose.keys() | self._sealed.keys():
            names = self._names()
            self._read_segments(names)
            listed = {unit_id for unit_id in map(self._unit_of, names) if unit_id}
            self._read_loose(listed if wanted is None else listed & wanted)
        standing = {**self._loose, **self._sealed}
        return {k: r for k, r in standing.items() if wanted is None or k in wanted}

    def get(self, unit: Unit) -> Record | None:
        """One unit's record by its key, so that a listing that lags behind cannot hide it."""
        if unit.id not in self._sealed:
            self._read_loose({unit.id})
        return self._sealed.get(unit.id) or self._loose.get(unit.id)

    def examine(self) -> Examined:
        """Every record and segment, read anew; what cannot be believed is told, not raised."""
        found, loose = Examined(), dict[str, Record]()
        segments: dict[str, Segment] = {}
        names, seen = self._names(), set[str]()
        while names:
            name = names.pop(0)
            seen.add(name)
            try:
                if _is_segment(name):
                    segments[name] = self._segment(name)
                else:
                    loose[name] = self._loose_record(name)
            except KeyError:  # sealed meanwhile, into a segment that was not there
                names = [later for later in self._names() if later not in seen]
            except (CorruptionError, OSError) as error:
                found.problems[name] = in_one_line(error, name)
        parts = [(name, segments[name][1]) for name in _in_order(segments)]
        for name, records in [*parts, *((name, [record]) for name, record in loose.items())]:
            for record in records:
                found.records.setdefault(record["unit"], record)
                found.places.setdefault(record["unit"], name)
        return found

    def committed_ids(self) -> set[str]:
        """Ids of committed units, without parsing the loose records (for progress)."""
        names = self._names()
        self._read_segments(names)
        return self._sealed.keys() | {u for u in map(self._unit_of, names) if u}

    def seal_full_segments(self) -> int:
        """Seal whole thousands of loose records -> how many segments. One caller: the driver."""
        sealed = 0
        while True:
            names = self._names()
            self._read_segments(names)
            listed = sorted(u for u in map(self._unit_of, names) if u)
            for late in self._sealed.keys() & listed:
                self._blobs.delete(self._name(late))
            loose = [u for u in listed if u not in self._sealed]
            if len(loose) < SEGMENT_RECORDS:
                return sealed
            self._seal(loose[:SEGMENT_RECORDS])
            sealed += 1

    def take_out(self, unit_id: str, move: Callable[[Iterable[str]], None]) -> Record | None:
        """Let the unit have no record any more -> the one it had.

        What names it goes by `move`: its own file, or the segment that has it, whose other records
        are put back one by one before.
        """
        names = self._names()
        self._read_segments(names)
        self._read_loose({unit_id})
        record = self._sealed.get(unit_id) or self._loose.get(unit_id)
        for name, (_, records) in self._segments.items():
            if any(each["unit"] == unit_id for each in records):
                for each in records:
                    if each["unit"] != unit_id:
                        self._blobs.put_if_absent(self._name(each["unit"]), seal(each))
                move([name])
        move({self._name(unit_id)} & set(names))
        return record

    def _seal(self, unit_ids: Collection[str]) -> None:
        self._read_loose(unit_ids)
        records = [self._loose[u] for u in unit_ids if u in self._loose]
        number = max((number for number, _ in self._segments.values()), default=0) + 1
        data = seal({"stage": self.stage, "number": number, "records": records})
        name = self._segment_of(data)
        self._blobs.put_if_absent(name, data)
        self._read_segments([name])  # read back, before what is in it goes
        for record in records:
            self._blobs.delete(self._name(record["unit"]))

    def _names(self) -> list[str]:
        return self._blobs.names(self._prefix)

    def _name(self, unit_id: str) -> str:
        return f"{self._prefix}/{unit_id}.json"

    def _segment_of(self, data: bytes) -> str:
        return f"{self._prefix}/{SEGMENT}{sha256(data)[:20]}.json"

    def _unit_of(self, name: str) -> str | None:
        stem = name.removeprefix(f"{self._prefix}/").removesuffix(".json")
        return stem if self._name(stem) == name and not _is_segment(name) else None

    def _read_segments(self, names: Iterable[str]) -> None:
        new = [name for name in names if _is_segment(name) and name not in self._segments]
        with no_collecting():  # known all together: one that cannot be read hides none of them
            self._segments |= {name: self._segment(name) for name in new}
        late = _in_order(self._segments)[-len(new) :] if new else []
        if {*late} != {*new}:  # one comes before those that were known
            self._sealed, late = {}, _in_order(self._segments)
        for name in late:
            for record in self._segments[name][1]:
                self._sealed.setdefault(record["unit"], record)

    def _segment(self, name: str) -> Segment:
        data = self._blobs.get(name, most=SEGMENT_BYTES)
        content = unseal(data, name, is_intact=name == self._segment_of(data))
        number, records = content.get("number", 0), content.get("records")
        if type(number) is not int or not isinstance(records, list):
            raise CorruptionError(f"{name} is no segment of commit records; {SEE}")
        return number, [believed(record, self.stage, name) for record in records]

    def _read_loose(self, unit_ids: Iterable[str]) -> None:
        """Read those of the records that are not known yet.

        Segments are looked for after that: one that was sealed before a record was read has the
        unit's record, and what was read came late.
        """
        found: dict[str, Record | None] = {}
        for unit_id in unit_ids:
            if unit_id not in self._loose and unit_id not in self._sealed:
                found[unit_id] = None
                with contextlib.suppress(KeyError):
                    found[unit_id] = self._loose_record(self._name(unit_id))
        if found:
            self._read_segments(self._names())
        self._loose |= {u: r for u, r in found.items() if r is not None and u not in self._sealed}

    def _loose_record(self, name: str) -> Record:
        record = unseal(self._blobs.get(name, most=RECORD_BYTES), name)
        if record.get("unit") != self._unit_of(name):
            other = f"{record.get('unit')!r:.40}"
            raise CorruptionError(f"{name} holds the record of unit {other}; {SEE}")
        return believed(record, self.stage, name)


@contextlib.contextmanager
def no_collecting() -> Iterator[None]:
    """Python's search for cycles looks at all records again and again, and there are none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _in_order(segments: Mapping[str, Segment]) -> list[str]:
    """As they were sealed. What the first says of a unit stands."""
    return sorted(segments, key=lambda name: (segments[name][0], name))


def _is_segment(name: str) -> bool:
    return f"/{SEGMENT}" in name
