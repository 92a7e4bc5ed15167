"""Commit records: JSON with its own sha256, believed no further than what a unit's record can be.

Anyone can compute a checksum. A record is of the unit that its id is the hash of, lies under that
id, and names files in that unit's own folder.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from distinf.digest import sha256
from distinf.errors import SEE, CorruptionError
from distinf.runtime.units import unit_id

Record = dict[str, Any]

RECORD_BYTES = 64 << 20  # none of ours comes near
_OF_A_UNIT = ("stage", "key", "start", "stop", "job")
_OF_FILES = ("group", "files", "bytes")
JOBS = "jobs"  # the folder of stages whose units are jobs


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON of `content` with the sha256 of its canonical form added."""
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": sha256(body.encode())}, sort_keys=True).encode()


def unseal(data: bytes, name: str, is_intact: bool = False) -> dict[str, Any]:
    """The content of sealed JSON; CorruptionError naming `name` if a byte of it changed.

    is_intact  the caller knows it, by a digest of the very bytes: the sum is not made again
    """
    try:
        content = json.loads(data)
        check = content.pop("sha256")
        body = "" if is_intact else json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CorruptionError(f"{name} is not a commit record; {SEE}") from None
    if not is_intact and sha256(body.encode()) != check:
        raise CorruptionError(f"{name} was altered after it was written; {SEE}")
    return content  # type: ignore[no-any-return]


def believed(record: Any, stage: str, name: str) -> Record:
    """The record, if it is one of a unit of `stage`; CorruptionError naming `name` if not."""
    if not isinstance(record, dict):
        raise CorruptionError(f"{name} is not a commit record; {SEE}")
    if not _is_of_a_unit(record, stage):
        raise CorruptionError(f"{name} is of no unit of stage '{stage}'; {SEE}")
    attempt, committed = record.get("attempt"), record.get("committed")
    counted = type(attempt) is int and 1 <= attempt < 2**31
    if not counted or not isinstance(committed, int | float) or not abs(committed) < 1e12:
        raise CorruptionError(f"{name} does not say when it was committed; {SEE}")
    if not isinstance(record.get("summary", {}), dict):
        raise CorruptionError(f"{name} has no summary of its unit; {SEE}")
    if "manifest" in record:
        _check_manifest(record["manifest"], stage, record["unit"], name)
    return record


@dataclass(frozen=True)
class Lowered:
    """Rows at once that did not fit in memory: as set, the fewest taken, and on how many units."""

    setting: str
    rows: int
    to: int
    units: int

    def __str__(self) -> str:
        units = f"{self.units} unit{'s' if self.units != 1 else ''}"
        return f"{self.setting} lowered from {self.rows} to {self.to} rows at once on {units}"


def lowered_in(records: Iterable[Record]) -> list[Lowered]:
    """By setting, what memory did not hold; what is no such note is none."""
    found: dict[str, Lowered] = {}
    for record in records:
        noted = record.get("microbatch")
        for setting, pair in noted.items() if isinstance(noted, dict) else ():
            if isinstance(pair, list) and [*map(type, pair)] == [int, int]:
                old = found.get(setting, Lowered(setting, pair[0], pair[1], 0))
                rows, to = max(old.rows, pair[0]), min(old.to, pair[1])
                found[setting] = Lowered(setting, rows, to, old.units + 1)
    return [found[setting] for setting in sorted(found)]


def amount(value: Any) -> float:
    """A number of a record that is only told of; 0 for what is none."""
    is_number = type(value) in (int, float) and 0 <= value < 1e12
    return float(value) if is_number else 0.0


def _is_of_a_unit(record: Mapping[str, Any], stage: str) -> bool:
    """Whether its id is the hash of what it says of a unit of this stage."""
    of: tuple[Any, ...] = tuple(map(record.get, _OF_A_UNIT))
    if tuple(map(type, of)) != (str, str, int, int, dict) or of[0] != stage:
        return False
    try:
        return unit_id(*of) == record.get("unit")
    except (ValueError, RecursionError):  # not finite, too deep
        return False


def _check_manifest(value: Any, stage: str, unit: str, name: str) -> None:
    """Of the shape that a group's has, of files in the unit's folder."""
    group, files, size = map(value.get, _OF_FILES) if isinstance(value, dict) else (None,) * 3
    if type(group) is not str or type(files) is not dict or type(size) is not int or size < 0:
        raise CorruptionError(f"{name} has no manifest of its files; {SEE}")
    if not {*map(type, files.values())} <= {str}:
        raise CorruptionError(f"{name} has no manifest of its files; {SEE}")
    if files and not group.startswith(folders_of(stage, unit)):
        raise CorruptionError(f"{name} names files of another unit; {SEE}")


def folders_of(stage: str, unit: str) -> tuple[str, str]:
    """Where the groups of a unit's attempts may lie."""
    return f"{stage}.zarr/{unit}/", f"{JOBS}/{unit}/"
