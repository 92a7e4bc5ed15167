"""Pictures of the metric: over fine-tuning steps, along the axis, and where the targets are.

Each function returns an inline <svg>, or None where the findings do not hold its data.
Shapes: E evaluation samples.
"""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.report.fitting import name_points
from distinf.report.formats import count, identifier, number, shortened
from distinf.report.spectral.captions import titles
from distinf.report.spectral.findings import SELECTED, EvaluationPoints, Findings
from distinf.report.spectral.headline_tables import steps
from distinf.report.svg import (
    COLOR,
    DASH,
    MARKER,
    drawing,
    export,
    legend,
    linear_axis,
    log_axis,
    role,
    title,
)

MOST_NAMED = 8
MOST_POINTS = 3_000
FAR_BELOW = 6.0  # a reference smaller by more would squeeze everything else


def steps_figure(findings: Findings) -> str | None:
    """The targets' metric over fine-tuning steps: mean and one sd per selection."""
    rows = [r for r in steps(findings) if math.isfinite(r["mean"])]
    if max((r["step"] for r in rows), default=0) == 0:
        return None
    metric = findings.metric
    references = [t.reference for t in findings.targets if t.reference is not None]
    with drawing("steps", 3.5) as figure:
        axes = figure.subplots()
        for selection in findings.selections():
            mine = [r for r in rows if r["selection"] == selection]
            _band(axes, mine, selection, metric.log)
        means = [r["mean"] for r in rows]
        level = [float(np.mean(references))] if references else []
        shown = reference_line(axes, level, means, metric.reference or "reference")
        metric_scale(axes, findings, means + (references if shown else []))
        linear_axis(axes, "x", integer=True)
        axes.set_xlabel("fine-tuning step")
        title(axes, f"{metric.name} of the targets")
        legend(figure, axes)
        return export(figure, "steps", titles(findings)["steps"])


def reference_line(axes: Axes, level: list[float], means: list[float], name: str) -> bool:
    """A dashed line at the reference; far below the rest, only its number at the lower edge."""
    if not level or not means:
        return False
    if level[0] * FAR_BELOW >= min(means):
        axes.axhline(level[0], color=COLOR["reference"], ls=DASH["reference"], lw=1.5, label=name)
        return True
    axes.annotate(
        f"{shortened(name)}: {number(level[0])}, below the picture",
        (0.01, 0.02),
        xycoords="axes fraction",
        color=COLOR["reference"],
        fontsize=8.5,
    )
    return False


def _band(axes: Axes, rows: list[dict[str, Any]], selection: str, log: bool) -> None:
    """Mean and one sd on each side; on a log scale the lower side stops above zero."""
    x, mean, sd = (np.array([r[k] for r in rows]) for k in ("step", "mean", "sd"))
    low = np.maximum(mean - sd, mean / 10) if log else mean - sd
    color, marker = COLOR[role(selection)], MARKER.get(selection, "D")
    axes.fill_between(x, low, mean + sd, color=color, alpha=0.14, lw=0)
    axes.plot(x, mean, color=color, marker=marker, ms=5, label=selection)


def axis_figure(findings: Findings) -> str | None:
    """The metric against the axis, per model or receiver, over the number of samples per bin."""
    curves = findings.axis_curves
    if curves is None or not len(curves.x):
        return None
    metric = findings.metric
    with drawing("axis", 4.6) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
        every: list[float] = []
        for name, curve in curves.curves.items():
            y = np.array(curve, dtype=float)
            if metric.log:
                y[~(y > 0)] = np.nan
            every += y[np.isfinite(y)].tolist()
            style: dict[str, Any] = {"color": COLOR[role(name)], "ls": DASH.get(name, "-")}
            style |= {"marker": MARKER.get(name), "lw": 2.2 if name == SELECTED else 1.5}
            axes.plot(curves.x, y, ms=3.6, label=curve_label(findings, name), **style)
        metric_scale(axes, findings, every)
        title(axes, f"{metric.name}, mean of each bin")
        width = np.diff(curves.x).min() * 0.8 if len(curves.x) > 1 else 0.8
        below.bar(curves.x, curves.counts, width=width, color=COLOR["soft"])
        below.grid(False)
        linear_axis(below, "x")
        below.set_yticks([max(curves.counts)], [count(int(max(curves.counts)))])
        below.set_xlabel(shortened(metric.axis or "axis", 60))
        title(below, "samples per bin")
        legend(figure, axes)
        return export(figure, "axis", titles(findings)["axis"])


