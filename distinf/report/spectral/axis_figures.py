"""Pictures of the metric along the axis: before and after tuning, and where the targets are.

Each function draws into a canvas, or nothing where the findings do not hold its data.
Shapes: E evaluation samples.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.report import svg
from distinf.report.fitting import name_points
from distinf.report.formats import count, identifier, shortened
from distinf.report.spectral.families import run_label
from distinf.report.spectral.findings import OPPOSITE, SELECTED, AxisCurves, Findings
from distinf.report.spectral.run_tables import panel_label, panels

UNTUNED = ("reference", "baseline", "before")
MOST_NAMED, MOST_POINTS, MOST_COLUMNS, MOST_PANELS = 8, 3_000, 3, 9


def axis(findings: Findings, canvas: Figure) -> None:
    """The metric against the axis: a panel per run and experiment, each over the change against
    before (Tuononen et al., Figure 4); at the bottom the number of samples per bin."""
    every = panels(findings)
    if not every:
        return
    runs = list(dict.fromkeys(name for name, *_ in every))[:MOST_COLUMNS]
    tried = list(dict.fromkeys(f.name for _, _, f in every))[: MOST_PANELS // len(runs)]
    many = 2 * len(tried)
    shape: Any = {"sharex": True, "sharey": "row", "height_ratios": [*[3, 1.15] * len(tried), 0.6]}
    axes = svg.panels(canvas, 1.4 + 3.5 * len(tried), many + 1, len(runs), **shape)
    for panel in axes.ravel():
        panel.set_visible(False)
    for name, run, family in every:
        curves = family.axis_curves
        if curves and name in runs and family.name in tried:
            column, row = runs.index(name), 2 * tried.index(family.name)
            label = [run_label(name, run)] if len(runs) > 1 else []
            title = shortened(", ".join([panel_label(run, family), *label]), 90)
            _levels(axes[row, column], findings, curves)
            svg.title(axes[row, column], title, strong=True)
            _changes(axes[row + 1, column], curves)
            _samples(axes[many, column], curves, shortened(findings.metric.axis or "axis", 60))
            for panel in axes[[row, row + 1, many], column]:
                panel.set_visible(True)
    for row, line in enumerate(axes):
        first = next(panel for panel in line if panel.get_visible())
        first.tick_params(labelleft=True)
        first.set_ylabel(findings.metric.name if row % 2 == 0 and row < many else "")
    svg.legend(canvas, *axes.ravel(), columns=4)


def _levels(axes: Axes, findings: Findings, curves: AxisCurves) -> None:
    """A line per curve."""
    every: list[float] = []
    for name, curve in curves.curves.items():
        y = np.array(curve, dtype=float)
        if findings.metric.log:
            y[~(y > 0)] = np.nan
        every += svg.finite(y).tolist()
        style: Any = {"ls": svg.DASH.get(name, "-"), "lw": 2.0 if name == SELECTED else 1.3}
        label = curve_label(findings, name)
        svg.line(axes, curves.x, y, svg.role(name), label=label, **style)
    svg.axis(axes, "y", every, findings.metric.log)


def curve_label(findings: Findings, name: str) -> str:
    """A curve's role in words: what the reference and the baseline are, and after which tuning."""
    if name in ("reference", "baseline"):
        return getattr(findings.metric, name) or name
    return "before fine-tuning" if name == "before" else f"after {name}"


def _changes(axes: Axes, curves: AxisCurves) -> None:
    """Each tuned curve relative to before; the harmful selection's does not set the scale."""
    before, scale = np.array(curves.curves.get("before", ()), dtype=float), [0.0]
    for name in (n for n in curves.curves if n not in UNTUNED and before.size):
        after, empty = np.array(curves.curves[name], dtype=float), np.full(before.size, np.nan)
        change = 100 * (np.divide(after, before, out=empty, where=before > 0) - 1)
        scale += svg.finite(change).tolist() if name != OPPOSITE else []
        svg.line(axes, curves.x, change, svg.role(name), lw=1.8 if name == SELECTED else 1.3)
    svg.level(axes, 0, "muted", False, lw=0.9)
    svg.linear_axis(axes, "y")
    axes.locator_params(axis="y", nbins=3)
    margin = 0.08 * (max(scale) - min(scale)) or 1.0
    axes.set_ylim(min(scale) - margin, max(scale) + margin)
    svg.title(axes, "change [%]")


