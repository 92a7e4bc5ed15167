"""Commit records: JSON with its own sha256, believed no further than what a unit's record can be.

Anyone can compute a checksum. A record is of the unit that its id is the hash of, lies under that
id, and names files in that unit's own folder.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from distinf.digest import sha256
from distinf.errors import SEE, CorruptionError
from distinf.runtime.units import Unit

Record = dict[str, Any]

RECORD_BYTES = 64 << 20  # none of ours comes near
JOBS = "jobs"  # the folder of stages whose units are jobs


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON of `content` with the sha256 of its canonical form added."""
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "sha256": sha256(body.encode())}, sort_keys=True).encode()


def unseal(data: bytes, name: str) -> dict[str, Any]:
    """The content of sealed JSON; CorruptionError naming `name` if a byte of it changed."""
    try:
        content = json.loads(data)
        check = content.pop("sha256")
        body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CorruptionError(f"{name} is not a commit record; {SEE}") from None
    if sha256(body.encode()) != check:
        raise CorruptionError(f"{name} was altered after it was written; {SEE}")
    return content  # type: ignore[no-any-return]


def believed(record: Any, stage: str, name: str) -> Record:
    """The record, if it is one of a unit of `stage`; CorruptionError naming `name` if not."""
    if not isinstance(record, dict):
        raise CorruptionError(f"{name} is not a commit record; {SEE}")
    unit = _unit(record, stage)
    if unit is None:
        raise CorruptionError(f"{name} is of no unit of stage '{stage}'; {SEE}")
    attempt, committed = record.get("attempt"), record.get("committed")
    counted = type(attempt) is int and 1 <= attempt < 2**31
    if not counted or not isinstance(committed, int | float) or not abs(committed) < 1e12:
        raise CorruptionError(f"{name} does not say when it was committed; {SEE}")
    if not isinstance(record.get("summary", {}), dict):
        raise CorruptionError(f"{name} has no summary of its unit; {SEE}")
    if "manifest" in record:
        _check_manifest(record["manifest"], unit, name)
    return record


def _unit(record: Mapping[str, Any], stage: str) -> Unit | None:
    """The unit that the record is of; None if its id is not the hash of what it says."""
    kinds = {"stage": str, "key": str, "start": int, "stop": int, "job": dict}
    if any(type(record.get(key)) is not kind for key, kind in kinds.items()):
        return None
    try:
        unit = Unit(**{key: record[key] for key in kinds})
        return unit if unit.id == record.get("unit") and unit.stage == stage else None
    except (ValueError, RecursionError):  # not finite, too deep
        return None


def _check_manifest(value: Any, unit: Unit, name: str) -> None:
    """Of the shape that a group's has, of files in the unit's folder."""
    kinds = {"group": str, "files": dict, "bytes": int}
    if not isinstance(value, dict) or any(
        type(value.get(key)) is not kind for key, kind in kinds.items()
    ):
        raise CorruptionError(f"{name} has no manifest of its files; {SEE}")
    if not all(isinstance(text, str) for pair in value["files"].items() for text in pair):
        raise CorruptionError(f"{name} has no manifest of its files; {SEE}")
    if value["files"] and not value["group"].startswith(folders_of(unit.stage, unit.id)):
        raise CorruptionError(f"{name} names files of another unit; {SEE}")
    if not 0 <= value["bytes"] < math.inf:
        raise CorruptionError(f"{name} has no manifest of its files; {SEE}")


def folders_of(stage: str, unit_id: str) -> tuple[str, str]:
    """Where the groups of a unit's attempts may lie."""
    return f"{stage}.zarr/{unit_id}/", f"{JOBS}/{unit_id}/"
