"""Pictures of the fine-tunings: every trial's gap closed, and the metric over their steps.

Each function draws into a canvas and returns False where the findings do not hold its data.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.numerics.bootstrap import differences
from distinf.report import svg
from distinf.report.formats import count, identifier, number, rounded, shortened, signed
from distinf.report.rows import Row
from distinf.report.spectral.families import arm_label, arms, varied
from distinf.report.spectral.findings import CONTROL, OPPOSITE, SELECTED, Family, Findings, Outcome
from distinf.report.spectral.trials import path, reductions

ASCENT = "ascent"
MOST_TARGETS, MOST_ROWS = 8, 3
FAR_BELOW = 6.0  # a reference smaller by more would squeeze everything else
WIDE_RANGE = 8.0  # largest over smallest mean, from which a scale is logarithmic
DOTS = {"ms": 4.2, "mew": 0}
DIAMOND = {"ms": 7, "mec": svg.COLOR["paper"], "mew": 1.2}


def gap(findings: Findings, rows: Sequence[Row], canvas: Figure) -> bool:
    """Gap reduction of every trial by selection, and the rows' means with their intervals; beside
    it helpful minus random per target."""
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
    beside = 2 <= len(apart) <= MOST_TARGETS
    height = max(1.1 + 0.72 * len(groups), 1.2 + 0.34 * len(apart) * beside)
    axes = svg.panels(canvas, height, 1, 1 + beside, width_ratios=[1.75, 1][: 1 + beside])[0]
    limits = _shown_range(closed)
    for row, (name, group) in enumerate(groups.items()):
        lanes = np.array([targets.index(o.target) for o in group]) / max(1, len(targets) - 1)
        _strip(axes[0], name, closed[name], row, row + 0.04 - 0.3 * lanes, limits)
        _interval(axes[0], rows[row], row + 0.24, svg.role(name), limits)
    svg.row_axis(axes[0], [shortened(s) for s in groups])
    axes[0].set_xlim(*limits)
    svg.title(axes[0], "gap closed per trial, and the mean with its 95 % interval [%]")
    for row, values in enumerate(apart.values() if beside else ()):
        mean, style = float(np.mean(values)), {"fontweight": "bold", "annotation_clip": False}
        svg.line(axes[1], values, [row] * len(values), "accent", "o", alpha=0.45, **DOTS)
        svg.line(axes[1], [mean], [row], "accent", "D", **DIAMOND)
        place: Any = {"xycoords": ("axes fraction", "data"), "color": svg.COLOR["accent"]}
        svg.note(axes[1], signed(mean, 0), (1, row), 4, **place, **style)
    if beside:
        svg.row_axis(axes[1], [f"target {identifier(i)}" for i in apart], (0.4, 0.6))
        svg.title(axes[1], f"{chosen} − {CONTROL}, same seeds [points]")
    return True


def _shown_range(closed: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Limits that hold every selection but let a diverged one run over its edge."""
    known = {s: svg.finite(values).tolist() for s, values in closed.items()}
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
    (low, high), color = limits, svg.role(name)
    inside, inset = (values >= low) & (values <= high), 0.012 * (high - low)
    svg.line(axes, values[inside], y[inside], color, svg.MARKER.get(name, "D"), alpha=0.5, **DOTS)
    sides = (values < low, low + inset, "<", 8), (values > high, high - inset, ">", -8)
    for outside, x, arrow, dx in sides:
        if outside.any():
            svg.line(axes, [x], [row - 0.1], color, arrow, ms=6)
            svg.note(axes, f"{count(int(outside.sum()))} beyond", (x, row - 0.1), dx)


