"""Learning rates against fine-tuning steps, as heat maps (Tuononen et al., Fig. 9 and 10)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from distinf.report.formats import number, shortened
from distinf.report.maps import scale_bar, show
from distinf.report.spectral.experiment_tables import rate_maps
from distinf.report.spectral.families import NAMES, rate
from distinf.report.spectral.findings import Family, Findings
from distinf.report.svg import COLOR, drawing, export, linear_axis, title

COARSE = 0.01  # from here on a rate belongs to the coarse map
FEWEST_EACH = 3
LEAST_RANGE = math.log(1.25)
MOST_WORSE = math.log(4)
MOST_MAPS = 4
HATCH: dict[str, Any] = {"fill": False, "hatch": "////", "lw": 0, "ec": COLOR["paper"]}


def rate_figure(findings: Findings, family: Family, name: str, heading: str) -> str | None:
    """The metric relative to before, on a log colour scale; a map per arm, coarse and fine apart.

    The scale reaches up to four times the metric before; cells above it are hatched.
    """
    maps = rate_maps(family)[:MOST_MAPS]
    if not maps:
        return None
    usual = next(
        (o.lr for o in findings.headline_outcomes() if o.selection == findings.guided()), None
    )
    split = [parts(rates, usual) for _, rates, _ in maps]
    columns = max(len(p) for p in split)
    most = max(len(rows) for p in split for rows in p)
    scale = reach([metric_RS for *_, metric_RS in maps])
    with drawing(name, 1.25 + len(maps) * max(1.5, 0.55 + 0.24 * most)) as figure:
        grid = figure.add_gridspec(
            len(maps) + 1, columns, height_ratios=[*[max(1.0, 0.24 * most)] * len(maps), 0.13]
        )
        for line, ((label, rates, metric_RS), pieces) in enumerate(zip(maps, split, strict=True)):
            for place, rows in enumerate(pieces):
                axes = figure.add_subplot(grid[line, place])
                _map(axes, metric_RS[rows], scale)
                axes.set_yticks(range(len(rows)), [f"{rates[r]:g}" for r in rows])
                span = f"{rates[rows[0]]:g} to {rates[rows[-1]]:g}"
                what = f"{NAMES[str(rate(family))]} {span}"
                title(axes, shortened(", ".join(filter(None, (label, what))), 60), strong=True)
                if line + 1 == len(maps):
                    axes.set_xlabel("fine-tuning step")
        _bar(figure, grid, findings, float(np.nanmean(maps[0][2][:, 0])), scale)
        return export(figure, name, heading)


def parts(rates: list[float], usual: float | None) -> list[list[int]]:
    """Places of the rates of each map: coarse and fine ones apart where there are enough of both.

    The headline's rate is in the coarse map too, as a landmark.
    """
    coarse = [k for k, r in enumerate(rates) if r >= COARSE]
    fine = [k for k, r in enumerate(rates) if r <= COARSE]
    below = [k for k in fine if rates[k] < COARSE]
    if len(coarse) < FEWEST_EACH or len(below) < FEWEST_EACH:
        return [list(range(len(rates)))]
    landmark = [k for k in below if usual is not None and math.isclose(rates[k], usual)]
    return [landmark + coarse, fine]


def relative(metric_RS: np.ndarray) -> np.ndarray:
    """ln(before / metric): above 0 is better; NaN where it is not finite."""
    before = metric_RS[:, :1]
    known = np.isfinite(metric_RS) & (metric_RS > 0) & (before > 0)
    ratio_RS = np.divide(before, metric_RS, out=np.full(metric_RS.shape, np.nan), where=known)
    return np.log(ratio_RS)


@dataclass(frozen=True)
class Reach:
    """How far the colours go, as |ln(before / metric)|: `up` for better, `down` for worse."""

    up: float
    down: float
    clipped: bool = False  # whether a cell lies below `down`

    def scaled(self, gains: np.ndarray) -> np.ndarray:
        """`gains` in units of the reach on their side."""
        return np.where(gains > 0, gains / self.up, gains / self.down)


def reach(maps: Sequence[np.ndarray]) -> Reach:
    """Up to the best cell, and down to the worst or to a metric four times what it was."""
    every = np.concatenate([relative(m).ravel() for m in maps])
    finite = every[np.isfinite(every)]
    up = max(float(finite.max(initial=0.0)), LEAST_RANGE)
    worst = float(-finite.min(initial=0.0))
    down = min(max(worst, up), max(MOST_WORSE, up))
    return Reach(up, down, worst > down)


def _map(axes: Axes, metric_RS: np.ndarray, scale: Reach) -> None:
    gains_RS = relative(metric_RS)
    shown_RS = scale.scaled(gains_RS)
    show(axes, shown_RS)
    axes.invert_yaxis()  # the largest rate at the top
    for row, start, length in runs(shown_RS < -1 - 1e-9):
        axes.add_patch(Rectangle((start - 0.5, row - 0.5), length, 1, **HATCH))
    ring: dict[str, Any] = {"color": COLOR["ink"], "mfc": "none", "ms": 6.5, "mew": 1.2}
    for row, gains in enumerate(gains_RS):
        if np.isfinite(gains).any():
            axes.plot([int(np.nanargmax(gains))], [row], "o", **ring)
    linear_axis(axes, "x", integer=True)


def runs(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, first column, length) of every stretch of True."""
    found = []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        found += [(row, int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]
    return found


def _bar(figure: Figure, grid: Any, findings: Findings, before: float, scale: Reach) -> None:
    places = (-1.0, -0.5, 0.0, 0.5, 1.0)
    ends = [before * math.exp(-p * (scale.up if p > 0 else scale.down)) for p in places]
    labels = [number(v, 2) for v in ends]
    labels[0] = f"≥{labels[0]}" if scale.clipped else labels[0]
    labels[2] = f"before: {labels[2]}"
    axes = figure.add_subplot(grid[-1, :])
    note = "log scale; hatched: above it" if scale.clipped else "log scale"
    scale_bar(axes, places, labels, f"{findings.metric.name} ({note})")
