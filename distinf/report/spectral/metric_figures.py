"""Pictures of the metric: per trial, over fine-tuning steps, along the axis, and at the targets.

Each function draws into a canvas and returns False where the findings do not hold its data.
Shapes: E evaluation samples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.numerics.bootstrap import differences
from distinf.report.fitting import name_points
from distinf.report.formats import count, identifier, number, rounded, shortened, signed
from distinf.report.rows import Row
from distinf.report.spectral.families import arm_label, arms, run_label, varied
from distinf.report.spectral.findings import (
    CONTROL,
    OPPOSITE,
    SELECTED,
    AxisCurves,
    Family,
    Findings,
    Outcome,
)
from distinf.report.spectral.tables import Tables, panel_label, panels
from distinf.report.spectral.trials import path, reductions
from distinf.report.svg import (
    COLOR,
    DASH,
    MARKER,
    UPDATE_DASH,
    finite,
    legend,
    linear_axis,
    log_axis,
    note,
    role,
    row_axis,
    title,
)

ASCENT = "ascent"
UNTUNED = ("reference", "baseline", "before")
MOST_TARGETS_SHOWN, MOST_NAMED, MOST_POINTS = 8, 8, 3_000
MOST_COLUMNS, MOST_PANELS, MOST_ROWS = 3, 9, 3
FAR_BELOW = 6.0  # a reference smaller by more would squeeze everything else
WIDE_RANGE = 8.0  # largest over smallest mean, from which a scale is logarithmic
DIAMOND: dict[str, Any] = {"ms": 7, "mec": COLOR["paper"], "mew": 1.2}


def gap(findings: Findings, rows: Tables, canvas: Figure) -> bool:
    """Gap reduction of every trial by selection; beside it helpful minus random per target."""
    groups, chosen = findings.by_selection(), findings.guided()
    closed = {s: np.array([o.gap_reduction_pct for o in mine]) for s, mine in groups.items()}
    if not any(np.isfinite(values).any() for values in closed.values()):
        return False
    order = {t.id: k for k, t in enumerate(findings.targets)}
    every = {o.target for group in groups.values() for o in group}
    targets = sorted(every, key=lambda i: (order.get(i, len(order)), i))
    pairs = differences(*(reductions(groups.get(s, [])) for s in (chosen, CONTROL)))
    apart = {i: [v for (_, (t, _)), v in pairs.items() if t == i] for i in targets}
    apart = {i: values for i, values in apart.items() if values}
    beside = 2 <= len(apart) <= MOST_TARGETS_SHOWN
    canvas.set_figheight(max(1.1 + 0.72 * len(groups), 1.2 + 0.34 * len(apart) * beside))
    ratios = [1.75, 1] if beside else [1]
    axes = canvas.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    limits = _shown_range(closed)
    for row, (name, group) in enumerate(groups.items()):
        lanes = np.array([targets.index(o.target) for o in group]) / max(1, len(targets) - 1)
        _strip(axes[0], name, closed[name], row, row + 0.04 - 0.3 * lanes, limits)
        _interval(axes[0], rows["summary"][row], row + 0.24, COLOR[role(name)], limits)
    row_axis(axes[0], [shortened(s) for s in groups])
    axes[0].set_xlim(*limits)
    title(axes[0], "gap closed per trial, and the mean with its 95 % interval [%]")
    if beside:
        _paired(axes[1], list(apart.values()))
        row_axis(axes[1], [f"target {identifier(i)}" for i in apart], (0.4, 0.6))
        title(axes[1], f"{chosen} − {CONTROL}, same seeds [points]")
    return True


def _shown_range(closed: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Limits that hold every selection but let a diverged one run over its edge."""
    known = {s: finite(values).tolist() for s, values in closed.items()}
    every = [v for values in known.values() for v in values]
    mains = [v for s in (SELECTED, CONTROL) for v in known.get(s, [])] or every
    low, high = min([*mains, 0.0]), max([*mains, 0.0])
    span = high - low
    for values in filter(None, known.values()):
        if low - span <= float(np.median(values)) <= high + span:
            low, high = max(min([*values, low]), low - span), min(max([*values, high]), high + span)
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def _strip(
    axes: Axes, name: str, values: np.ndarray, row: int, y: np.ndarray, limits: tuple[float, float]
) -> None:
    """A lane of dots per target; an arrow at an edge counts what lies beyond it."""
    (low, high), color = limits, COLOR[role(name)]
    inside, inset = (values >= low) & (values <= high), 0.012 * (high - low)
    marker = MARKER.get(name, "D")
    axes.plot(values[inside], y[inside], marker, color=color, ms=4.2, mew=0, alpha=0.5)
    for outside, x, arrow, dx in (
        (values < low, low + inset, "<", 8),
        (values > high, high - inset, ">", -8),
    ):
        if outside.any():
            axes.plot([x], [row - 0.1], arrow, color=color, ms=6)
            note(axes, f"{count(int(outside.sum()))} beyond", (x, row - 0.1), dx)


