"""Pictures of the machinery: score distributions, the spectrum, training and what it cost.

Each function returns an inline <svg>, or None where the findings do not hold its data.
Shapes: N training samples, K Ritz values.
"""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from distinf.report.formats import duration, identifier, shortened
from distinf.report.spectral.captions import titles
from distinf.report.spectral.families import run_label, runs
from distinf.report.spectral.findings import Findings, Ritz, ScoreSet
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

BINS = 60
MOST_STEPS = 1_000


def scores_figure(findings: Findings) -> str | None:
    """Histograms of the first target's scores per loss and variant, log counts."""
    target = findings.first_scored()
    if target is None:
        return None
    sets = [s for s in findings.scores if target in s.scores and _finite(s, target).size]
    if not sets:
        return None
    columns = 2 if len(sets) in (2, 4) else min(len(sets), 4)
    rows = math.ceil(len(sets) / columns)
    with drawing("scores", 0.7 + 2.0 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, scoring in zip(panels, sets):
            _histogram(axes, _finite(scoring, target), findings.headline.pool or 50)
            head = findings.headline
            ours = (scoring.loss, scoring.variant) == (head.loss, head.variant)
            name = " ".join(filter(None, (scoring.loss, scoring.variant)))
            title(axes, shortened(name), strong=ours and len(sets) > 1)
        for axes in panels[len(sets) :]:
            axes.set_visible(False)
        legend(figure, panels[0])
        return export(figure, "scores", titles(findings)["scores"])


def _finite(scoring: ScoreSet, target: int) -> np.ndarray:
    scores_N = np.asarray(scoring.scores[target], dtype=np.float64)
    return scores_N[np.isfinite(scores_N)]


def _histogram(axes: Axes, scores_N: np.ndarray, pool: int) -> None:
    pool = min(pool, scores_N.size // 2)
    ordered_N = np.sort(scores_N)
    low, high = ordered_N[0], ordered_N[-1]
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    parts = (
        (ordered_N, "soft", "all training samples"),
        (ordered_N[:pool], "harmful", f"the {pool} most harmful"),
        (ordered_N[ordered_N.size - pool :], "helpful", f"the {pool} most helpful"),
    )
    for part_N, color, label in parts:
        counts, _ = np.histogram(part_N, edges)
        shown = counts > 0
        axes.bar(
            edges[:-1][shown],
            counts[shown] - 0.7,
            np.diff(edges)[shown],
            bottom=0.7,
            align="edge",
            color=COLOR[color],
            label=label,
            lw=0,
        )
    log_axis(axes, "y", [0.7, float(scores_N.size)])
    axes.set_ylim(0.7, None)
    linear_axis(axes, "x")
    axes.locator_params(axis="x", nbins=4)
    axes.axvline(0, color=COLOR["muted"], lw=0.9)


def ritz_figure(findings: Findings) -> str | None:
    """Sizes of the converged Ritz values and their residuals, most extreme first."""
    pairs = findings.ritz
    places = pairs.converged() if pairs is not None else []
    if pairs is None or not places:
        return None
    with drawing("ritz", 3.5) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
        values_K = np.array(pairs.values_K, dtype=float)[places]
        residuals_K = np.maximum(np.array(pairs.residuals_K, dtype=float)[places], 1e-18)
        rank_K = np.array(places) + 1
        for mask, color, marker, label in (
            (values_K > 0, "accent", "o", "positive"),
            (values_K < 0, "harmful", "v", "negative (its size is drawn)"),
        ):
            if mask.any():
                style: dict[str, Any] = {"color": COLOR[color], "ms": 4.2, "mew": 0}
                left.plot(rank_K[mask], np.abs(values_K[mask]), marker, label=label, **style)
                right.plot(rank_K[mask], residuals_K[mask], marker, **style)
        for value, color, label in _levels(pairs):
            left.axhline(value, color=COLOR[color], ls=DASH["reference"], lw=1.3, label=label)
        log_axis(left, "y", [*np.abs(values_K), *(value for value, *_ in _levels(pairs))])
        log_axis(right, "y", residuals_K.tolist())
        title(left, "size of the Ritz value |θ|")
        title(right, "residual ‖Hu − θu‖")
        for axes in (left, right):
            for place in (k for k in places if not pairs.is_kept(k)):
                named = {"label": "not kept"} if axes is left else {}
                axes.axvline(place + 1, color=COLOR["muted"], lw=0.9, ls=":", **named)
            linear_axis(axes, "x", integer=True)
            axes.set_xlabel("rank")
        legend(figure, left)
        return export(figure, "ritz", titles(findings)["ritz"])


def _levels(pairs: Ritz) -> list[tuple[float, str, str]]:
    """Value, colour and name of the lines that a log axis can show."""
    levels = (
        (pairs.damping, "random", "damping λ"),
        (pairs.complement_mean, "reference", "mean of the rest μ"),
    )
    return [(v, color, label) for v, color, label in levels if v is not None and v > 0]


def training_figure(findings: Findings) -> str | None:
    """Training loss: each step pale, its running mean on top."""
    curve = findings.training
    if curve is None or len(curve.steps) < 2:
        return None
    loss = np.array(curve.loss, dtype=float)
    step = np.array(curve.steps)
    every = math.ceil(step.size / MOST_STEPS)
    window = max(1, step.size // 40)
    with drawing("training", 2.9) as figure:
        axes = figure.subplots()
        axes.plot(step[::every], loss[::every], color=COLOR["accent"], lw=0.9, alpha=0.35)
        axes.plot(step[::every], running_mean(loss, window)[::every], color=COLOR["accent"])
        positive = loss[np.isfinite(loss)]
        if positive.size and positive.min() > 0 and positive.max() > 4 * positive.min():
            log_axis(axes, "y", positive.tolist())
        else:
            linear_axis(axes, "y")
        linear_axis(axes, "x")
        axes.set_xlabel("training step")
        title(axes, curve.label)
        return export(figure, "training", titles(findings)["training"])


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the finite values among the last `window`; NaN where there is none."""
    finite = np.isfinite(values)
    sums = np.cumsum(np.where(finite, values, 0.0))
    counts = np.cumsum(finite)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.divide(sums, counts, out=np.full(values.size, np.nan), where=counts > 0)


def costs_figure(findings: Findings) -> str | None:
    """Wall time per stage, in the order that they ran."""
    costs = findings.costs
    if not costs:
        return None
    with drawing("costs", 0.8 + 0.34 * len(costs)) as figure:
        axes = figure.subplots()
        rows = np.arange(len(costs))
        axes.barh(rows, [c.seconds for c in costs], 0.58, color=COLOR["accent"])
        for row, cost in zip(rows, costs):
            axes.annotate(
                duration(cost.seconds),
                (cost.seconds, row),
                (6, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(rows, [shortened(c.stage) for c in costs])
        axes.tick_params(axis="y", labelcolor=COLOR["ink"])
        axes.invert_yaxis()
        axes.grid(False)
        axes.grid(True, axis="x")
        linear_axis(axes, "x")
        axes.set_xlim(0, 1.12 * max(max(c.seconds for c in costs), 1e-9))
        title(axes, "wall time [s]")
        return export(figure, "costs", titles(findings)["costs"])


def score_runs_figure(findings: Findings, name: str, heading: str) -> str | None:
    """The headline's scores of each run's first target, run by run (Tuononen et al., Fig. 8)."""
    found = []
    for run_name, run in runs(findings).items():
        target = run.first_scored()
        head = (run.headline.loss, run.headline.variant)
        scoring = next((s for s in run.scores if (s.loss, s.variant) == head), None)
        if target is not None and scoring is not None and target in scoring.scores:
            scores_N = _finite(scoring, target)
            if scores_N.size:
                found.append((run_label(run_name, run), target, scores_N))
    if len(found) < 2:
        return None
    columns = min(len(found), 3)
    lines = math.ceil(len(found) / columns)
    with drawing(name, 0.7 + 2.2 * lines) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, (label, target, scores_N) in zip(panels, found):
            _histogram(axes, scores_N, findings.headline.pool or 50)
            what = f"target {identifier(target)}, {label}"
            title(axes, shortened(what, 60), strong=True)
        for axes in panels[len(found) :]:
            axes.set_visible(False)
        legend(figure, panels[0])
        return export(figure, name, heading)
