"""A report's files: its page and its tables as CSV and JSON, written in one go."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distinf.engine.recipe import PAGE, REPORT
from distinf.engine.session import Session
from distinf.report import render, worth
from distinf.report.rows import Row, csv_text, json_text
from distinf.report.schema import Page
from distinf.runtime import hand_out


def publish(
    session: Session,
    findings: Any,
    tables: Mapping[str, Sequence[Row]],
    page: Page,
    rankings: Mapping[str, Sequence[Row]] | None = None,
    more: Mapping[str, bytes] | None = None,
) -> None:
    """Rankings and tables as CSV and JSON, findings.json, and the page last: if it is there, all
    is. Their sums come after them. What an evaluation found of the run is among them. `more`: other
    files by name."""
    measured = worth.measures(session)
    tables = {**tables, "worth": measured} if measured else tables
    text = render.html(worth.shown(page, measured), [*(rankings or {}), *tables])
    files = dict(more or {})
    for name, rows in {**(rankings or {}), **tables}.items():
        files[f"{name}.csv"] = csv_text(rows).encode()
        files[f"{name}.json"] = json_text(rows).encode()
    files["findings.json"] = json.dumps(findings, indent=1).encode()
    named = {f"{REPORT}/{name}": data for name, data in files.items()}
    hand_out(session.blobs, REPORT, {**named, PAGE: text.encode()})
