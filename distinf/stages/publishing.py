"""What the report stages of all routes share: one unit, its files, and when it is done."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distinf.runtime import Cost, Unit
from distinf.stages.page.rows import Row, csv_text, json_text

NAME = "report"
PAGE = "index.html"


def units(outline: Any) -> Sequence[tuple[Unit, Cost]]:
    """One unit: the page."""
    return [(Unit(NAME, outline.basis[NAME]), Cost(bytes=3e6))]


def is_done(session: Any) -> bool:
    """The page is there, and it is this run's."""
    unit = units(session.outline)[0][0]
    page_is_there = f"{NAME}/{PAGE}" in session.blobs.names(NAME)
    return page_is_there and bool(session.done([unit]))


def publish(session: Any, findings: Any, tables: Mapping[str, Sequence[Row]], page: str) -> None:
    """findings.json, every table as CSV and JSON, and the page last: if it is there, all is."""
    for name, rows in tables.items():
        session.blobs.put(f"{NAME}/{name}.csv", csv_text(rows).encode())
        session.blobs.put(f"{NAME}/{name}.json", json_text(rows).encode())
    session.blobs.put(f"{NAME}/findings.json", json.dumps(findings, indent=1).encode())
    session.blobs.put(f"{NAME}/{PAGE}", page.encode())


def commit(session: Any) -> None:
    """Say that the report is written: after this it is done."""
    unit = units(session.outline)[0][0]
    empty = {"group": NAME, "files": {}, "bytes": 0}
    session.ledger(NAME).commit(unit, 1, {"manifest": empty, "summary": {}})