def curve_label(findings: Findings, name: str) -> str:
    """A curve's role in words: what the reference and the baseline are, and after which tuning."""
    metric = findings.metric
    if name in ("reference", "baseline"):
        return getattr(metric, name) or name
    return "before fine-tuning" if name == "before" else f"after {name}"


def metric_scale(axes: Axes, findings: Findings, values: list[float]) -> None:
    """The metric on the y axis: logarithmic where it asks for it."""
    if findings.metric.log:
        log_axis(axes, "y", values)
    else:
        linear_axis(axes, "y")


def targets_figure(findings: Findings) -> str | None:
    """Every evaluation sample's gap before, the targets ringed (Tuononen et al., Fig. 2).

    Against the axis; and against the reference, where it is known.
    """
    points = findings.evaluation
    if points is None or not np.isfinite(points.gap_E).any():
        return None
    sides = [points.axis_E, points.reference_E]
    if all(side is None for side in sides):
        return None
    with drawing("targets", 3.5) as figure:
        shown = [side for side in sides if side is not None]
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, side in zip(panels, shown, strict=True):
            _gaps(axes, findings, points, side)
            linear_axis(axes, "y")
            if side is points.axis_E:
                linear_axis(axes, "x")
                axes.set_xlabel(shortened(findings.metric.axis or "axis", 60))
            else:
                _reference_axis(axes, findings, points, side)
        title(panels[0], gap_label(findings))
        legend(figure, *panels)
        for axes, side in zip(panels, shown, strict=True):
            _name_targets(figure, axes, findings, points, side)
        return export(figure, "targets", titles(findings)["targets"])


def _gaps(axes: Axes, findings: Findings, points: EvaluationPoints, x_E: np.ndarray) -> None:
    finite_E = np.isfinite(points.gap_E)
    eligible_E = finite_E if points.eligible_E is None else finite_E & points.eligible_E
    if not eligible_E.any():
        eligible_E = finite_E
    chosen_E = np.isin(points.ids_E, [t.id for t in findings.targets])
    shown_E = finite_E & (points.gap_E <= 1.12 * max(points.gap_E[eligible_E].max(), 1e-12))
    for mask, color, label in (
        (~eligible_E, "soft", "not eligible"),
        (eligible_E & ~chosen_E, "accent", "eligible"),
    ):
        at = thinned(np.flatnonzero(mask & shown_E))
        style: dict[str, Any] = {"color": COLOR[color], "ms": 3, "mew": 0, "alpha": 0.6}
        if at.size:
            axes.plot(x_E[at], points.gap_E[at], "o", label=label, **style)
    at = np.flatnonzero(chosen_E & finite_E)
    ring: dict[str, Any] = {"color": COLOR["harmful"], "mfc": "none", "ms": 9, "mew": 1.8}
    axes.plot(x_E[at], points.gap_E[at], "o", label="target", **ring)


def _name_targets(
    figure: Figure, axes: Axes, findings: Findings, points: EvaluationPoints, x_E: np.ndarray
) -> None:
    chosen_E = np.isin(points.ids_E, [t.id for t in findings.targets])
    at = np.flatnonzero(chosen_E & np.isfinite(points.gap_E) & np.isfinite(x_E))
    if 0 < at.size <= MOST_NAMED:
        names = [identifier(int(points.ids_E[k])) for k in at]
        name_points(figure, axes, names, [(x_E[k], points.gap_E[k]) for k in at])


def _reference_axis(
    axes: Axes, findings: Findings, points: EvaluationPoints, reference_E: np.ndarray
) -> None:
    """The reference on a log scale where it can be, with the least that a target may have."""
    if findings.metric.log:
        log_axis(axes, "x", reference_E[np.isfinite(reference_E)].tolist())
    else:
        linear_axis(axes, "x")
    if points.least_reference:
        name = f"least {findings.metric.name} of the reference"
        style: dict[str, Any] = {"color": COLOR["random"], "ls": DASH["reference"], "lw": 1.3}
        axes.axvline(points.least_reference, label=name, **style)
    axes.set_xlabel(shortened(f"{findings.metric.name} of the {findings.metric.reference}", 60))


def gap_label(findings: Findings) -> str:
    """What the gap is, for an axis."""
    metric = findings.metric
    if metric.reference is None:
        return f"{metric.name} before fine-tuning"
    return f"{metric.name} gap, relative to the {metric.reference}'s"


def thinned(at: np.ndarray) -> np.ndarray:
    """At most MOST_POINTS of the indices, evenly spaced: a page must stay small."""
    if at.size <= MOST_POINTS:
        return at
    return at[np.linspace(0, at.size - 1, MOST_POINTS).astype(np.int64)]
