"""Pictures that compare arms and runs: means with their intervals, a row each, and rates as maps.

Each function draws into a canvas and returns False where the findings do not hold its data.
Shapes: R learning rates, S fine-tuning steps.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from distinf.report import svg
from distinf.report.formats import fixed, number, shortened
from distinf.report.maps import scale_bar, show
from distinf.report.rows import Row
from distinf.report.spectral.families import NAMES, arm_label, arms, rate, varied
from distinf.report.spectral.findings import CONTROL, SELECTED, Family, Findings
from distinf.report.spectral.trials import path

MOST_ROWS, ROW_IN = 30, 0.27
DIVERGED = -100.0  # a gap that doubled: arms beyond it do not set the scale
COARSE = 0.01  # from here on a rate belongs to the coarse map
FEWEST_EACH, MOST_MAPS = 3, 4
LEAST_RANGE, MOST_WORSE = math.log(1.25), math.log(4)
HATCH: dict[str, Any] = {"fill": False, "hatch": "////", "lw": 0, "ec": svg.COLOR["paper"]}


@dataclass(frozen=True)
class Dot:
    """A mean and its interval in row `row`, from 0; NaN bounds give none."""

    row: float
    mean: float
    low: float = math.nan
    high: float = math.nan
    color: str = "accent"
    marker: str = "o"
    hollow: bool = False
    name: str | None = None


def _dot(row: int, of: Row, prefix: str, unit: str = "_pct", **style: Any) -> Dot:
    """A dot of the columns `prefix`mean, low and high."""
    mean = "points" if unit == "_points" else f"mean{unit}"
    keys = (f"{prefix}{k}" for k in (mean, f"low{unit}", f"high{unit}"))
    return Dot(row, *(of.get(key, math.nan) for key in keys), **style)


def _limits(dots: Iterable[Dot], least: float) -> tuple[float, float]:
    """A range with 0 that holds every dot and interval whose mean is at least `least`."""
    every = [d for d in dots if math.isfinite(d.mean)]
    inside = [d for d in every if d.mean >= least] or every
    ends = [v for d in inside for v in (d.mean, d.low, d.high) if math.isfinite(v)]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    if math.isfinite(least) and inside is not every:
        low = max(low, 1.5 * least)
    margin = 0.06 * ((high - low) or 1.0)
    return low - margin, high + margin


def _draw(
    axes: Axes, dots: Sequence[Dot], labels: Sequence[str], least: float, named: bool
) -> None:
    """Every dot on its row; one beyond the range is an arrow with its number."""
    low, high = _limits(dots, least)
    for d in (d for d in dots if math.isfinite(d.mean)):
        if not low <= d.mean <= high:
            left = d.mean < low
            at = low + 0.025 * (high - low) if left else high - 0.025 * (high - low)
            svg.line(
                axes, [at], [d.row], d.color, "<" if left else ">", ms=5.2, mew=0, label=d.name
            )
            style: Any = {"color": svg.COLOR[d.color], "fontsize": 8.5, "va": "center_baseline"}
            svg.note(axes, fixed(d.mean, 0), (at, d.row), 7 if left else -7, **style)
            continue
        if math.isfinite(d.low):
            style = {"lw": 1.1 if d.hollow else 2.2, "solid_capstyle": "butt"}
            svg.line(axes, [d.low, d.high], [d.row] * 2, d.color, **style)
        style = {"mark": "paper" if d.hollow else d.color, "mec": svg.COLOR[d.color], "mew": 1.1}
        svg.line(axes, [d.mean], [d.row], d.color, d.marker, ms=5.2, label=d.name, **style)
    axes.set_xlim(low, high)
    svg.row_axis(axes, [shortened(text, 44) for text in labels])
    axes.tick_params(axis="y", labelleft=named)
    axes.locator_params(axis="x", nbins=4)


def _stacked(dots: Iterable[Dot]) -> list[Dot]:
    """Dots that share a row, two at most, above each other within it."""
    seen: dict[float, int] = {}
    found = []
    for dot in dots:
        seen[dot.row] = seen.get(dot.row, -1) + 1
        found.append(replace(dot, row=dot.row + 0.34 * (seen[dot.row] - 0.5)))
    return found


def _columns(
    canvas: Figure, height: float, labels: Sequence[str], *parts: tuple[str, Sequence[Dot], float]
) -> bool:
    """(heading, dots, the least mean that sets the scale) per panel; those with a mean."""
    shown = [p for p in parts if any(math.isfinite(d.mean) for d in p[1])]
    if not shown:
        return False
    every = svg.panels(canvas, height, 1, len(shown))[0]
    for k, (axes, (heading, dots, least)) in enumerate(zip(every, shown, strict=True)):
        _draw(axes, dots, labels, least, k == 0)
        svg.title(axes, heading)
    svg.legend(canvas, *every)
    return True


def table_1(rows: Sequence[Row], canvas: Figure) -> bool:
    """Per run a panel: every loss and variant, here and as published, and random's mean."""
    measured = [r for r in rows if r["source"] == "measured"]
    guided = [r for r in rows if r["selection"] != CONTROL]
    columns = list(dict.fromkeys((r["run"], r["column"]) for r in measured))
    names = dict.fromkeys((r["loss"], r["variant"]) for r in guided if r in measured)
    place = {name: k for k, name in enumerate(names)}
    labels = [", ".join(filter(None, name)) for name in names]
    if not measured:
        return False
    panels = svg.panels(canvas, 1.1 + (ROW_IN + 0.05) * len(place), 1, len(columns))[0]
    here: Any = {"color": "helpful", "marker": svg.MARKER[SELECTED]}
    here["name"] = "here, with 95 % interval"
    for k, (axes, (run, column)) in enumerate(zip(panels, columns, strict=True)):
        dots, there = list[Dot](), list[Dot]()
        for r in (r for r in guided if r["run"] == run and (r["loss"], r["variant"]) in place):
            at, mean = place[r["loss"], r["variant"]], r["mean_pct"]
            if r["source"] == "measured":
                dots.append(_dot(at, r, "", **here))
            else:
                ends = (mean - r["sd_pct"], mean + r["sd_pct"])
                there.append(Dot(at, mean, *ends, "muted", "D", True, "published, ± sd"))
        _draw(axes, _stacked([*dots, *there]), labels, DIVERGED, k == 0)
        svg.title(axes, shortened(f"{column} [%]", 44), strong=True)
        random = [r["mean_pct"] for r in measured if (r["run"], r["selection"]) == (run, CONTROL)]
        for mean in filter(math.isfinite, random):
            style: Any = {"ls": svg.DASH["reference"], "lw": 1.3, "label": "random, mean"}
            svg.level(axes, mean, "random", **style)
            dots.append(Dot(0, mean))
        axes.set_xlim(*_limits([*dots, *there], DIVERGED))
    svg.legend(canvas, *panels)
    return True


