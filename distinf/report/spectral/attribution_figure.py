"""Which elements of a training sample drive its influence, as heat maps with their sums."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.report.formats import identifier, number, shortened
from distinf.report.maps import scale_bar, show
from distinf.report.spectral.findings import OPPOSITE, SELECTED, Attribution, Findings
from distinf.report.svg import COLOR, drawing, export, linear_axis, title

MOST_EACH = 4
CLIPPED_SHARE = 0.005  # of the elements, the largest: drawn in the full hue


def attribution_figure(findings: Findings, target: int, name: str, heading: str) -> str | None:
    """One target's pictured samples: helpful ones at the left, harmful ones at the right."""
    mine = [a for a in findings.attributions if a.target == target and np.any(_finite(a.parts_SF))]
    helpful = sorted((a for a in mine if a.rank > 0), key=lambda a: a.rank)[:MOST_EACH]
    harmful = sorted((a for a in mine if a.rank < 0), key=lambda a: -a.rank)[:MOST_EACH]
    sides = [side for side in (helpful, harmful) if side]
    if not sides:
        return None
    lines = max(len(side) for side in sides)
    with drawing(name, 0.85 + 2.05 * lines) as figure:
        grid = figure.add_gridspec(
            lines + 1, len(sides), height_ratios=[*[1.0] * lines, 0.055], wspace=0.14
        )
        for column, side in enumerate(sides):
            for line, shown in enumerate(side):
                last = line + 1 == len(side)
                _sample(figure, grid[line, column], shown, last)
        axes = figure.add_subplot(grid[-1, :])
        labels = ["harmful, full colour", "0", "helpful, full colour"]
        scale_bar(axes, (-0.86, 0.0, 0.86), labels, "an element's part of the score")
        return export(figure, name, heading)


def _finite(parts_SF: np.ndarray) -> np.ndarray:
    return parts_SF[np.isfinite(parts_SF)]


def _reach(parts_SF: np.ndarray) -> float:
    """The size that gets the full colour: of all but the largest few elements."""
    sizes = np.abs(_finite(parts_SF))
    return float(np.quantile(sizes, 1 - CLIPPED_SHARE)) or float(sizes.max())


def _sample(figure: Figure, place: Any, shown: Attribution, last: bool) -> None:
    parts_SF = np.atleast_2d(np.asarray(shown.parts_SF, dtype=np.float64))
    reach = _reach(parts_SF)
    inner = place.subgridspec(
        2, 2, height_ratios=[1, 2.4], width_ratios=[7, 1], hspace=0.04, wspace=0.03
    )
    axes = figure.add_subplot(inner[1, 0])
    show(axes, parts_SF / reach)
    above = figure.add_subplot(inner[0, 0], sharex=axes)
    beside = figure.add_subplot(inner[1, 1], sharey=axes)
    _sums(above, np.nansum(parts_SF, axis=0), across=True)
    _sums(beside, np.nansum(parts_SF, axis=1), across=False)
    linear_axis(axes, "x", integer=True)
    linear_axis(axes, "y", integer=True)
    axes.locator_params(axis="y", nbins=4)
    axes.set_ylabel(shortened(shown.axes[0], 20))
    if last:
        axes.set_xlabel(shortened(shown.axes[-1], 30))
    kind = SELECTED if shown.rank > 0 else OPPOSITE
    what = f"{kind} {abs(shown.rank)}: sample {identifier(shown.id)}, score {number(shown.score)}"
    title(above, f"{what}; full colour ±{number(reach, 2)}", strong=True)


def _sums(axes: Axes, sums: np.ndarray, across: bool) -> None:
    """Bars of the sums over the other axis, in the hues of the map."""
    places = np.arange(sums.size)
    for mask, color in ((sums > 0, "helpful"), (sums < 0, "harmful")):
        if across:
            height = np.where(mask, sums, 0.0)
            axes.fill_between(places, height, step="mid", color=COLOR[color], lw=0)
        else:
            width = np.where(mask, sums, 0.0)
            axes.fill_betweenx(places, width, step="mid", color=COLOR[color], lw=0)
    (axes.axhline if across else axes.axvline)(0, color=COLOR["muted"], lw=0.7)
    axes.grid(False)
    axes.tick_params(
        bottom=False, left=False, labelbottom=False, labelleft=False, right=False, top=False
    )
    axes.spines["bottom"].set_visible(False)
