"""Pictures of the metric along the axis: before and after tuning, and where the targets are.

Each function draws into a canvas and returns False where the findings do not hold its data.
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


def axis(findings: Findings, canvas: Figure) -> bool:
    """The metric against the axis: a panel per run and experiment, each over the change against
    before (Tuononen et al., Figure 4); a single one over the number of samples per bin."""
    every, single = panels(findings), findings.axis_curves
    if len(every) < 2:
        return single is not None and _one_axis(findings, single, canvas)
    runs = list(dict.fromkeys(run for run, *_ in every))[:MOST_COLUMNS]
    tried = list(dict.fromkeys(name for _, name, *_ in every))[: MOST_PANELS // len(runs)]
    found = {(run, name): (of, curves) for run, name, of, curves in every}
    letters, height, many = iter("abcdefghi"), 0.6 + 3.5 * len(tried), 2 * len(tried)
    shape: Any = {"sharex": True, "sharey": "row", "height_ratios": [3, 1.15] * len(tried)}
    axes = svg.panels(canvas, height, many, len(runs), **shape)
    for row, name in enumerate(tried):
        changes = [0.0]
        for column, run in enumerate(runs):
            above, below = axes[2 * row : 2 * row + 2, column]
            if (run, name) not in found:
                above.set_visible(False)
                below.set_visible(False)
                continue
            of, curves = found[run, name]
            _levels(above, findings, curves)
            changes += _changes(below, curves)
            label = [run_label(run, of)] if len(runs) > 1 else []
            what = ", ".join([f"({next(letters)}) {panel_label(of, name)}", *label])
            svg.title(above, shortened(what, 90), strong=True)
        if len(changes) > 1:
            margin = 0.08 * (max(changes) - min(changes)) or 1.0
            axes[2 * row + 1][0].set_ylim(min(changes) - margin, max(changes) + margin)
    for column in axes.T:
        lowest = [panel for panel in column if panel.get_visible()][-1]
        lowest.set_xlabel(shortened(findings.metric.axis or "axis", 60))
        lowest.tick_params(labelbottom=True)
    for row, line in enumerate(axes):
        first = next(panel for panel in line if panel.get_visible())
        first.set_ylabel("change [%]" if row % 2 else findings.metric.name)
        first.tick_params(labelleft=True)
    svg.legend(canvas, *axes.ravel(), columns=4)
    return True


def _one_axis(findings: Findings, curves: AxisCurves, canvas: Figure) -> bool:
    (axes,), (below,) = svg.panels(canvas, 4.6, 2, 1, sharex=True, height_ratios=[6, 1])
    _levels(axes, findings, curves, ms=3.6)
    svg.title(axes, f"{findings.metric.name}, mean of each bin")
    width = np.diff(curves.x).min() * 0.8 if len(curves.x) > 1 else 0.8
    below.bar(curves.x, curves.counts, width=width, color=svg.COLOR["soft"])
    below.grid(False)
    svg.linear_axis(below, "x")
    below.set_yticks([max(curves.counts)], [count(int(max(curves.counts)))])
    below.set_xlabel(shortened(findings.metric.axis or "axis", 60))
    svg.title(below, "samples per bin")
    svg.legend(canvas, axes)
    return True


def _levels(axes: Axes, findings: Findings, curves: AxisCurves, **style: Any) -> None:
    """A line per curve; with a style larger, and with markers."""
    every: list[float] = []
    for name, curve in curves.curves.items():
        y = np.array(curve, dtype=float)
        if findings.metric.log:
            y[~(y > 0)] = np.nan
        every += svg.finite(y).tolist()
        own: Any = {"marker": svg.MARKER.get(name)} if style else {}
        own |= {"ls": svg.DASH.get(name, "-"), "label": curve_label(findings, name)}
        width = (2.0 if name == SELECTED else 1.3) + 0.2 * bool(style)
        svg.line(axes, curves.x, y, svg.role(name), lw=width, **own, **style)
    svg.axis(axes, "y", every, findings.metric.log)


def curve_label(findings: Findings, name: str) -> str:
    """A curve's role in words: what the reference and the baseline are, and after which tuning."""
    if name in ("reference", "baseline"):
        return getattr(findings.metric, name) or name
    return "before fine-tuning" if name == "before" else f"after {name}"


def _changes(axes: Axes, curves: AxisCurves) -> list[float]:
    """Draw each tuned curve relative to before, in percent; the values that set the scale.

    The harmful selection's do not: where it diverged, it runs out of the picture.
    """
    before = np.array(curves.curves.get("before", ()), dtype=float)
    tuned = [n for n in curves.curves if n not in UNTUNED]
    scale: list[float] = []
    if not before.size:
        return scale
    for name in tuned:
        after, empty = np.array(curves.curves[name], dtype=float), np.full(before.size, np.nan)
        change = 100 * (np.divide(after, before, out=empty, where=before > 0) - 1)
        if name != OPPOSITE or tuned == [OPPOSITE]:
            scale += svg.finite(change).tolist()
        svg.line(axes, curves.x, change, svg.role(name), lw=1.8 if name == SELECTED else 1.3)
    svg.level(axes, 0, "muted", False, lw=0.9)
    svg.linear_axis(axes, "y")
    axes.locator_params(axis="y", nbins=3)
    svg.linear_axis(axes, "x")
    return scale


def targets(findings: Findings, canvas: Figure) -> bool:
    """Every evaluation sample's gap before, the targets ringed (Tuononen et al., Figure 2).

    Against the axis; and against the reference, where it is known.
    """
    points, metric = findings.evaluation, findings.metric
    if points is None or not np.isfinite(points.gap_E).any():
        return False
    shown = [side for side in (points.axis_E, points.reference_E) if side is not None]
    if not shown:
        return False
    chosen_E = np.isfinite(points.gap_E) & np.isin(points.ids_E, [t.id for t in findings.targets])
    panels = svg.panels(canvas, 3.5, 1, len(shown), sharey=True)[0]
    for axes, side in zip(panels, shown, strict=True):
        _gaps(axes, points.gap_E, points.eligible_E, chosen_E, side)
        svg.linear_axis(axes, "y")
        along = side is points.axis_E
        svg.axis(axes, "x", svg.finite(side).tolist(), metric.log and not along)
        if points.least_reference and not along:
            style: Any = {"ls": svg.DASH["reference"], "lw": 1.3}
            name = f"least {metric.name} of the reference"
            svg.level(axes, points.least_reference, "random", label=name, **style)
        name = metric.axis or "axis" if along else f"{metric.name} of the {metric.reference}"
        axes.set_xlabel(shortened(name, 60))
    gap = f"gap, relative to the {metric.reference}'s" if metric.reference else "before fine-tuning"
    svg.title(panels[0], f"{metric.name} {gap}")
    svg.legend(canvas, *panels)
    for axes, side in zip(panels, shown, strict=True):
        at = np.flatnonzero(chosen_E & np.isfinite(side))
        if 0 < at.size <= MOST_NAMED:
            names = [identifier(int(points.ids_E[k])) for k in at]
            name_points(canvas, axes, names, [(side[k], points.gap_E[k]) for k in at])
    return True


def _gaps(
    axes: Axes, gap_E: np.ndarray, eligible_E: np.ndarray | None, chosen_E: np.ndarray, x_E: Any
) -> None:
    finite_E = np.isfinite(gap_E)
    eligible_E = finite_E if eligible_E is None else finite_E & eligible_E
    if not eligible_E.any():
        eligible_E = finite_E
    shown_E = finite_E & (gap_E <= 1.12 * max(gap_E[eligible_E].max(), 1e-12))
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
