"""The metric against the axis, one panel per run and experiment (Tuononen et al., Fig. 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from distinf.report.formats import shortened
from distinf.report.spectral.families import run_label
from distinf.report.spectral.figures import curve_label, metric_scale
from distinf.report.spectral.findings import OPPOSITE, SELECTED, AxisCurves, Findings
from distinf.report.spectral.run_tables import ROLES, panel_label, panels
from distinf.report.svg import (
    COLOR,
    DASH,
    drawing,
    export,
    legend,
    linear_axis,
    role,
    title,
)

MOST_COLUMNS = 3
MOST_PANELS = 9


def axis_grid(findings: Findings, name: str, heading: str) -> str | None:
    """All curves, and below each panel the change against before; None with fewer than two."""
    every = panels(findings)
    runs = list(dict.fromkeys(run for run, *_ in every))[:MOST_COLUMNS]
    tried = list(dict.fromkeys(experiment for _, experiment, *_ in every))
    tried = tried[: MOST_PANELS // len(runs)] if runs else []
    if len(every) < 2:
        return None
    found = {(run, experiment): (of, curves) for run, experiment, of, curves in every}
    letters = iter("abcdefghi")
    with drawing(name, 0.6 + 3.5 * len(tried)) as figure:
        axes = figure.subplots(
            2 * len(tried), len(runs), sharex=True, squeeze=False, sharey="row",
            height_ratios=[3, 1.15] * len(tried),
        )  # fmt: skip
        for row, experiment in enumerate(tried):
            changes: list[float] = []
            for column, run in enumerate(runs):
                above, below = axes[2 * row][column], axes[2 * row + 1][column]
                if (run, experiment) not in found:
                    above.set_visible(False)
                    below.set_visible(False)
                    continue
                of, curves = found[run, experiment]
                _levels(above, findings, curves)
                changes += _changes(below, curves)
                what = f"({next(letters)}) {panel_label(of, experiment)}"
                label = run_label(run, of) if len(runs) > 1 else ""
                title(above, shortened(", ".join(filter(None, (what, label))), 90), strong=True)
            if changes:
                low, high = min([*changes, 0.0]), max([*changes, 0.0])
                margin = 0.08 * (high - low) or 1.0
                axes[2 * row + 1][0].set_ylim(low - margin, high + margin)
        _label(axes, findings)
        legend(figure, *axes.ravel(), columns=4)
        return export(figure, name, heading)


def _label(axes: Any, findings: Findings) -> None:
    """The axes' names, at the lowest and the leftmost panel that is there."""
    for column in axes.T:
        lowest = [panel for panel in column if panel.get_visible()][-1]
        lowest.set_xlabel(shortened(findings.metric.axis or "axis", 60))
        lowest.tick_params(labelbottom=True)
    for row, line in enumerate(axes):
        first = next(panel for panel in line if panel.get_visible())
        first.set_ylabel("change [%]" if row % 2 else findings.metric.name)
        first.tick_params(labelleft=True)


def _levels(axes: Axes, findings: Findings, curves: AxisCurves) -> None:
    every: list[float] = []
    for name, curve in curves.curves.items():
        y = np.array(curve, dtype=float)
        if findings.metric.log:
            y[~(y > 0)] = np.nan
        every += y[np.isfinite(y)].tolist()
        style: dict[str, Any] = {"color": COLOR[role(name)], "ls": DASH.get(name, "-")}
        style["lw"] = 2.0 if name == SELECTED else 1.3
        axes.plot(curves.x, y, label=curve_label(findings, name), **style)
    metric_scale(axes, findings, every)


def _changes(axes: Axes, curves: AxisCurves) -> list[float]:
    """Draw each tuned curve relative to before, in percent; the values that set the scale.

    The harmful selection's do not: where it diverged, it runs out of the picture.
    """
    before = np.array(curves.curves.get("before", ()), dtype=float)
    tuned = [n for n in curves.curves if n not in ROLES]
    scale: list[float] = []
    if not before.size:
        return scale
    for name in tuned:
        change = _percent(curves.curves[name], before)
        if name != OPPOSITE or tuned == [OPPOSITE]:
            scale += change[np.isfinite(change)].tolist()
        width = 1.8 if name == SELECTED else 1.3
        axes.plot(curves.x, change, color=COLOR[role(name)], lw=width)
    axes.axhline(0, color=COLOR["muted"], lw=0.9)
    linear_axis(axes, "y")
    axes.locator_params(axis="y", nbins=3)
    linear_axis(axes, "x")
    return scale


def _percent(curve: Sequence[float], before: np.ndarray) -> np.ndarray:
    after = np.array(curve, dtype=float)
    share = np.divide(after, before, out=np.full(before.size, np.nan), where=before > 0)
    return 100 * (share - 1)
