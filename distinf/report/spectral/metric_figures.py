"""Pictures of the metric: per trial, over fine-tuning steps, along the axis, and at the targets.

Each function draws into a canvas and returns False where the findings do not hold its data.
Shapes: E evaluation samples.
"""

import math
from collections.abc import Sequence
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
    EvaluationPoints,
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
    legend,
    linear_axis,
    log_axis,
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
    every = [o for group in groups.values() for o in group]
    if not any(math.isfinite(o.gap_reduction_pct) for o in every):
        return False
    order = {t.id: k for k, t in enumerate(findings.targets)}
    targets = sorted({o.target for o in every}, key=lambda i: (order.get(i, len(order)), i))
    pairs = differences(reductions(groups.get(chosen, [])), reductions(groups.get(CONTROL, [])))
    apart = {i: np.array([v for (_, (t, _)), v in pairs.items() if t == i]) for i in targets}
    apart = {i: values for i, values in apart.items() if values.size}
    beside = 2 <= len(apart) <= MOST_TARGETS_SHOWN
    canvas.set_figheight(max(1.1 + 0.72 * len(groups), 1.2 + 0.34 * len(apart) * beside))
    ratios = [1.75, 1] if beside else [1]
    axes = canvas.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
    limits = _shown_range(groups)
    for row, (selection, group) in enumerate(groups.items()):
        _strip(axes[0], row, selection, group, targets, limits)
        _interval(axes[0], rows["summary"][row], row + 0.24, COLOR[role(selection)], limits)
    row_axis(axes[0], [shortened(s) for s in groups])
    axes[0].set_xlim(*limits)
    title(axes[0], "gap closed per trial, and the mean with its 95 % interval [%]")
    if beside:
        _paired(axes[1], apart)
        title(axes[1], f"{chosen} − {CONTROL}, same seeds [points]")
    return True


def _shown_range(groups: dict[str, list[Outcome]]) -> tuple[float, float]:
    """Limits that hold every selection but let a diverged one run over its edge."""
    finite = {
        s: [o.gap_reduction_pct for o in group if math.isfinite(o.gap_reduction_pct)]
        for s, group in groups.items()
    }
    every = [v for values in finite.values() for v in values]
    mains = [v for s in (SELECTED, CONTROL) for v in finite.get(s, [])] or every
    low, high = min([*mains, 0.0]), max([*mains, 0.0])
    span = high - low
    for values in filter(None, finite.values()):
        if low - span <= float(np.median(values)) <= high + span:
            low, high = max(min([*values, low]), low - span), min(max([*values, high]), high + span)
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def _strip(
    axes: Axes,
    row: int,
    selection: str,
    group: list[Outcome],
    targets: list[int],
    limits: tuple[float, float],
) -> None:
    """A lane of dots per target; an arrow at an edge counts what lies beyond it."""
    (low, high), color = limits, COLOR[role(selection)]
    values = np.array([o.gap_reduction_pct for o in group], dtype=float)
    lanes = np.array([targets.index(o.target) for o in group], dtype=float)
    y = row + 0.04 - 0.3 * lanes / max(1, len(targets) - 1)
    inside = (values >= low) & (values <= high)
    marker = MARKER.get(selection, "D")
    axes.plot(values[inside], y[inside], marker, color=color, ms=4.2, mew=0, alpha=0.5)
    inset = 0.012 * (high - low)
    for outside, x, arrow, side in (
        (values < low, low + inset, "<", "left"),
        (values > high, high - inset, ">", "right"),
    ):
        if outside.any():
            axes.plot([x], [row - 0.1], arrow, color=color, ms=6)
            place: dict[str, Any] = {"textcoords": "offset points", "ha": side, "va": "center"}
            note = f"{count(int(outside.sum()))} beyond"
            axes.annotate(note, (x, row - 0.1), (8 if side == "left" else -8, 0), **place)


