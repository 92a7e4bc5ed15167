"""Pictures of retraining: accuracy after filtering, its course over epochs, its proxies.

Each function returns an inline <svg>, or None where the findings do not hold its data.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from distinf.report.formats import fixed, shortened
from distinf.report.gram.detection_figures import hue
from distinf.report.gram.findings import BASELINES, FULL, RANDOM, Configuration, Findings
from distinf.report.gram.method_tables import UNFILTERED
from distinf.report.gram.summaries import Row, cell_of, datasets, estimators, spoken
from distinf.report.gram.tables import Tables
from distinf.report.svg import (
    COLOR,
    DASH,
    drawing,
    export,
    legend,
    linear_axis,
    log_axis,
    title,
)

ROW_IN, MOST_ROWS, MOST_LINES, MOST_POINTS = 0.27, 16, 5, 1_200
LINES = {RANDOM: ("random", DASH["reference"]), FULL: ("ink", DASH["baseline"]),
         UNFILTERED: ("muted", DASH["before"])}  # fmt: skip
WORDS = {RANDOM: "random", FULL: "known noise removed", UNFILTERED: "all rows"}


def shown(findings: Findings, rows: Tables, most: int = MOST_ROWS) -> list[Row]:
    """The best configurations that were retrained, and the headline's wherever it comes."""
    ours = [r for r in rows.get("accuracy", []) if Configuration.of(r["configuration"])]
    head = findings.headline.name
    return [r for k, r in enumerate(ours) if k < most or r["configuration"] == head]


def accuracy_figure(findings: Findings, rows: Tables, name: str, heading: str) -> str | None:
    """Test accuracy after filtering, and its paired difference from random, with intervals."""
    mine = shown(findings, rows)
    if not mine:
        return None
    lines = {r["configuration"]: r for r in rows["accuracy"] if r["configuration"] in LINES}
    paired = any(math.isfinite(r.get("vs_random_points", math.nan)) for r in mine)
    with drawing(name, 1.05 + ROW_IN * len(mine)) as figure:
        panels = figure.subplots(1, 2 if paired else 1, squeeze=False)[0]
        left = panels[0]
        for line, row in lines.items():
            color, dash = LINES[line]
            label = f"{WORDS[line]}, {fixed(row['mean_pct'])}"
            left.axvline(row["mean_pct"], color=COLOR[color], ls=dash, lw=1.4, label=label)
        _dots(left, mine, ("mean_pct", "low_pct", "high_pct"))
        left.set_yticks(range(len(mine)), [shortened(spoken(r["configuration"])) for r in mine])
        title(left, "test accuracy [%]")
        if paired:
            keys = ("vs_random_points", "vs_random_low_points", "vs_random_high_points")
            _dots(panels[1], mine, keys)
            panels[1].axvline(0, color=COLOR["random"], ls=DASH["reference"], lw=1.4)
            panels[1].set_yticks(range(len(mine)), [])
            title(panels[1], "minus random [points]")
        legend(figure, left, most=44)
        return export(figure, name, heading)


def _dots(axes: Axes, rows: Sequence[Row], keys: tuple[str, str, str]) -> None:
    for k, row in enumerate(rows):
        mean, low, high = (row.get(key, math.nan) for key in keys)
        made = Configuration.of(row["configuration"])
        color, _, marker = hue(made.estimator if made else "")
        if math.isfinite(low):
            axes.plot([low, high], [k, k], color=COLOR[color], lw=2.0, solid_capstyle="butt")
        axes.plot([mean], [k], marker, color=COLOR[color], ms=5.4, mew=0)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(False)
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", labelcolor=COLOR["ink"])
    linear_axis(axes, "x")
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.08)


def trends_figure(findings: Findings, rows: Tables, name: str, heading: str) -> str | None:
    """Test accuracy by epoch, mean over seeds: the best configurations and the baselines."""
    courses = _courses(findings)
    best = [r["configuration"] for r in shown(findings, rows, MOST_LINES)]
    order = [n for n in (*best, *BASELINES, UNFILTERED) if any(n in c for c in courses.values())]
    epochs = [len(line) for found in courses.values() for line in found.values()]
    if not best or not order or max(epochs, default=0) < 2:
        return None
    across = min(4, len(courses)) if len(courses) != 4 else 2
    down = math.ceil(len(courses) / across)
    with drawing(name, 0.9 + (3.1 if down == across == 1 else 2.0) * down) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, (dataset, found) in zip(panels, courses.items()):
            for line in order:
                if line in found:
                    _line(axes, found[line], line, best)
            linear_axis(axes, "x", integer=True)
            linear_axis(axes, "y")
            title(axes, shortened(dataset, 24), strong=len(courses) > 1)
        for axes in panels[len(courses) :]:
            axes.set_visible(False)
        legend(figure, *panels[: len(courses)], columns=4)
        return export(figure, name, heading)


