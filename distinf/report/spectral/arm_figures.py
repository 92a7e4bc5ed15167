"""Pictures that compare arms: what each closed, the metric over its steps, and rates as maps.

Each function draws into a canvas, or nothing where the findings do not hold its data.
Shapes: R learning rates, S fine-tuning steps.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.numerics.bootstrap import differences
from distinf.report import svg
from distinf.report.formats import identifier, number, rounded, shortened, signed
from distinf.report.maps import scale_bar, show
from distinf.report.plots import Dot, Panel, dot, rows_of_dots, stacked
from distinf.report.rows import Row, gathered
from distinf.report.spectral.families import NAMES, arm_label, arms, rate, varied
from distinf.report.spectral.findings import CONTROL, OPPOSITE, SELECTED, Family, Findings, Outcome
from distinf.report.spectral.run_tables import versus
from distinf.report.spectral.trials import by_trial, controls, path

MOST_ROWS, ROW_IN = 30, 0.27
MOST_TARGETS, MOST_PANELS, MOST_MAPS, MOST_MARKS = 8, 3, 4, 6
DIVERGED = -100.0  # a gap that doubled: arms beyond it do not set the scale
FAR_BELOW = 6.0  # a reference smaller by more would squeeze everything else
WIDE_RANGE = 8.0  # largest over smallest mean, from which a scale is logarithmic
LEAST_RANGE, MOST_WORSE = math.log(1.25), math.log(4)
HERE: Any = {"color": "helpful", "name": "here, with 95 % interval"}
THERE: Any = {"color": "muted", "marker": "D", "hollow": True, "name": "published, ± sd"}


def gap(findings: Findings, rows: Sequence[Row], canvas: Figure) -> None:
    """Gap reduction of every trial by selection, a lane per target, and the rows' means; beside
    it guided minus the best baseline per target."""
    groups, every = findings.by_selection(), dict.fromkeys(t.id for t in findings.targets)
    every |= dict.fromkeys(o.target for group in groups.values() for o in group)
    lanes = {i: -0.3 * k / max(1, len(every) - 1) for k, i in enumerate(every)}
    closed = list[Dot]()
    for row, (name, group) in enumerate(groups.items()):
        color, marker, at = svg.role(name), svg.MARKER.get(name, "D"), row + 0.04
        style: Any = {"color": color, "marker": marker, "faint": True}
        closed += [Dot(at + lanes[o.target], o.gap_reduction_pct, **style) for o in group]
        text = f"{rounded(rows[row]['mean_pct'])} %"
        closed.append(dot(row + 0.24, rows[row], color=color, marker="D", text=text))
    chosen, against = findings.guided(), controls(groups)
    control = [*against][-1] if against else CONTROL
    pairs = differences(*(by_trial(g) for g in (groups.get(chosen, []), against.get(control, []))))
    apart = {i: [v for (_, (t, _)), v in pairs.items() if t == i] for i in every}
    apart = {i: values for i, values in apart.items() if values}
    beside = apart if 2 <= len(apart) <= MOST_TARGETS else {}
    means = {i: float(np.mean(values)) for i, values in beside.items()}
    dots = [Dot(k, v, faint=True) for k, values in enumerate(beside.values()) for v in values]
    dots += [Dot(k, mean, marker="D") for k, mean in enumerate(means.values())]
    names = [f"target {identifier(i)}: {signed(mean, 0)}" for i, mean in means.items()]
    of_each = "gap closed per trial, and the mean with its 95 % interval"
    rows_of_dots(
        canvas,
        max(1.1 + 0.72 * len(groups), 1.2 + 0.34 * len(beside)),
        Panel(f"{of_each} [%]", [*groups], closed, DIVERGED),
        Panel(f"{chosen} − {control}, same seeds [points]", names, dots, DIVERGED),
        width_ratios=[1.75, 1] if beside else None,
    )


def table_1(rows: Sequence[Row], canvas: Figure) -> None:
    """Per run a panel: every loss and variant, here and as published, and random's mean."""
    measured = [r for r in rows if r["source"] == "measured"]
    names = [(r["loss"], r["variant"]) for r in measured if r["selection"] != CONTROL]
    place = {name: k for k, name in enumerate(dict.fromkeys(names))}
    labels, panels = [", ".join(filter(None, name)) for name in place], []
    for run, column in dict.fromkeys((r["run"], r["column"]) for r in measured):
        dots, levels = list[Dot](), []
        for r in (r for r in rows if r["run"] == run):
            at, here = place.get((r["loss"], r["variant"])), r["source"] == "measured"
            if r["selection"] == CONTROL and here and math.isfinite(r["mean_pct"]):
                levels.append((r["mean_pct"], "random", "random, mean"))
            elif r["selection"] != CONTROL and at is not None:
                mean, sd = r["mean_pct"], r["sd_pct"]
                there = Dot(at, mean, mean - sd, mean + sd, **THERE)
                dots.append(dot(at, r, **HERE) if here else there)
        heading = shortened(f"{column} [%]", 44)
        panels.append(Panel(heading, labels, stacked(dots), DIVERGED, levels))
    rows_of_dots(canvas, 1.1 + (ROW_IN + 0.05) * len(place), *panels)


