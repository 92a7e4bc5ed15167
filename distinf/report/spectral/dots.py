"""Means with their intervals, one row each: the plot that compares arms and runs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes

from distinf.report.formats import fixed, shortened
from distinf.report.svg import COLOR, MARKER, linear_axis, title

MOST_ROWS = 30
ROW_IN = 0.27
DIVERGED = -100.0  # a gap that doubled: arms beyond it do not set the scale


@dataclass(frozen=True)
class Dot:
    """A mean and its interval in row `row`, from 0; NaN bounds give none."""

    row: float
    mean: float
    low: float = math.nan
    high: float = math.nan
    color: str = "accent"
    marker: str = "o"
    hollow: bool = False
    name: str | None = None


def limits(dots: Iterable[Dot], least: float = -math.inf) -> tuple[float, float]:
    """A range with 0 that holds every dot and interval whose mean is at least `least`."""
    every = [d for d in dots if math.isfinite(d.mean)]
    inside = [d for d in every if d.mean >= least] or every
    ends = [v for d in inside for v in (d.mean, d.low, d.high) if math.isfinite(v)]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    if math.isfinite(least):
        low = max(low, 1.5 * least) if inside is not every else low
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def draw(
    axes: Axes,
    dots: Sequence[Dot],
    labels: Sequence[str],
    heading: str,
    least: float = -math.inf,
    named: bool = True,
) -> None:
    """Every dot on its row; one beyond the range is an arrow with its number.

    The rows are labelled where `named`; `least` as in `limits`.
    """
    low, high = limits(dots, least)
    for dot in (d for d in dots if math.isfinite(d.mean)):
        if low <= dot.mean <= high:
            _inside(axes, dot)
        else:
            _beyond(axes, dot, (low, high))
    axes.set_xlim(low, high)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.set_yticks(range(len(labels)), [shortened(text, 44) for text in labels])
    axes.tick_params(axis="y", labelcolor=COLOR["ink"], labelleft=named)
    axes.grid(False)
    axes.grid(True, axis="x")
    axes.axvline(0, color=COLOR["muted"], lw=0.9, zorder=1)
    linear_axis(axes, "x")
    axes.locator_params(axis="x", nbins=4)
    title(axes, heading)


def _inside(axes: Axes, dot: Dot) -> None:
    color = COLOR[dot.color]
    if math.isfinite(dot.low):
        width = 1.1 if dot.hollow else 2.2
        axes.plot([dot.low, dot.high], [dot.row] * 2, color=color, lw=width, solid_capstyle="butt")
    face = COLOR["paper"] if dot.hollow else color
    style: dict[str, Any] = {"color": color, "mfc": face, "mec": color, "ms": 5.2, "mew": 1.1}
    axes.plot([dot.mean], [dot.row], dot.marker, label=dot.name, **style)


def _beyond(axes: Axes, dot: Dot, shown: tuple[float, float]) -> None:
    color = COLOR[dot.color]
    left = dot.mean < shown[0]
    at = shown[0 if left else 1] + (0.025 if left else -0.025) * (shown[1] - shown[0])
    axes.plot([at], [dot.row], "<" if left else ">", color=color, ms=5.2, mew=0, label=dot.name)
    axes.annotate(
        fixed(dot.mean, 0),
        (at, dot.row),
        (7 if left else -7, 0),
        textcoords="offset points",
        ha="left" if left else "right",
        va="center_baseline",
        color=color,
        fontsize=8.5,
    )


def stacked(dots: Iterable[Dot], places: int) -> list[Dot]:
    """Dots that share a row, side by side within it: `places` of them at most."""
    seen: dict[float, int] = {}
    found = []
    for dot in dots:
        place = seen.get(dot.row, 0)
        seen[dot.row] = place + 1
        shift = 0.0 if places < 2 else 0.34 * (place / (places - 1) - 0.5)
        found.append(replace(dot, row=dot.row + shift))
    return found


def marker(selection: str) -> str:
    """The selection's own marker."""
    return MARKER.get(selection, "D")
