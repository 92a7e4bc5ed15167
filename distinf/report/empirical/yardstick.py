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
    panels = []
    for run in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == run and math.isfinite(row["off"])]
        labels = [" ".join(filter(None, (r["matrix"], r["estimator"], r["of"]))) for r in mine]
        dots = [
            Dot(k, r[part], r[f"{part}_low"], r[f"{part}_high"], hollow=part == "within")
            for part in PARTS.values()
            for k, r in enumerate(mine)
        ]
        panels.append(Panel(run or "this run", labels, dots))
    most = max((len(panel.labels) for panel in panels), default=0)
    return bool(most) and rows_of_dots(canvas, 0.9 + 0.3 * most, *panels)