def experiment(rows: Sequence[Row], metric: str, canvas: Figure) -> None:
    """An experiment's arms: gap closed, the paired difference, what it did to other samples."""
    shown = [r for r in rows if math.isfinite(r["mean_pct"])][:MOST_ROWS]
    versus = "vs_base_" if any("vs_base_points" in r for r in shown) else "vs_random_"
    minus = "minus the base arm" if versus == "vs_base_" else f"minus {CONTROL}"
    of: Any = (
        ("gap closed [%]", "", "_pct", DIVERGED),
        (f"{minus} [points]", versus, "_points", DIVERGED),
        (f"{metric} of others, change [%]", "non_target_", "_pct", -math.inf),
    )
    panels = []
    for heading, prefix, unit, least in of:
        dots = list[Dot]()
        for k, r in enumerate(shown):
            who = r["selection"]
            style: Any = {"color": svg.role(who), "marker": svg.MARKER.get(who, "D")}
            dots.append(dot(k, r, prefix, unit, hollow=r["base"], **style))
        panels.append(Panel(heading, [r["arm"] for r in shown], dots, least))
    rows_of_dots(canvas, 0.75 + ROW_IN * len(shown), *panels)


def variations(rows: Sequence[Row], metric: str, canvas: Figure) -> None:
    """Per run: the model's mean metric, the gap closed by helpful and random, their difference."""
    every, labels = list(enumerate(rows)), [r["label"] for r in rows]
    closed = [
        dot(k, r, f"{who}_", color=color, marker=svg.MARKER[color], name=who)
        for k, r in every
        for who, color in (("guided", SELECTED), (CONTROL, CONTROL))
        if f"{who}_mean_pct" in r
    ]
    level = [Dot(k, r["evaluation_metric"], color="ink") for k, r in every]
    apart = [dot(k, r, "vs_", "_points") for k, r in every]
    rows_of_dots(
        canvas,
        1.05 + 0.4 * len(rows),
        Panel(f"{metric}, all evaluation samples", labels, level),
        Panel("gap closed [%]", labels, stacked(closed), DIVERGED),
        Panel(f"guided − {versus(rows)} [points]", labels, apart, DIVERGED),
    )


def steps(findings: Findings, canvas: Figure) -> None:
    """The targets' metric over fine-tuning steps: mean and one sd per selection."""
    groups = list(findings.by_selection().values())
    if max((len(o.metric_by_step) for g in groups for o in g), default=0) > 1:
        axes = canvas.subplots()
        _paths(axes, findings, groups)
        svg.title(axes, f"{findings.metric.name} of the targets")
        svg.legend(canvas, axes, most=48)


def updates(findings: Findings, family: Family, canvas: Figure) -> None:
    """A panel per guided selection, random in each; a row per value of whatever else is varied.

    Tuononen et al., Figure 3.
    """
    names = [n for n in varied(family) if n not in ("update", "selection")]
    lines = gathered(arms(family).values(), lambda g: arm_label(names, g[0]) if names else "")
    guided = {o.selection for o in family.outcomes} - {CONTROL}
    columns = sorted(guided, key=lambda s: (s != SELECTED, s != OPPOSITE, s)) or [CONTROL]
    shown = list(lines.items())[:MOST_PANELS]
    every = svg.panels(canvas, 0.75 + 2.75 * len(shown), len(shown), len(columns))
    for (label, groups), of in zip(shown, every, strict=True):
        for selection, axes in zip(columns, of, strict=True):
            _paths(axes, findings, [g for g in groups if g[0].selection in (selection, CONTROL)])
            what = f"{selection} {findings.headline.noun}"
            svg.title(axes, ", ".join(filter(None, (what, label))), strong=True)
    every[0][0].set_ylabel(f"{findings.metric.name} of the targets")
    svg.legend(canvas, *every.ravel(), columns=4, most=48)