def _samples(axes: Axes, curves: AxisCurves, label: str) -> None:
    most, width = max(curves.counts), np.diff(curves.x).min() * 0.8 if len(curves.x) > 1 else 0.8
    axes.bar(curves.x, curves.counts, width=width, color=svg.COLOR["soft"])
    axes.grid(False)
    axes.set_yticks([most], [count(int(most))])
    svg.linear_axis(axes, "x")
    axes.set_xlabel(label)
    svg.title(axes, "samples per bin")


def targets(findings: Findings, canvas: Figure) -> None:
    """Every evaluation sample's gap before, the targets ringed (Tuononen et al., Figure 2).

    Against the axis; and against the reference, where it is known.
    """
    points, metric = findings.evaluation, findings.metric
    if points is None or not np.isfinite(points.gap_E).any():
        return
    sides = {metric.axis or "axis": points.axis_E}
    sides[f"{metric.name} of the {metric.reference}"] = points.reference_E
    shown = {name: side for name, side in sides.items() if side is not None}
    if not shown:
        return
    chosen_E = np.isfinite(points.gap_E) & np.isin(points.ids_E, [t.id for t in findings.targets])
    every = svg.panels(canvas, 3.5, 1, len(shown), sharey=True)[0]
    for axes, (name, side) in zip(every, shown.items(), strict=True):
        along = side is points.axis_E
        _gaps(axes, points.gap_E, points.eligible_E, chosen_E, side)
        svg.linear_axis(axes, "y")
        svg.axis(axes, "x", svg.finite(side).tolist(), metric.log and not along)
        if points.least_reference and not along:
            label = f"least {metric.name} of the reference"
            style: Any = {"ls": svg.DASH["reference"], "lw": 1.3, "label": label}
            svg.level(axes, points.least_reference, "random", **style)
        axes.set_xlabel(shortened(name, 60))
    gap = f"gap, relative to the {metric.reference}'s" if metric.reference else "before fine-tuning"
    svg.title(every[0], f"{metric.name} {gap}")
    svg.legend(canvas, *every)
    for axes, side in zip(every, shown.values(), strict=True):
        at = np.flatnonzero(chosen_E & np.isfinite(side))
        if 0 < at.size <= MOST_NAMED:
            names = [identifier(int(points.ids_E[k])) for k in at]
            name_points(canvas, axes, names, [(side[k], points.gap_E[k]) for k in at])


def _gaps(
    axes: Axes, gap_E: np.ndarray, eligible_E: np.ndarray | None, chosen_E: np.ndarray, x_E: Any
) -> None:
    finite_E = np.isfinite(gap_E)
    eligible_E = finite_E if eligible_E is None else finite_E & eligible_E
    most = gap_E[eligible_E if eligible_E.any() else finite_E].max()
    shown_E = finite_E & (gap_E <= 1.12 * max(most, 1e-12))
    kinds = (~eligible_E, "soft", "not eligible"), (eligible_E & ~chosen_E, "accent", "eligible")
    for mask, color, label in kinds:
        at = np.flatnonzero(mask & shown_E)
        if at.size > MOST_POINTS:  # a page must stay small
            at = at[np.linspace(0, at.size - 1, MOST_POINTS).astype(np.int64)]
        if at.size:
            style = {"ms": 3, "mew": 0, "alpha": 0.6, "label": label}
            svg.line(axes, x_E[at], gap_E[at], color, "o", **style)
    ring: Any = {"mark": "none", "ms": 9, "mew": 1.8, "label": "target"}
    svg.line(axes, x_E[chosen_E], gap_E[chosen_E], "harmful", "o", **ring)
