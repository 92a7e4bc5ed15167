"""The picture of the answer: every trial's gap reduction, and the paired differences."""

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from distinf.numerics.bootstrap import Estimate, differences, estimate
from distinf.report.formats import count, identifier, rounded, shortened, signed
from distinf.report.spectral.captions import titles
from distinf.report.spectral.findings import CONTROL, SELECTED, Findings, Outcome
from distinf.report.spectral.summaries import reductions
from distinf.report.svg import COLOR, MARKER, drawing, export, linear_axis, role, title

MOST_TARGETS_SHOWN = 8


def gap_figure(findings: Findings) -> str | None:
    """Gap reduction of every trial by selection; beside it helpful minus random per target."""
    outcomes = findings.headline_outcomes()
    selections = findings.selections()
    groups = {s: [o for o in outcomes if o.selection == s] for s in selections}
    finite = [o.gap_reduction_pct for o in outcomes if math.isfinite(o.gap_reduction_pct)]
    if not finite:
        return None
    targets = sorted({o.target for o in outcomes}, key=_target_order(findings))
    by_target = _paired_by_target(groups, targets, findings.guided())
    beside = 2 <= len(by_target) <= MOST_TARGETS_SHOWN
    height = max(1.1 + 0.72 * len(selections), 1.2 + 0.34 * len(by_target) * beside)
    with drawing("gap", height) as figure:
        ratios = [1.75, 1] if beside else [1]
        panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        _strips(panels[0], groups, targets)
        if beside:
            _paired_panel(panels[1], by_target, findings.guided())
        return export(figure, "gap", titles(findings)["gap"])


def _strips(axes: Axes, groups: dict[str, list[Outcome]], targets: list[int]) -> None:
    """One row per selection: a lane of dots per target, and below them mean and interval."""
    limits = _shown_range(groups)
    for row, (selection, group) in enumerate(groups.items()):
        color = COLOR[role(selection)]
        values = np.array([o.gap_reduction_pct for o in group], dtype=float)
        lanes = np.array([targets.index(o.target) for o in group], dtype=float)
        y = row + 0.04 - 0.3 * lanes / max(1, len(targets) - 1)
        inside = (values >= limits[0]) & (values <= limits[1])
        marker = MARKER.get(selection, "D")
        axes.plot(values[inside], y[inside], marker, color=color, ms=4.2, mew=0, alpha=0.5)
        _beyond(axes, values, row - 0.1, color, limits)
        _interval(axes, estimate(reductions(group)), row + 0.24, color, limits)
    axes.set_yticks(range(len(groups)), [shortened(s) for s in groups])
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.set_xlim(*limits)
    axes.tick_params(axis="y", labelcolor=COLOR["ink"])
    _horizontal(axes)
    title(axes, "gap closed per trial, and the mean with its 95 % interval [%]")


def _beyond(
    axes: Axes, values: np.ndarray, y: float, color: str, limits: tuple[float, float]
) -> None:
    """An arrow at the edge, and how many trials lie outside."""
    low, high = limits
    inset = 0.012 * (high - low)
    for outside, x, arrow, side in (
        (values < low, low + inset, "<", "left"),
        (values > high, high - inset, ">", "right"),
    ):
        if outside.any():
            axes.plot([x], [y], arrow, color=color, ms=6)
            offset = (8 if side == "left" else -8, 0)
            note = f"{count(int(outside.sum()))} beyond"
            axes.annotate(note, (x, y), offset, textcoords="offset points", ha=side, va="center")


def _interval(axes: Axes, e: Estimate, y: float, color: str, limits: tuple[float, float]) -> None:
    """A diamond at the mean on the line of its interval, with the mean written beside it."""
    if not math.isfinite(e.mean):
        return
    if e.has_interval:
        axes.plot([e.low, e.high], [y, y], color=color, lw=2.6, solid_capstyle="butt")
    axes.plot([e.mean], [y], "D", color=color, ms=7, mec=COLOR["paper"], mew=1.2)
    end = max(e.mean, e.high) if e.has_interval else e.mean
    at = min(max(end, limits[0]), limits[1])
    left = at > limits[0] + 0.9 * (limits[1] - limits[0])
    start = min(e.mean, e.low) if e.has_interval else e.mean
    axes.annotate(
        f"{rounded(e.mean)} %",
        (max(start, limits[0]) if left else at, y),
        (-9 if left else 9, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center_baseline",
        color=color,
        fontweight="bold",
    )


def _paired_panel(axes: Axes, by_target: dict[int, np.ndarray], chosen: str) -> None:
    for row, values in enumerate(by_target.values()):
        color = COLOR["accent"]
        axes.plot(values, np.full(values.size, row), "o", color=color, ms=4.2, mew=0, alpha=0.45)
        mean = float(values.mean())
        axes.plot([mean], [row], "D", color=color, ms=7, mec=COLOR["paper"], mew=1.2)
        text = signed(mean, 0)
        axes.annotate(
            text,
            (1, row),
            (4, 0),
            xycoords=("axes fraction", "data"),
            va="center",
            textcoords="offset points",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(by_target)), [f"target {identifier(i)}" for i in by_target])
    axes.set_ylim(len(by_target) - 0.4, -0.6)
    axes.tick_params(axis="y", labelcolor=COLOR["ink"])
    _horizontal(axes)
    title(axes, f"{chosen} − {CONTROL}, same seeds [points]")


def _horizontal(axes: Axes) -> None:
    axes.grid(False)
    axes.grid(True, axis="x")
    axes.axvline(0, color=COLOR["muted"], lw=0.9, zorder=1)
    linear_axis(axes, "x")


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


def _paired_by_target(
    groups: dict[str, list[Outcome]], targets: list[int], chosen: str
) -> dict[int, np.ndarray]:
    pairs = differences(reductions(groups.get(chosen, [])), reductions(groups.get(CONTROL, [])))
    grouped = {i: np.array([v for (_, (t, _)), v in pairs.items() if t == i]) for i in targets}
    return {i: values for i, values in grouped.items() if values.size}


def _target_order(findings: Findings) -> Callable[[int], tuple[int, int]]:
    """Sorts by the order of the targets' table, others after it."""
    order = {t.id: k for k, t in enumerate(findings.targets)}
    return lambda i: (order.get(i, len(order)), i)