def experiment(rows: Sequence[Row], metric: str, canvas: Figure) -> bool:
    """An experiment's arms: gap closed, the paired difference, what it did to other samples."""
    shown = [r for r in rows if math.isfinite(r["mean_pct"])][:MOST_ROWS]
    versus = "vs_base_" if any("vs_base_points" in r for r in shown) else "vs_random_"
    minus = "minus the base arm" if versus == "vs_base_" else f"minus {CONTROL}"

    def dots(prefix: str, unit: str = "_pct") -> list[Dot]:
        markers = [svg.MARKER.get(r["selection"], "D") for r in shown]
        colors = [svg.role(r["selection"]) for r in shown]
        return [
            _dot(k, r, prefix, unit, color=colors[k], marker=markers[k], hollow=r["base"])
            for k, r in enumerate(shown)
        ]

    return _columns(
        canvas,
        0.75 + ROW_IN * len(shown),
        [r["arm"] for r in shown],
        ("gap closed [%]", dots(""), DIVERGED),
        (f"{minus} [points]", dots(versus, "_points"), DIVERGED),
        (f"{metric} of others, change [%]", dots("non_target_"), -math.inf),
    )


def variations(rows: Sequence[Row], metric: str, canvas: Figure) -> bool:
    """Per run: the model's mean metric, the gap closed by helpful and random, their difference."""
    every = list(enumerate(rows))
    closed = [
        _dot(k, r, f"{who}_", color=color, marker=svg.MARKER[color], name=who)
        for k, r in every
        for who, color in (("guided", "helpful"), (CONTROL, "random"))
        if f"{who}_mean_pct" in r
    ]
    level = [Dot(k, r["evaluation_metric"], color="ink") for k, r in every]
    apart = [_dot(k, r, "vs_", "_points") for k, r in every]
    return _columns(
        canvas,
        1.05 + 0.4 * len(rows),
        [r["label"] for r in rows],
        (f"{metric}, all evaluation samples", level, -math.inf),
        ("gap closed [%]", _stacked(closed), DIVERGED),
        (f"guided − {CONTROL} [points]", apart, DIVERGED),
    )