def _interval(axes: Axes, row: Row, y: float, color: str, limits: tuple[float, float]) -> None:
    """A diamond at the mean on the line of its interval, with the mean written beside it."""
    mean, low, high = (row[f"{k}_pct"] for k in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return
    if math.isfinite(low):
        axes.plot([low, high], [y, y], color=color, lw=2.6, solid_capstyle="butt")
    axes.plot([mean], [y], "D", color=color, **DIAMOND)
    ends = finite(np.array([mean, low, high]))
    at = min(max(float(ends.max()), limits[0]), limits[1])
    left = at > limits[0] + 0.9 * (limits[1] - limits[0])
    place = (max(float(ends.min()), limits[0]) if left else at, y)
    style = {"color": color, "va": "center_baseline", "fontweight": "bold"}
    note(axes, f"{rounded(mean)} %", place, -9 if left else 9, **style)


def _paired(axes: Axes, apart: Sequence[Sequence[float]]) -> None:
    """Differences of equal target and seed, a row per target; the means at the right."""
    color = COLOR["accent"]
    style: dict[str, Any] = {"fontweight": "bold", "annotation_clip": False}
    for row, values in enumerate(apart):
        axes.plot(values, [row] * len(values), "o", color=color, ms=4.2, mew=0, alpha=0.45)
        mean = float(np.mean(values))
        axes.plot([mean], [row], "D", color=color, **DIAMOND)
        place = ("axes fraction", "data")
        note(axes, signed(mean, 0), (1, row), 4, color=color, xycoords=place, **style)


def steps(findings: Findings, canvas: Figure) -> bool:
    """The targets' metric over fine-tuning steps: mean and one sd per selection."""
    groups = findings.by_selection()
    if max((len(o.metric_by_step) for g in groups.values() for o in g), default=0) < 2:
        return False
    axes = canvas.subplots()
    means: list[float] = []
    for name, group in groups.items():
        style = {"label": name, "marker": MARKER.get(name, "D"), "ms": 5}
        means += _band(axes, findings, group, 0.14, style)
    references = [t.reference for t in findings.targets if t.reference is not None]
    shown = _reference_line(axes, findings, references, means)
    _metric_axis(axes, findings, means + (references if shown else []))
    linear_axis(axes, "x", integer=True)
    axes.set_xlabel("fine-tuning step")
    title(axes, f"{findings.metric.name} of the targets")
    legend(canvas, axes)
    return True


def _band(
    axes: Axes, findings: Findings, group: Sequence[Outcome], alpha: float, style: dict[str, Any]
) -> list[float]:
    """Mean and one sd on each side -> the means; on a log scale the sd stops above zero."""
    rows = [r for r in path(group) if math.isfinite(r["mean"])]
    x, mean, sd = (np.array([r[k] for r in rows]) for k in ("step", "mean", "sd"))
    low = np.maximum(mean - sd, mean / 10) if findings.metric.log else mean - sd
    if rows:
        color = COLOR[role(group[0].selection)]
        axes.fill_between(x, low, mean + sd, color=color, alpha=alpha, lw=0)
        axes.plot(x, mean, color=color, **style)
    return mean.tolist()


def _reference_line(
    axes: Axes, findings: Findings, references: list[float], means: list[float]
) -> bool:
    """A dashed line at the mean reference; far below the rest, only its number at the edge."""
    if not references or not means:
        return False
    level, name = float(np.mean(references)), findings.metric.reference or "reference"
    color = COLOR["reference"]
    if level * FAR_BELOW >= min(means):
        axes.axhline(level, color=color, ls=DASH["reference"], lw=1.5, label=name)
        return True
    told, place = f"{shortened(name)}: {number(level)}, below the picture", "axes fraction"
    axes.annotate(told, (0.01, 0.02), xycoords=place, color=color, fontsize=8.5)
    return False


def _metric_axis(axes: Axes, findings: Findings, values: list[float], which: str = "y") -> None:
    """Logarithmic where the metric asks for it."""
    if findings.metric.log:
        log_axis(axes, which, values)
    else:
        linear_axis(axes, which)


def updates(findings: Findings, family: Family, canvas: Figure) -> None:
    """A panel per guided selection, random in each; a row per value of whatever else is varied.

    Tuononen et al., Figure 3.
    """
    names = [n for n in varied(family) if n not in ("update", "selection")]
    lines: dict[str, list[list[Outcome]]] = {}
    for group in arms(family).values():
        lines.setdefault(arm_label(names, group[0]) if names else "", []).append(group)
    guided = {o.selection for o in family.outcomes} - {CONTROL}
    order = [s for s in (SELECTED, OPPOSITE) if s in guided]
    columns = order + sorted(guided - set(order)) or [CONTROL]
    shown = list(lines.items())[:MOST_ROWS]
    canvas.set_figheight(0.75 + 2.75 * len(shown))
    every = canvas.subplots(len(shown), len(columns), squeeze=False)
    for (label, groups), line in zip(shown, every, strict=True):
        for letter, selection, axes in zip("abcdefgh", columns, line, strict=False):
            _panel(axes, findings, panel_arms(groups, selection))
            what = f"({letter}) {selection} {findings.headline.noun}"
            title(axes, ", ".join(filter(None, (what, label))), strong=True)
    for axes in every[-1]:
        axes.set_xlabel("fine-tuning step")
    every[0][0].set_ylabel(f"{findings.metric.name} of the targets")
    legend(canvas, *every.ravel(), columns=4, most=36)


def panel_arms(groups: Sequence[list[Outcome]], selection: str) -> list[list[Outcome]]:
    """The arms of a selection and random's; ascent only where it is meant, on harmful samples."""
    mine = [g for g in groups if g[0].selection in (selection, CONTROL)]
    descents = [g for g in mine if g[0].update != ASCENT]
    return mine if selection == OPPOSITE else descents or mine


def _panel(axes: Axes, findings: Findings, groups: Sequence[list[Outcome]]) -> None:
    means: list[float] = []
    steady: list[float] = []
    for group in groups:
        update = group[0].update
        label, dash = f"{group[0].selection}, {update}", UPDATE_DASH.get(update, "-")
        found = _band(axes, findings, group, 0.12, {"ls": dash, "label": label})
        means += found
        steady += found if update != ASCENT else []
    touched = {o.target for g in groups for o in g}
    of = [t.reference for t in findings.targets if t.id in touched and t.reference is not None]
    if _reference_line(axes, findings, of, means):
        means.append(float(np.mean(of)))
    wide = bool(means) and (findings.metric.log or max(means) > WIDE_RANGE * min(means))
    if wide and min(means) > 0:
        log_axis(axes, "y", means)
    else:
        linear_axis(axes, "y")
        if steady and max(means) > 2 * max(steady):
            axes.set_ylim(top=1.5 * max(steady))  # ascent runs out of the picture
    linear_axis(axes, "x", integer=True)


def axis(findings: Findings, canvas: Figure) -> bool:
    """The metric against the axis: a panel per run and experiment, each over the change against
    before (Tuononen et al., Figure 4); a single one over the number of samples per bin."""
    every, single = panels(findings), findings.axis_curves
    if len(every) < 2:
        return single is not None and _one_axis(canvas, findings, single)
    runs = list(dict.fromkeys(run for run, *_ in every))[:MOST_COLUMNS]
    tried = list(dict.fromkeys(name for _, name, *_ in every))[: MOST_PANELS // len(runs)]
    found = {(run, name): (of, curves) for run, name, of, curves in every}
    letters = iter("abcdefghi")
    canvas.set_figheight(0.6 + 3.5 * len(tried))
    shape: dict[str, Any] = {"sharex": True, "squeeze": False, "sharey": "row"}
    shape["height_ratios"] = [3, 1.15] * len(tried)
    axes = canvas.subplots(2 * len(tried), len(runs), **shape)
    for row, name in enumerate(tried):
        changes = [0.0]
        for column, run in enumerate(runs):
            above, below = axes[2 * row][column], axes[2 * row + 1][column]
            above.set_visible((run, name) in found)
            below.set_visible((run, name) in found)
            if (run, name) in found:
                of, curves = found[run, name]
                _levels(above, findings, curves, {})
                changes += _changes(below, curves)
                label = [run_label(run, of)] if len(runs) > 1 else []
                what = ", ".join([f"({next(letters)}) {panel_label(of, name)}", *label])
                title(above, shortened(what, 90), strong=True)
        if len(changes) > 1:
            margin = 0.08 * (max(changes) - min(changes)) or 1.0
            axes[2 * row + 1][0].set_ylim(min(changes) - margin, max(changes) + margin)
    _name_outer(axes, findings)
    legend(canvas, *axes.ravel(), columns=4)
    return True


def _one_axis(canvas: Figure, findings: Findings, curves: AxisCurves) -> bool:
    canvas.set_figheight(4.6)
    axes, below = canvas.subplots(2, 1, sharex=True, height_ratios=[6, 1])
    _levels(axes, findings, curves, {"ms": 3.6})
    title(axes, f"{findings.metric.name}, mean of each bin")
    width = np.diff(curves.x).min() * 0.8 if len(curves.x) > 1 else 0.8
    below.bar(curves.x, curves.counts, width=width, color=COLOR["soft"])
    below.grid(False)
    linear_axis(below, "x")
    below.set_yticks([max(curves.counts)], [count(int(max(curves.counts)))])
    below.set_xlabel(shortened(findings.metric.axis or "axis", 60))
    title(below, "samples per bin")
    legend(canvas, axes)
    return True


def _name_outer(axes: Any, findings: Findings) -> None:
    """The axes' names, at the lowest and the leftmost panel that is there."""
    for column in axes.T:
        lowest = [panel for panel in column if panel.get_visible()][-1]
        lowest.set_xlabel(shortened(findings.metric.axis or "axis", 60))
        lowest.tick_params(labelbottom=True)
    for row, line in enumerate(axes):
        first = next(panel for panel in line if panel.get_visible())
        first.set_ylabel("change [%]" if row % 2 else findings.metric.name)
        first.tick_params(labelleft=True)


def _levels(axes: Axes, findings: Findings, curves: AxisCurves, style: dict[str, Any]) -> None:
    """A line per receiver; with `style` larger, and with markers."""
    every: list[float] = []
    for name, curve in curves.curves.items():
        y = np.array(curve, dtype=float)
        if findings.metric.log:
            y[~(y > 0)] = np.nan
        every += finite(y).tolist()
        own: dict[str, Any] = {"color": COLOR[role(name)], "ls": DASH.get(name, "-")}
        own |= {"marker": MARKER.get(name)} if style else {}
        own["lw"] = (2.0 if name == SELECTED else 1.3) + 0.2 * bool(style)
        axes.plot(curves.x, y, label=receiver(findings, name), **style, **own)
    _metric_axis(axes, findings, every)


def receiver(findings: Findings, name: str) -> str:
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
            scale += finite(change).tolist()
        axes.plot(curves.x, change, color=COLOR[role(name)], lw=1.8 if name == SELECTED else 1.3)
    axes.axhline(0, color=COLOR["muted"], lw=0.9)
    linear_axis(axes, "y")
    axes.locator_params(axis="y", nbins=3)
    linear_axis(axes, "x")
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
    panels = canvas.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, side in zip(panels, shown, strict=True):
        _gaps(axes, points.gap_E, points.eligible_E, chosen_E, side)
        linear_axis(axes, "y")
        if side is points.axis_E:
            linear_axis(axes, "x")
            axes.set_xlabel(shortened(metric.axis or "axis", 60))
            continue
        _metric_axis(axes, findings, finite(side).tolist(), "x")
        if points.least_reference:
            style: dict[str, Any] = {"color": COLOR["random"], "ls": DASH["reference"], "lw": 1.3}
            name = f"least {metric.name} of the reference"
            axes.axvline(points.least_reference, label=name, **style)
        axes.set_xlabel(shortened(f"{metric.name} of the {metric.reference}", 60))
    gap = f"gap, relative to the {metric.reference}'s" if metric.reference else "before fine-tuning"
    title(panels[0], f"{metric.name} {gap}")
    legend(canvas, *panels)
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
    for mask, color, label in (
        (~eligible_E, "soft", "not eligible"),
        (eligible_E & ~chosen_E, "accent", "eligible"),
    ):
        at = np.flatnonzero(mask & shown_E)
        if at.size > MOST_POINTS:  # a page must stay small
            at = at[np.linspace(0, at.size - 1, MOST_POINTS).astype(np.int64)]
        style: dict[str, Any] = {"color": COLOR[color], "ms": 3, "mew": 0, "alpha": 0.6}
        if at.size:
            axes.plot(x_E[at], gap_E[at], "o", label=label, **style)
    ring: dict[str, Any] = {"color": COLOR["harmful"], "mfc": "none", "ms": 9, "mew": 1.8}
    axes.plot(x_E[chosen_E], gap_E[chosen_E], "o", label="target", **ring)