def _paths(axes: Axes, findings: Findings, groups: Sequence[list[Outcome]]) -> None:
    """Mean and one sd of each arm, and the touched targets' mean reference.

    Arms whose metric doubled do not set the scale; a reference far below is in the legend alone.
    """
    means, steady, log = list[float](), list[float](), findings.metric.log
    several = len({g[0].update for g in groups}) > 1
    for group in groups:
        who, update = group[0].selection, group[0].update
        rows = [r for r in path(group) if math.isfinite(r["mean"])]
        if not rows:
            continue
        x, mean, sd = (np.array([r[k] for r in rows]) for k in ("step", "mean", "sd"))
        low = np.maximum(mean - sd, mean / 10) if log else mean - sd
        label = f"{who}, {update}" if several else who
        style: Any = {"ls": svg.UPDATE_DASH.get(update, "-"), "label": label, "ms": 4}
        style |= {"marker": svg.MARKER.get(who, "D"), "markevery": max(1, x.size // MOST_MARKS)}
        axes.fill_between(x, low, mean + sd, color=svg.COLOR[svg.role(who)], alpha=0.13, lw=0)
        svg.line(axes, x, mean, svg.role(who), **style)
        means += mean.tolist()
        steady += mean.tolist() if mean[-1] <= 2 * mean[0] else []
    touched = {o.target for g in groups for o in g}
    of = [t.reference for t in findings.targets if t.id in touched and t.reference is not None]
    log = bool(means) and min(means) > 0 and (log or max(means) > WIDE_RANGE * min(means))
    svg.axis(axes, "y", means, log)
    if not log and steady and max(means) > 2 * max(steady):
        axes.set_ylim(top=1.5 * max(steady))
    if means and of:
        ends, best = axes.get_ylim(), float(np.mean(of))
        name, far = findings.metric.reference or "reference", best * FAR_BELOW < min(means)
        told = f"{shortened(name)}: {number(best)}, below the picture" if far else shortened(name)
        style = {"ls": svg.DASH["reference"], "lw": 1.5, "label": told}
        svg.level(axes, best, "reference", False, **style)
        if far:
            axes.set_ylim(ends)
    svg.linear_axis(axes, "x", integer=True)
    axes.set_xlabel("fine-tuning step")


def rates(findings: Findings, family: Family, canvas: Figure) -> None:
    """The metric relative to before, on a log colour scale; a map per arm, a row per rate.

    The scale reaches up to the best cell, and down to the worst or to four times the metric
    before; cells beyond it are crossed. Tuononen et al., Figures 9 and 10.
    """
    maps = rate_maps(family)[:MOST_MAPS]
    if not maps:
        return
    gains = np.concatenate([relative(metric_RS).ravel() for *_, metric_RS in maps])
    up = max(LEAST_RANGE, float(np.nanmax(gains, initial=0.0)))
    worst = max(up, float(-np.nanmin(gains, initial=0.0)))
    down = min(worst, max(MOST_WORSE, up))
    heights = [0.24 * max(4, len(values)) for _, values, _ in maps]
    canvas.set_figheight(1.25 + sum(heights) + 0.4 * len(maps))
    grid = canvas.add_gridspec(len(maps) + 1, 1, height_ratios=[*heights, 0.13])
    for line, (label, values, metric_RS) in enumerate(maps):
        axes = canvas.add_subplot(grid[line, 0])
        _map(axes, relative(metric_RS), up, down)
        axes.set_yticks(range(len(values)), [f"{v:g}" for v in values])
        what = f"{NAMES[str(rate(family))]} {values[0]:g} to {values[-1]:g}"
        svg.title(axes, shortened(", ".join(filter(None, (label, what))), 60), strong=True)
    axes.set_xlabel("fine-tuning step")
    before, places = float(np.nanmean(maps[0][2][:, 0])), (-1.0, -0.5, 0.0, 0.5, 1.0)
    labels = [number(before * math.exp(-p * (up if p > 0 else down)), 2) for p in places]
    labels[0] = f"≥{labels[0]}" if worst > down else labels[0]
    labels[2] = f"before: {labels[2]}"
    name = f"{findings.metric.name} (log scale{'; crossed: above it' * (worst > down)})"
    scale_bar(canvas.add_subplot(grid[-1, 0]), places, labels, name)


def rate_maps(family: Family) -> list[tuple[str, list[float], np.ndarray]]:
    """(what else tells the arms apart, the rates R, the metric [R, steps + 1]) per map."""
    swept = str(rate(family))
    names = [n for n in varied(family) if n != swept]
    maps: dict[str, dict[float, list[float]]] = {}
    for group in arms(family).values():
        value = group[0].value(swept)
        if value is not None:
            means = [r["mean"] for r in path(group)]
            maps.setdefault(arm_label(names, group[0]), {})[value] = means
    found = []
    for label, rows in maps.items():
        metric_RS = np.full((len(rows), max(map(len, rows.values()))), np.nan)
        for row, value in zip(metric_RS, sorted(rows), strict=True):
            row[: len(rows[value])] = rows[value]
        found.append((label, sorted(rows), metric_RS))
    return found


def relative(metric_RS: np.ndarray) -> np.ndarray:
    """ln(before / metric): above 0 is better; NaN where it is not finite."""
    before = metric_RS[:, :1]
    known = np.isfinite(metric_RS) & (metric_RS > 0) & (before > 0)
    ratio_RS = np.divide(before, metric_RS, out=np.full(metric_RS.shape, np.nan), where=known)
    return np.log(ratio_RS)


def _map(axes: Axes, gains_RS: np.ndarray, up: float, down: float) -> None:
    """The best step of each rate is ringed, what lies beyond `down` crossed."""
    show(axes, np.where(gains_RS > 0, gains_RS / up, gains_RS / down))
    axes.invert_yaxis()  # the largest rate at the top
    rows, columns = np.nonzero(gains_RS < -down * (1 + 1e-9))
    svg.line(axes, columns, rows, "paper", "x", ms=4, lw=0)
    for row, gains in enumerate(gains_RS):
        if np.isfinite(gains).any():
            best = [int(np.nanargmax(gains))]
            svg.line(axes, best, [row], "ink", "o", mark="none", ms=6.5, mew=1.2)
    svg.linear_axis(axes, "x", integer=True)
