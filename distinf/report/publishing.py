"""What the report stages of all routes share: one unit, its files, and when it is done."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distinf.report.rows import Row, csv_text, json_text
from distinf.runtime import Cost, Unit, hand_out
from distinf.runtime.handed import FOLDER, sums_of

NAME = "report"
PAGE = "index.html"


def units(outline: Any) -> Sequence[tuple[Unit, Cost]]:
    """One unit: the page."""
    return [(Unit(NAME, outline.basis[NAME]), Cost(bytes=3e6))]


def is_done(session: Any) -> bool:
    """The page and the sums of all files are there, and they are this run's."""
    unit = units(session.outline)[0][0]
    there = {*session.blobs.names(NAME), *session.blobs.names(FOLDER)}
    return {f"{NAME}/{PAGE}", sums_of(NAME)} <= there and bool(session.done([unit]))


def publish(
    session: Any,
    findings: Any,
    tables: Mapping[str, Sequence[Row]],
    page: str,
    rankings: Mapping[str, Sequence[Row]] | None = None,
) -> None:
    """Rankings and tables as CSV and JSON, findings.json, and the page last: if it is there, all
    is. Their sums come after them."""
    files = {}
    for name, rows in {**(rankings or {}), **tables}.items():
        files[f"{name}.csv"] = csv_text(rows).encode()
        files[f"{name}.json"] = json_text(rows).encode()
    files["findings.json"] = json.dumps(findings, indent=1).encode()
    files[PAGE] = page.encode()
    hand_out(session.blobs, NAME, {f"{NAME}/{name}": data for name, data in files.items()})


def commit(session: Any) -> None:
    """Say that the report is written: after this it is done."""
    unit = units(session.outline)[0][0]
    empty = {"group": NAME, "files": {}, "bytes": 0}
    session.ledger(NAME).commit(unit, 1, {"manifest": empty, "summary": {}})
