"""The ledger: which units are done, and which bytes are their result.

A commit record is a small JSON object that carries its own sha256. It is put if absent, so the
first attempt to commit a unit wins and a late one changes nothing. When about a thousand loose
records have gathered they are sealed into one segment, also put if absent: reading a hundred
segments is fast where reading a hundred thousand files is not. What a segment says of a unit
stands, whatever a late writer puts beside it.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from distinf.errors import CorruptionError
from distinf.runtime.units import Unit

SEGMENT_RECORDS = 1_000


class Records(Protocol):
    """The four verbs that the ledger needs of a store."""

    def put_if_absent(self, key: str, data: bytes) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def names(self, prefix: str) -> list[str]: ...
    def delete(self, key: str) -> None: ...


Record = dict[str, Any]


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON of `content` with the sha256 of its canonical form added."""
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    check = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**content, "sha256": check}, sort_keys=True).encode()


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """The content of sealed JSON; CorruptionError naming `name` if a byte of it changed."""
    try:
        content = json.loads(data)
        check = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CorruptionError(f"{name} is not a commit record; see `distinf verify`") from None
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(body.encode()).hexdigest() != check:
        raise CorruptionError(f"{name} was altered after it was written; see `distinf verify`")
    if "manifest" in content and not _is_manifest(content["manifest"]):
        raise CorruptionError(f"{name} has no manifest of its files; see `distinf verify`")
    return content


def _is_manifest(value: Any) -> bool:
    """Of the shape that a group's has: anyone can compute a checksum."""
    if not isinstance(value, dict):
        return False
    kinds = {"group": str, "files": dict, "bytes": int}
    if not all(isinstance(value.get(key), kind) for key, kind in kinds.items()):
        return False
    return all(isinstance(text, str) for pair in value["files"].items() for text in pair)


class Ledger:
    """The commit records of one stage, under `ledger/<stage>/`."""

    def __init__(self, records: Records, stage: str):
        self.stage = stage
        self._records = records
        self._prefix = f"ledger/{stage}"
        self._sealed: dict[str, dict[str, Record]] = {}  # segment name -> records by unit id
        self._loose: dict[str, Record] = {}

    def commit(self, unit: Unit, attempt: int, content: Mapping[str, Any]) -> Record:
        """Put the unit's record if there is none -> the record that stands (maybe another's)."""
        record = {
            "unit": unit.id,
            **unit.as_json(),
            "attempt": attempt,
            "committed": time.time(),
            **content,
        }
        if not self._records.put_if_absent(f"{self._prefix}/{unit.id}.json", seal(record)):
            standing = self.read([unit]).get(unit.id)
            if standing is not None:
                return standing
        return record

    def read(self, units: Iterable[Unit] | None = None) -> dict[str, Record]:
        """Records by unit id, of the given units or of all."""
        if units is not None:
            units = list(units)
            known = {u.id: record for u in units if (record := self._known(u.id)) is not None}
            if len(known) == len({u.id for u in units}):
                return known
        names = self._records.names(self._prefix)
        merged: dict[str, Record] = {}
        self._read_segments(names)
        for records in self._sealed.values():
            for unit_id, record in records.items():
                merged.setdefault(unit_id, record)
        wanted = None if units is None else {unit.id for unit in units}
        for name in names:
            found = _unit_of(name)
            if found is None or found in merged or (wanted is not None and found not in wanted):
                continue
            loose = self._read_loose(name, found)
            if loose is None:  # sealed between the listing and the reading
                return self.read(units)
            merged[found] = loose
        return merged if wanted is None else {k: v for k, v in merged.items() if k in wanted}

    def get(self, unit: Unit) -> Record | None:
        """One unit's record by its key, so that a listing that lags behind cannot hide it."""
        record = self._known(unit.id) or self._read_loose(f"{self._prefix}/{unit.id}.json", unit.id)
        return record or self.read([unit]).get(unit.id)

    def _known(self, unit_id: str) -> Record | None:
        """A record that was read before; records never change."""
        for records in self._sealed.values():
            if unit_id in records:
                return records[unit_id]
        return self._loose.get(unit_id)

    def damaged(self) -> list[str]:
        """One line for each record or segment that cannot be believed."""
        found = []
        for name in self._records.names(self._prefix):
            try:
                unseal(self._records.get(name), name)
            except CorruptionError as error:
                found.append(str(error))
        return found

    def intact(self) -> dict[str, Record]:
        """Like `read`, leaving out what `damaged` lists."""
        found: dict[str, Record] = {}
        for name in sorted(self._records.names(self._prefix), key=lambda n: "/segment-" not in n):
            try:
                content = unseal(self._records.get(name), name)
            except CorruptionError:
                continue
            for record in content["records"] if "/segment-" in name else [content]:
                found.setdefault(record["unit"], record)
        return found

    def committed_ids(self) -> set[str]:
        """Ids of committed units, without parsing the loose records (for progress)."""
        names = self._records.names(self._prefix)
        self._read_segments(names)
        sealed = {unit_id for records in self._sealed.values() for unit_id in records}
        return sealed | {unit_id for unit_id in map(_unit_of, names) if unit_id}

    def seal_full_segments(self) -> int:
        """Seal whole thousands of loose records -> how many segments. One caller: the driver."""
        sealed = 0
        while True:
            standing = {k for records in self._sealed.values() for k in records}
            names = self._records.names(self._prefix)
            self._read_segments(names)
            loose = sorted(u for u in map(_unit_of, names) if u and u not in standing)
            if len(loose) < SEGMENT_RECORDS:
                return sealed
            chosen = loose[:SEGMENT_RECORDS]
            found = [self._read_loose(f"{self._prefix}/{u}.json", u) for u in chosen]
            records = [record for record in found if record is not None]
            data = seal({"stage": self.stage, "records": records})
            name = f"{self._prefix}/segment-{hashlib.sha256(data).hexdigest()[:20]}.json"
            self._records.put_if_absent(name, data)
            for unit_id in chosen:
                self._records.delete(f"{self._prefix}/{unit_id}.json")
            self._read_segments([name])
            sealed += 1

    def _read_segments(self, names: Iterable[str]) -> None:
        for name in names:
            if "/segment-" in name and name not in self._sealed:
                content = unseal(self._records.get(name), name)
                self._sealed[name] = {record["unit"]: record for record in content["records"]}

    def _read_loose(self, name: str, unit_id: str) -> Record | None:
        if unit_id not in self._loose:
            try:
                data = self._records.get(name)
            except KeyError:
                return None
            record = unseal(data, name)
            if record.get("unit") != unit_id:
                raise CorruptionError(f"{name} holds the record of unit {record.get('unit')}")
            self._loose[unit_id] = record
        return self._loose[unit_id]


def _unit_of(name: str) -> str | None:
    stem = name.rsplit("/", 1)[-1]
    if not stem.endswith(".json") or stem.startswith("segment-"):
        return None
    return stem.removesuffix(".json")