def rates(findings: Findings, family: Family, canvas: Figure) -> bool:
    """The metric relative to before, on a log colour scale; a map per arm, coarse and fine apart.

    The scale reaches up to four times the metric before; cells above it are hatched. Tuononen et
    al., Figures 9 and 10.
    """
    maps = rate_maps(family)[:MOST_MAPS]
    if not maps:
        return False
    head = findings.by_selection().get(findings.guided(), [])
    split = [parts(values, head[0].lr if head else None) for _, values, _ in maps]
    columns, most = max(len(p) for p in split), max(len(rows) for p in split for rows in p)
    scale = reach([metric_RS for *_, metric_RS in maps])
    canvas.set_figheight(1.25 + len(maps) * max(1.5, 0.55 + 0.24 * most))
    grid = canvas.add_gridspec(
        len(maps) + 1, columns, height_ratios=[*[max(1.0, 0.24 * most)] * len(maps), 0.13]
    )
    for line, ((label, values, metric_RS), pieces) in enumerate(zip(maps, split, strict=True)):
        for place, rows in enumerate(pieces):
            axes = canvas.add_subplot(grid[line, place])
            _map(axes, metric_RS[rows], scale)
            axes.set_yticks(range(len(rows)), [f"{values[r]:g}" for r in rows])
            what = f"{NAMES[str(rate(family))]} {values[rows[0]]:g} to {values[rows[-1]]:g}"
            svg.title(axes, shortened(", ".join(filter(None, (label, what))), 60), strong=True)
            if line + 1 == len(maps):
                axes.set_xlabel("fine-tuning step")
    places = (-1.0, -0.5, 0.0, 0.5, 1.0)
    before = float(np.nanmean(maps[0][2][:, 0]))
    labels = [
        number(before * math.exp(-p * (scale.up if p > 0 else scale.down)), 2) for p in places
    ]
    labels[0] = f"≥{labels[0]}" if scale.clipped else labels[0]
    labels[2] = f"before: {labels[2]}"
    note = "log scale; hatched: above it" if scale.clipped else "log scale"
    bar = canvas.add_subplot(grid[-1, :])
    scale_bar(bar, places, labels, f"{findings.metric.name} ({note})")
    return True


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
        metric_RS = np.full((len(rows), max(len(m) for m in rows.values())), np.nan)
        for row, value in zip(metric_RS, sorted(rows), strict=True):
            row[: len(rows[value])] = rows[value]
        found.append((label, sorted(rows), metric_RS))
    return found


def parts(rates: list[float], usual: float | None) -> list[list[int]]:
    """Places of the rates of each map: coarse and fine ones apart where there are enough of both.

    The headline's rate is in the coarse map too, as a landmark.
    """
    coarse = [k for k, r in enumerate(rates) if r >= COARSE]
    fine = [k for k, r in enumerate(rates) if r <= COARSE]
    below = [k for k in fine if rates[k] < COARSE]
    if len(coarse) < FEWEST_EACH or len(below) < FEWEST_EACH:
        return [list(range(len(rates)))]
    landmark = [k for k in below if usual is not None and math.isclose(rates[k], usual)]
    return [landmark + coarse, fine]


def relative(metric_RS: np.ndarray) -> np.ndarray:
    """ln(before / metric): above 0 is better; NaN where it is not finite."""
    before = metric_RS[:, :1]
    known = np.isfinite(metric_RS) & (metric_RS > 0) & (before > 0)
    ratio_RS = np.divide(before, metric_RS, out=np.full(metric_RS.shape, np.nan), where=known)
    return np.log(ratio_RS)


@dataclass(frozen=True)
class Reach:
    """How far the colours go, as |ln(before / metric)|: `up` for better, `down` for worse."""

    up: float
    down: float
    clipped: bool = False  # whether a cell lies below `down`

    def scaled(self, gains: np.ndarray) -> np.ndarray:
        """`gains` in units of the reach on their side."""
        return np.where(gains > 0, gains / self.up, gains / self.down)


def reach(maps: Sequence[np.ndarray]) -> Reach:
    """Up to the best cell, and down to the worst or to a metric four times what it was."""
    every = np.concatenate([relative(m).ravel() for m in maps])
    finite = every[np.isfinite(every)]
    up = max(float(finite.max(initial=0.0)), LEAST_RANGE)
    worst = float(-finite.min(initial=0.0))
    down = min(max(worst, up), max(MOST_WORSE, up))
    return Reach(up, down, worst > down)


def _map(axes: Axes, metric_RS: np.ndarray, scale: Reach) -> None:
    gains_RS = relative(metric_RS)
    shown_RS = scale.scaled(gains_RS)
    show(axes, shown_RS)
    axes.invert_yaxis()  # the largest rate at the top
    for row, start, length in stretches(shown_RS < -1 - 1e-9):
        axes.add_patch(Rectangle((start - 0.5, row - 0.5), length, 1, **HATCH))
    for row, gains in enumerate(gains_RS):
        if np.isfinite(gains).any():
            best = [int(np.nanargmax(gains))]
            svg.line(axes, best, [row], "ink", "o", mark="none", ms=6.5, mew=1.2)
    svg.linear_axis(axes, "x", integer=True)


def stretches(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, first column, length) of every stretch of True."""
    found = []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
        found += [(row, int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]
    return found