def _interval(axes: Axes, row: Row, y: float, color: str, limits: tuple[float, float]) -> None:
    """A diamond at the mean on the line of its interval, with the mean written beside it."""
    mean, known = row["mean_pct"], math.isfinite(row["low_pct"])
    if not math.isfinite(mean):
        return
    low, high = (row["low_pct"], row["high_pct"]) if known else (mean, mean)
    if known:
        axes.plot([low, high], [y, y], color=color, lw=2.6, solid_capstyle="butt")
    axes.plot([mean], [y], "D", color=color, **DIAMOND)
    at = min(max(mean, high, limits[0]), limits[1])
    left = at > limits[0] + 0.9 * (limits[1] - limits[0])
    axes.annotate(
        f"{rounded(mean)} %",
        (max(min(mean, low), limits[0]) if left else at, y),
        (-9 if left else 9, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center_baseline",
        color=color,
        fontweight="bold",
    )


def _paired(axes: Axes, apart: dict[int, np.ndarray]) -> None:
    """Differences of equal target and seed, a row per target; the means at the right."""
    color = COLOR["accent"]
    for row, values in enumerate(apart.values()):
        axes.plot(values, np.full(values.size, row), "o", color=color, ms=4.2, mew=0, alpha=0.45)
        mean = float(values.mean())
        axes.plot([mean], [row], "D", color=color, **DIAMOND)
        axes.annotate(
            signed(mean, 0),
            (1, row),
            (4, 0),
            xycoords=("axes fraction", "data"),
            va="center",
            textcoords="offset points",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )
    row_axis(axes, [f"target {identifier(i)}" for i in apart], (0.4, 0.6))


def steps(findings: Findings, rows: Tables, canvas: Figure) -> bool:
    """The targets' metric over fine-tuning steps: mean and one sd per selection."""
    known = [r for r in rows["steps"] if math.isfinite(r["mean"])]
    if max((r["step"] for r in known), default=0) == 0:
        return False
    metric, axes = findings.metric, canvas.subplots()
    for name in findings.by_selection():
        mine = [r for r in known if r["selection"] == name]
        _band(axes, mine, metric.log, role(name), 0.14, label=name, marker=MARKER.get(name, "D"))
    means = [r["mean"] for r in known]
    references = [t.reference for t in findings.targets if t.reference is not None]
    shown = _reference_line(axes, findings, references, means)
    _metric_axis(axes, findings, means + (references if shown else []))
    linear_axis(axes, "x", integer=True)
    axes.set_xlabel("fine-tuning step")
    title(axes, f"{metric.name} of the targets")
    legend(canvas, axes)
    return True


def _band(axes: Axes, rows: list[Row], log: bool, color: str, alpha: float, **style: Any) -> None:
    """Mean and one sd on each side; on a log scale the lower side stops above zero."""
    x, mean, sd = (np.array([r[k] for r in rows]) for k in ("step", "mean", "sd"))
    low = np.maximum(mean - sd, mean / 10) if log else mean - sd
    axes.fill_between(x, low, mean + sd, color=COLOR[color], alpha=alpha, lw=0)
    axes.plot(x, mean, color=COLOR[color], ms=5, **style)


def _reference_line(
    axes: Axes, findings: Findings, references: list[float], means: list[float]
) -> bool:
    """A dashed line at the mean reference; far below the rest, only its number at the edge."""
    if not references or not means:
        return False
    level, name = float(np.mean(references)), findings.metric.reference or "reference"
    if level * FAR_BELOW >= min(means):
        axes.axhline(level, color=COLOR["reference"], ls=DASH["reference"], lw=1.5, label=name)
        return True
    axes.annotate(
        f"{shortened(name)}: {number(level)}, below the picture",
        (0.01, 0.02),
        xycoords="axes fraction",
        color=COLOR["reference"],
        fontsize=8.5,
    )
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
    log = findings.metric.log
    for group in groups:
        rows, first = [r for r in path(group) if math.isfinite(r["mean"])], group[0]
        if rows:
            label, dash = f"{first.selection}, {first.update}", UPDATE_DASH.get(first.update, "-")
            _band(axes, rows, log, role(first.selection), 0.12, ls=dash, label=label)
            means += [r["mean"] for r in rows]
            steady += [r["mean"] for r in rows if first.update != ASCENT]
    touched = {o.target for g in groups for o in g}
    of = [t.reference for t in findings.targets if t.id in touched and t.reference is not None]
    if _reference_line(axes, findings, of, means):
        means.append(float(np.mean(of)))
    positive = bool(means) and min(means) > 0
    if positive and (log or max(means) > WIDE_RANGE * min(means)):
        log_axis(axes, "y", means)
    else:
        linear_axis(axes, "y")
        if steady and means and max(means) > 2 * max(steady):
            axes.set_ylim(top=1.5 * max(steady))  # ascent runs out of the picture
    linear_axis(axes, "x", integer=True)


def axis(findings: Findings, canvas: Figure) -> bool:
    """The metric against the axis: a panel per run and experiment, each over the change against
    before (Tuononen et al., Figure 4); a single one over the number of samples per bin."""
    every = panels(findings)
    if len(every) < 2:
        curves = findings.axis_curves
        if curves is None or not len(curves.x):
            return False
        _one_axis(canvas, findings, curves)
        return True
    runs = list(dict.fromkeys(run for run, *_ in every))[:MOST_COLUMNS]
    tried = list(dict.fromkeys(name for _, name, *_ in every))[: MOST_PANELS // len(runs)]
    found = {(run, name): (of, curves) for run, name, of, curves in every}
    letters = iter("abcdefghi")
    canvas.set_figheight(0.6 + 3.5 * len(tried))
    axes = canvas.subplots(
        2 * len(tried), len(runs), sharex=True, squeeze=False, sharey="row",
        height_ratios=[3, 1.15] * len(tried),
    )  # fmt: skip
    for row, name in enumerate(tried):
        changes = [0.0]
        for column, run in enumerate(runs):
            above, below = axes[2 * row][column], axes[2 * row + 1][column]
            if (run, name) not in found:
                above.set_visible(False)
                below.set_visible(False)
                continue
            of, curves = found[run, name]
            _levels(above, findings, curves, {}, 2.0, 1.3)
            changes += _changes(below, curves)
            what = f"({next(letters)}) {panel_label(of, name)}"
            label = run_label(run, of) if len(runs) > 1 else ""
            title(above, shortened(", ".join(filter(None, (what, label))), 90), strong=True)
        if len(changes) > 1:
            margin = 0.08 * (max(changes) - min(changes)) or 1.0
            axes[2 * row + 1][0].set_ylim(min(changes) - margin, max(changes) + margin)
    _name_outer(axes, findings)
    legend(canvas, *axes.ravel(), columns=4)
    return True


def _one_axis(canvas: Figure, findings: Findings, curves: AxisCurves) -> None:
    canvas.set_figheight(4.6)
    axes, below = canvas.subplots(2, 1, sharex=True, height_ratios=[6, 1])
    _levels(axes, findings, curves, {"ms": 3.6}, 2.2, 1.5)
    title(axes, f"{findings.metric.name}, mean of each bin")
    width = np.diff(curves.x).min() * 0.8 if len(curves.x) > 1 else 0.8
    below.bar(curves.x, curves.counts, width=width, color=COLOR["soft"])
    below.grid(False)
    linear_axis(below, "x")
    below.set_yticks([max(curves.counts)], [count(int(max(curves.counts)))])
    below.set_xlabel(shortened(findings.metric.axis or "axis", 60))
    title(below, "samples per bin")
    legend(canvas, axes)


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


def _levels(
    axes: Axes,
    findings: Findings,
    curves: AxisCurves,
    style: dict[str, Any],
    strong: float,
    thin: float,
) -> None:
    """A line per receiver; `style` with "ms" has markers."""
    every: list[float] = []
    for name, curve in curves.curves.items():
        y = np.array(curve, dtype=float)
        if findings.metric.log:
            y[~(y > 0)] = np.nan
        every += y[np.isfinite(y)].tolist()
        own: dict[str, Any] = {"color": COLOR[role(name)], "ls": DASH.get(name, "-")}
        own |= {"marker": MARKER.get(name)} if style else {}
        own["lw"] = strong if name == SELECTED else thin
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
    for name in tuned if before.size else ():
        after = np.array(curves.curves[name], dtype=float)
        share = np.divide(after, before, out=np.full(before.size, np.nan), where=before > 0)
        change = 100 * (share - 1)
        if name != OPPOSITE or tuned == [OPPOSITE]:
            scale += change[np.isfinite(change)].tolist()
        axes.plot(curves.x, change, color=COLOR[role(name)], lw=1.8 if name == SELECTED else 1.3)
    if before.size:
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
    sides = [] if points is None else [points.axis_E, points.reference_E]
    shown = [side for side in sides if side is not None]
    if points is None or not shown or not np.isfinite(points.gap_E).any():
        return False
    panels = canvas.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, side in zip(panels, shown, strict=True):
        _gaps(axes, findings, points, side)
        linear_axis(axes, "y")
        if side is points.axis_E:
            linear_axis(axes, "x")
            axes.set_xlabel(shortened(metric.axis or "axis", 60))
            continue
        _metric_axis(axes, findings, side[np.isfinite(side)].tolist(), "x")
        if points.least_reference:
            style: dict[str, Any] = {"color": COLOR["random"], "ls": DASH["reference"], "lw": 1.3}
            name = f"least {metric.name} of the reference"
            axes.axvline(points.least_reference, label=name, **style)
        axes.set_xlabel(shortened(f"{metric.name} of the {metric.reference}", 60))
    gap = f"gap, relative to the {metric.reference}'s" if metric.reference else "before fine-tuning"
    title(panels[0], f"{metric.name} {gap}")
    legend(canvas, *panels)
    at = np.flatnonzero(_chosen(findings, points) & np.isfinite(points.gap_E))
    names = [identifier(int(points.ids_E[k])) for k in at]
    for axes, side in zip(panels, shown, strict=True):
        places = [(side[k], points.gap_E[k]) for k in at]
        known = [(n, p) for n, p in zip(names, places, strict=True) if math.isfinite(p[0])]
        if 0 < len(known) <= MOST_NAMED:
            name_points(canvas, axes, *zip(*known, strict=True))
    return True


def _chosen(findings: Findings, points: EvaluationPoints) -> np.ndarray:
    return np.isin(points.ids_E, [t.id for t in findings.targets])


def _gaps(axes: Axes, findings: Findings, points: EvaluationPoints, x_E: np.ndarray) -> None:
    finite_E, chosen_E = np.isfinite(points.gap_E), _chosen(findings, points)
    eligible_E = finite_E if points.eligible_E is None else finite_E & points.eligible_E
    if not eligible_E.any():
        eligible_E = finite_E
    shown_E = finite_E & (points.gap_E <= 1.12 * max(points.gap_E[eligible_E].max(), 1e-12))
    for mask, color, label in (
        (~eligible_E, "soft", "not eligible"),
        (eligible_E & ~chosen_E, "accent", "eligible"),
    ):
        at = np.flatnonzero(mask & shown_E)
        if at.size > MOST_POINTS:  # a page must stay small
            at = at[np.linspace(0, at.size - 1, MOST_POINTS).astype(np.int64)]
        style: dict[str, Any] = {"color": COLOR[color], "ms": 3, "mew": 0, "alpha": 0.6}
        if at.size:
            axes.plot(x_E[at], points.gap_E[at], "o", label=label, **style)
    at = np.flatnonzero(chosen_E & finite_E)
    ring: dict[str, Any] = {"color": COLOR["harmful"], "mfc": "none", "ms": 9, "mew": 1.8}
    axes.plot(x_E[at], points.gap_E[at], "o", label="target", **ring)
