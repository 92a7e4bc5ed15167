"""Rows of dots with their intervals, as any page draws them: a panel each, one scale in all."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.report import svg
from distinf.report.formats import fixed, shortened
from distinf.report.rows import Row, gathered

EDGE = 0.025  # of a panel's width: how far from its edge an arrow stands


@dataclass(frozen=True)
class Dot:
    """A mean and its interval in row `row`, from 0; NaN bounds give none.

    `faint`: one of many, as a trial is. `text` stands beside it, `name` in the legend.
    """

    row: float
    mean: float
    low: float = math.nan
    high: float = math.nan
    color: str = "accent"
    marker: str = "o"
    hollow: bool = False
    faint: bool = False
    text: str = ""
    name: str | None = None


@dataclass(frozen=True)
class Panel:
    """A row for each label; dots below `least` do not set the scale.

    levels: (place, color, name) of lines across the rows. from_zero: the scale holds 0.
    """

    heading: str
    labels: Sequence[str]
    dots: Sequence[Dot]
    least: float = -math.inf
    levels: Sequence[tuple[float, str, str]] = ()
    from_zero: bool = True


def dot(row: float, of: Row, prefix: str = "", unit: str = "_pct", **style: Any) -> Dot:
    """A dot of the columns `prefix`mean, low and high, each ending in `unit`; in "_points" of the
    columns points, low_points and high_points."""
    mean = "points" if unit == "_points" else f"mean{unit}"
    keys = (f"{prefix}{k}" for k in (mean, f"low{unit}", f"high{unit}"))
    return Dot(row, *(of.get(key, math.nan) for key in keys), **style)


def rows_of_dots(canvas: Figure, height: float, *panels: Panel, **shape: Any) -> None:
    """Draw the panels that have a finite mean."""
    shown = [p for p in panels if any(math.isfinite(d.mean) for d in p.dots)]
    if not shown:
        return
    every = svg.panels(canvas, height, 1, len(shown), **shape)[0]
    for k, (axes, panel) in enumerate(zip(every, shown, strict=True)):
        _draw(axes, panel)
        again = k > 0 and shown[k - 1].labels == panel.labels
        axes.tick_params(axis="y", labelleft=not again)
    svg.legend(canvas, *every, most=48)


def stacked(dots: Iterable[Dot]) -> list[Dot]:
    """Dots that share a row, two at most, above each other within it."""
    seen: dict[float, int] = {}
    found = []
    for dot in dots:
        seen[dot.row] = seen.get(dot.row, -1) + 1
        found.append(replace(dot, row=dot.row + 0.34 * (seen[dot.row] - 0.5)))
    return found


def _draw(axes: Axes, panel: Panel) -> None:
    low, high = _limits(panel)
    finite = [d for d in panel.dots if math.isfinite(d.mean)]
    inside = [d for d in finite if low <= d.mean <= high]
    for d in (d for d in inside if not d.faint):
        _dot(axes, d, low + 0.85 * (high - low))
    faint = gathered((d for d in inside if d.faint), lambda d: (d.color, d.marker))
    for (color, marker), those in faint.items():
        x, y = [d.mean for d in those], [d.row for d in those]
        svg.line(axes, x, y, color, marker, ms=4.2, mew=0, alpha=0.5)
    beyond = gathered(
        (d for d in finite if not low <= d.mean <= high),
        lambda d: (round(d.row), d.mean < low, d.faint, d.color),
    )
    for (_, left, *_), those in beyond.items():
        _arrow(axes, those, (low, 1) if left else (high, -1), EDGE * (high - low))
    for at, color, name in panel.levels:
        svg.level(axes, at, color, ls=svg.DASH["reference"], lw=1.3, label=name)
    axes.set_xlim(low, high)
    svg.row_axis(axes, [shortened(text, 46) for text in panel.labels], panel.from_zero)
    axes.locator_params(axis="x", nbins=4)
    svg.title(axes, panel.heading)


def _limits(panel: Panel) -> tuple[float, float]:
    """A range that holds every dot and interval whose mean is at least `least`, the levels, and 0
    unless told otherwise."""
    every, least = [d for d in panel.dots if math.isfinite(d.mean)], panel.least
    inside = [d for d in every if d.mean >= least] or every
    ends = [v for d in inside for v in (d.mean, d.low, d.high) if math.isfinite(v)]
    ends += [at for at, *_ in panel.levels] + [0.0] * panel.from_zero
    low, high = min(ends), max(ends)
    if math.isfinite(least) and inside is not every:
        low = max(low, 1.5 * least)
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def _dot(axes: Axes, d: Dot, last: float) -> None:
    """`last`: the place from which a text stands at the left."""
    if math.isfinite(d.low):
        style: Any = {"lw": 1.1 if d.hollow else 2.2, "solid_capstyle": "butt"}
        svg.line(axes, [d.low, d.high], [d.row] * 2, d.color, **style)
    style = {"mark": "paper" if d.hollow else d.color, "mec": svg.COLOR[d.color], "mew": 1.1}
    svg.line(axes, [d.mean], [d.row], d.color, d.marker, ms=5.2, label=d.name, **style)
    if d.text:
        ends = svg.finite([d.mean, d.low, d.high])
        at, dx = (ends.max(), 9) if ends.max() < last else (ends.min(), -9)
        style = {"color": svg.COLOR[d.color], "fontweight": "bold", "va": "center_baseline"}
        svg.note(axes, d.text, (at, d.row), dx, **style)


def _arrow(axes: Axes, those: Sequence[Dot], edge: tuple[float, int], inset: float) -> None:
    """What lies beyond an edge: one by its number, several by how many they are."""
    last, (end, inward) = those[-1], edge
    at = (end + inward * inset, last.row)
    told = fixed(last.mean, 0) if len(those) == 1 else f"{len(those)} beyond"
    form = "<" if inward > 0 else ">"
    svg.line(axes, [at[0]], [at[1]], last.color, form, ms=5.2, mew=0, label=last.name)
    style: Any = {"color": svg.COLOR[last.color], "fontsize": 8.5, "va": "center_baseline"}
    svg.note(axes, told, at, 7 * inward, **style)