def _line(axes: Axes, course: np.ndarray, name: str, best: Sequence[str]) -> None:
    epochs = range(1, len(course) + 1)
    if name in LINES:
        color, dash = LINES[name]
        axes.plot(epochs, course, color=COLOR[color], ls=dash, lw=1.5, label=WORDS[name])
        return
    made = Configuration.of(name)
    color, _, marker = hue(made.estimator if made else "")
    again = sum(n.partition("/")[0] == name.partition("/")[0] for n in best[: best.index(name)])
    face = COLOR["paper"] if again else COLOR[color]
    style: dict[str, Any] = {"marker": marker, "ms": 4.2, "mfc": face, "mew": 1.0}
    width = 1.7 if not again else 1.1
    axes.plot(epochs, course, color=COLOR[color], lw=width, label=spoken(name), **style)


def _courses(findings: Findings) -> dict[str, dict[str, np.ndarray]]:
    """Dataset -> configuration or baseline -> [epochs] mean accuracy in percent."""
    cells = cell_of(findings)
    found: dict[str, dict[str, list[Sequence[float]]]] = {d: {} for d in datasets(findings)}
    for r in findings.retrained:
        if len(r.history.get("test_accuracy", ())):
            mine = found[cells[r.cell].dataset].setdefault(r.configuration, [])
            mine.append(r.history["test_accuracy"])
    for c in findings.cells:
        if len(c.history.get("test_accuracy", ())):
            found[c.dataset].setdefault(UNFILTERED, []).append(c.history["test_accuracy"])
    return {d: {n: _mean(s) for n, s in lines.items()} for d, lines in found.items() if lines}


def _mean(series: Sequence[Sequence[float]]) -> np.ndarray:
    longest = max(len(s) for s in series)
    padded = [[*s, *[math.nan] * (longest - len(s))] for s in series]
    return 100 * np.nanmean(np.array(padded, dtype=np.float64), axis=0)


def thinned(points: list[Row]) -> list[Row]:
    """So many points at most, drawn evenly: a study of thousands stays a small picture."""
    if len(points) <= MOST_POINTS:
        return points
    kept = np.random.default_rng(0).permutation(len(points))[:MOST_POINTS]
    return [points[k] for k in sorted(kept)]


def proxies_figure(findings: Findings, rows: Tables, name: str, heading: str) -> str | None:
    """Accuracy after filtering against NDR, AUC and the cancellation effect: one dot per trial."""
    points = thinned(rows.get("proxy_points", []))
    heads = {"ndr_pct": "NDR [%]", "auc": "noise curve, area", "c": "cancellation C (L1)"}
    parts = [
        (key, words)
        for key, words in heads.items()
        if sum(math.isfinite(p[key]) for p in points) >= 3
    ]
    if not parts:
        return None
    centred = len(datasets(findings)) > 1
    with drawing(name, 3.3) as figure:
        panels = figure.subplots(1, len(parts), squeeze=False, sharey=True)[0]
        for axes, (key, words) in zip(panels, parts, strict=True):
            for estimator in estimators(findings):
                mine = [p for p in points if p["estimator"] == estimator and math.isfinite(p[key])]
                color, _, marker = hue(estimator)
                axes.plot(
                    [p[key] for p in mine], [p["accuracy_pct"] for p in mine], marker, ms=4.0,
                    mew=0, alpha=0.65, color=COLOR[color], label=estimator if mine else None,
                )  # fmt: skip
            if key == "c":
                log_axis(axes, "x", [p[key] for p in points])
            else:
                linear_axis(axes, "x")
            linear_axis(axes, "y")
            axes.locator_params(axis="y", nbins=5)
            axes.set_xlabel(words)
        title(panels[0], "test accuracy [%]" + (", every dataset" if centred else ""))
        legend(figure, *panels, columns=6)
        return export(figure, name, heading)
