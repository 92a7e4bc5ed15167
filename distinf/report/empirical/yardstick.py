"""The yardstick's section: which estimate tells what was measured."""

import math
from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure as Canvas

from distinf.report.formats import number
from distinf.report.plots import Dot, Panel, rows_of_dots
from distinf.report.rows import Row
from distinf.report.schema import Column, Entry, Section
from distinf.report.words import Words

PARTS = {"off the diagonal": "off", "within columns": "within"}


def section(words: Words, rows: Sequence[Row]) -> Section:
    """A line for each estimator, with columns for each run that it is held against."""
    lines: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = row["matrix"], row["estimator"], row["of"]
        lines.setdefault(key, {**row, "by": {}})["by"][row["run"]] = row
    columns = [
        Column(heading, partial(_entry, run=run, part=part), group=run or "this run")
        for run in dict.fromkeys(row["run"] for row in rows)
        for heading, part in PARTS.items()
    ]
    table = words.table("yardstick", [*lines.values()], columns)
    figure = words.figure("yardstick", partial(draw, rows))
    return Section("yardstick", "The yardstick", [figure, table], words.of("yardstick"))


def _entry(line: Row, run: str, part: str) -> Entry:
    row = line["by"].get(run, {})
    value, low, high = (row.get(f"{part}{end}", math.nan) for end in ("", "_low", "_high"))
    below = f"{number(low)} to {number(high)}" if math.isfinite(low) else ""
    return Entry(number(value), below, value) if math.isfinite(value) else Entry()


def draw(rows: Sequence[Row], canvas: Canvas) -> bool | None:
    """A panel for each run."""
    finite = [row for row in rows if math.isfinite(row["off"])]
    names = {_label(row): None for row in finite}  # the same in every panel
    places = {name: place for place, name in enumerate(names)}
    panels = []
    for run in dict.fromkeys(row["run"] for row in finite):
        dots = [
            Dot(places[_label(r)], r[part], r[f"{part}_low"], r[f"{part}_high"], hollow=hollow)
            for part, hollow in (("off", False), ("within", True))
            for r in finite
            if r["run"] == run
        ]
        panels.append(Panel(run or "this run", [*names], dots))
    return bool(panels) and rows_of_dots(canvas, 0.9 + 0.3 * len(names), *panels)


def _label(row: Row) -> str:
    return " ".join(filter(None, (row["matrix"], row["estimator"], row["of"])))