def _interval(axes: Axes, row: Row, y: float, color: str, limits: tuple[float, float]) -> None:
    """A diamond at the mean on the line of its interval, with the mean written beside it."""
    mean, low, high = (row[f"{k}_pct"] for k in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return
    if math.isfinite(low):
        svg.line(axes, [low, high], [y, y], color, lw=2.6, solid_capstyle="butt")
    svg.line(axes, [mean], [y], color, "D", **DIAMOND)
    ends = svg.finite([mean, low, high])
    at = min(max(float(ends.max()), limits[0]), limits[1])
    left = at > limits[0] + 0.9 * (limits[1] - limits[0])
    place = (max(float(ends.min()), limits[0]) if left else at, y)
    style = {"color": svg.COLOR[color], "va": "center_baseline", "fontweight": "bold"}
    svg.note(axes, f"{rounded(mean)} %", place, -9 if left else 9, **style)


def steps(findings: Findings, canvas: Figure) -> bool:
    """The targets' metric over fine-tuning steps: mean and one sd per selection."""
    groups, axes = findings.by_selection(), canvas.subplots()
    if max((len(o.metric_by_step) for g in groups.values() for o in g), default=0) < 2:
        return False
    means: list[float] = []
    for name, group in groups.items():
        marker = svg.MARKER.get(name, "D")
        means += _band(axes, findings, group, 0.14, label=name, marker=marker, ms=5)
    references = [t.reference for t in findings.targets if t.reference is not None]
    shown = _reference_line(axes, findings, references, means)
    svg.axis(axes, "y", means + (references if shown else []), findings.metric.log)
    svg.linear_axis(axes, "x", integer=True)
    axes.set_xlabel("fine-tuning step")
    svg.title(axes, f"{findings.metric.name} of the targets")
    svg.legend(canvas, axes)
    return True


def _band(
    axes: Axes, findings: Findings, group: Sequence[Outcome], alpha: float, **style: Any
) -> list[float]:
    """Mean and one sd on each side -> the means; on a log scale the sd stops above zero."""
    rows = [r for r in path(group) if math.isfinite(r["mean"])]
    x, mean, sd = (np.array([r[k] for r in rows]) for k in ("step", "mean", "sd"))
    low = np.maximum(mean - sd, mean / 10) if findings.metric.log else mean - sd
    if rows:
        color = svg.role(group[0].selection)
        axes.fill_between(x, low, mean + sd, color=svg.COLOR[color], alpha=alpha, lw=0)
        svg.line(axes, x, mean, color, **style)
    return mean.tolist()


def _reference_line(
    axes: Axes, findings: Findings, references: list[float], means: list[float]
) -> bool:
    """A dashed line at the mean reference; far below the rest, only its number at the edge."""
    if not references or not means:
        return False
    at, name = float(np.mean(references)), findings.metric.reference or "reference"
    style: Any = {"ls": svg.DASH["reference"], "lw": 1.5, "label": name}
    if at * FAR_BELOW >= min(means):
        svg.level(axes, at, "reference", False, **style)
        return True
    told = f"{shortened(name)}: {number(at)}, below the picture"
    place: Any = {"xycoords": "axes fraction", "color": svg.COLOR["reference"], "fontsize": 8.5}
    axes.annotate(told, (0.01, 0.02), **place)
    return False


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
    every = svg.panels(canvas, 0.75 + 2.75 * len(shown), len(shown), len(columns))
    for (label, groups), of in zip(shown, every, strict=True):
        for letter, selection, axes in zip("abcdefgh", columns, of, strict=False):
            _panel(axes, findings, panel_arms(groups, selection))
            what = f"({letter}) {selection} {findings.headline.noun}"
            svg.title(axes, ", ".join(filter(None, (what, label))), strong=True)
    for axes in every[-1]:
        axes.set_xlabel("fine-tuning step")
    every[0][0].set_ylabel(f"{findings.metric.name} of the targets")
    svg.legend(canvas, *every.ravel(), columns=4, most=36)


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
        dash, label = svg.UPDATE_DASH.get(update, "-"), f"{group[0].selection}, {update}"
        found = _band(axes, findings, group, 0.12, ls=dash, label=label)
        means += found
        steady += found if update != ASCENT else []
    touched = {o.target for g in groups for o in g}
    of = [t.reference for t in findings.targets if t.id in touched and t.reference is not None]
    if _reference_line(axes, findings, of, means):
        means.append(float(np.mean(of)))
    wide = bool(means) and (findings.metric.log or max(means) > WIDE_RANGE * min(means))
    log = wide and min(means) > 0
    svg.axis(axes, "y", means, log)
    if not log and steady and max(means) > 2 * max(steady):
        axes.set_ylim(top=1.5 * max(steady))  # ascent runs out of the picture
    svg.linear_axis(axes, "x", integer=True)
