"""Pictures of the machinery: scores, attribution, the spectrum and training.

Each function draws into a canvas, or nothing where the findings do not hold its data.
Shapes: N training samples, K Ritz values, a map's [S, F] elements.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.numerics.means import running_mean
from distinf.report import svg
from distinf.report.formats import identifier, number, shortened
from distinf.report.maps import scale_bar, show
from distinf.report.rows import Row
from distinf.report.spectral.families import run_label, runs
from distinf.report.spectral.findings import OPPOSITE, SELECTED, Attribution, Findings

BINS, MOST_STEPS = 60, 1_000
MOST_MAPS = 4  # of helpful samples, and of harmful ones
DASHED: Any = {"ls": svg.DASH["reference"], "lw": 1.3}
CLIPPED_SHARE = 0.005  # of the elements, the largest: drawn in the full hue


def scores(findings: Findings, canvas: Figure) -> None:
    """The first target's scores per loss and variant."""
    target = findings.first_scored()
    found = {
        " ".join(filter(None, (s.loss, s.variant))): s.scores[target]
        for s in findings.scores
        if target is not None and target in s.scores
    }
    _histograms(findings, found, 2 if len(found) in (2, 4) else 4, canvas)


def score_runs(findings: Findings, canvas: Figure) -> None:
    """The headline's scores of each run's first target, run by run (Tuononen et al., Fig. 8)."""
    found = {}
    for name, run in runs(findings).items():
        target, scores = run.first_scored() or 0, run.headline_scores()
        if target in scores:
            found[f"target {identifier(target)}, {run_label(name, run)}"] = scores[target]
    if len(found) > 1:
        _histograms(findings, found, 3, canvas)


def _histograms(
    findings: Findings, found: Mapping[str, np.ndarray], most: int, canvas: Figure
) -> None:
    """One per name, `most` beside each other, with log counts."""
    shown = {name: np.sort(svg.finite(scores_N)) for name, scores_N in found.items()}
    shown = {name: scores_N for name, scores_N in shown.items() if scores_N.size}
    if not shown:
        return
    every = svg.grid_of(canvas, len(shown), min(len(shown), most), 2.1, 0.7)
    for axes, (name, scores_N) in zip(every, shown.items(), strict=True):
        _histogram(axes, scores_N, findings.headline.pool or 50)
        svg.title(axes, shortened(name, 60))
    svg.legend(canvas, every[0])


def _histogram(axes: Axes, ordered_N: np.ndarray, pool: int) -> None:
    pool = min(pool, ordered_N.size // 2)
    low, high = ordered_N[0], ordered_N[-1]
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    for part_N, color, label in (
        (ordered_N, "soft", "all training samples"),
        (ordered_N[:pool], "harmful", f"the {pool} most harmful"),
        (ordered_N[ordered_N.size - pool :], "helpful", f"the {pool} most helpful"),
    ):
        counts, _ = np.histogram(part_N, edges)
        shown = counts > 0
        place = (edges[:-1][shown], counts[shown] - 0.7, np.diff(edges)[shown])
        axes.bar(*place, bottom=0.7, align="edge", color=svg.COLOR[color], label=label, lw=0)
    svg.log_axis(axes, "y", [0.7, float(ordered_N.size)])
    axes.set_ylim(0.7, None)
    svg.linear_axis(axes, "x")
    axes.locator_params(axis="x", nbins=4)
    svg.level(axes, 0, "muted", lw=0.9)


def ritz(rows: Sequence[Row], findings: Findings, canvas: Figure) -> None:
    """Sizes of the converged Ritz values and their residuals, most extreme first."""
    pairs, shown = findings.ritz, [r for r in rows if r["converged"]]
    if pairs is None or not shown:
        return
    left, right = canvas.subplots(1, 2, width_ratios=[1.25, 1])
    sizes = [abs(r["value"]) for r in shown]
    residuals = [max(r["residual"], 1e-18) for r in shown]
    signs = {1: ("accent", "o", "positive"), -1: ("harmful", "v", "negative (its size is drawn)")}
    for sign, (color, marker, label) in signs.items():
        at = [k for k, r in enumerate(shown) if np.sign(r["value"]) == sign]
        for axes, y, name in ((left, sizes, label if at else None), (right, residuals, None)):
            x, y = ([of[k] for k in at] for of in ([r["rank"] for r in shown], y))
            svg.line(axes, x, y, color, marker, label=name, ms=4.2, mew=0)
    mean = ("reference", "mean of the rest μ", pairs.complement_mean or 0.0)
    for color, label, value in (("random", "damping λ", pairs.damping), mean):
        if value > 0:
            svg.level(left, value, color, False, label=label, **DASHED)
            sizes.append(value)
    for axes, values, title in (
        (left, sizes, "size of the Ritz value |θ|"),
        (right, residuals, "residual ‖Hu − θu‖"),
    ):
        svg.frame(axes, title, "rank", whole=True)
        svg.log_axis(axes, "y", values)
        for r in (r for r in shown if not r["kept"]):
            svg.level(axes, r["rank"], "muted", lw=0.9, ls=":", label="not kept")
    svg.legend(canvas, left)


def truncation(terms: Sequence[Row], kept: int, canvas: Figure) -> None:
    """How much each further Ritz value lowers the truncation bound (Tuononen et al., Fig. 5, 6)."""
    if not terms:
        return
    x, (left, right) = np.array([r["terms"] for r in terms]), svg.panels(canvas, 3.3, 1, 2)[0]
    lowered: list[float] = []
    frobenius = ("sum_sq", "soft", "s", "Frobenius norm of what is dropped")
    for kind, color, marker, label in (frobenius, ("max", "accent", "o", "largest value dropped")):
        share, amount = (np.array([r[f"lowered_{kind}{u}"] for r in terms]) for u in ("_pct", ""))
        lowered += amount[amount > 0].tolist()
        style: Any = {"marker": marker, "ms": 3.4, "mew": 0, "lw": 0.8}
        svg.line(left, x, share, color, label=label, **style)
        svg.line(right, x, np.where(amount > 0, amount, np.nan), color, **style)
    for axes, title in ((left, "by how much term k lowers the bound [%]"), (right, "absolute")):
        svg.level(axes, kept, "random", label=f"k = {kept}, as chosen", **DASHED)
        svg.frame(axes, title, "terms kept, k", whole=True)
    left.set_ylim(bottom=0)
    svg.log_axis(right, "y", lowered)
    svg.legend(canvas, left, most=40)


def training(rows: Sequence[Row], label: str, canvas: Figure) -> None:
    """Training loss: each step pale, its running mean on top."""
    if len(rows) < 2:
        return
    step, loss = (np.array([r[k] for r in rows]) for k in ("step", "loss"))
    every, axes = math.ceil(step.size / MOST_STEPS), svg.panels(canvas, 2.9, 1, 1)[0][0]
    svg.line(axes, step[::every], loss[::every], "accent", lw=0.9, alpha=0.35)
    smooth = running_mean(loss, max(1, step.size // 40))
    svg.line(axes, step[::every], smooth[::every], "accent")
    known = svg.finite(loss)
    log = bool(known.size) and known.min() > 0 and known.max() > 4 * known.min()
    svg.frame(axes, label, "training step")
    svg.axis(axes, "y", known.tolist(), log)


def attribution(found: Sequence[Attribution], canvas: Figure) -> None:
    """One target's pictured samples: helpful ones at the left, harmful ones at the right."""
    drawn = sorted((a for a in found if np.any(svg.finite(a.parts_SF))), key=lambda a: abs(a.rank))
    sides = [[a for a in drawn if a.rank * sign > 0][:MOST_MAPS] for sign in (1, -1)]
    sides = [side for side in sides if side]
    if not sides:
        return
    lines = max(map(len, sides))
    canvas.set_figheight(0.85 + 2.05 * lines)
    shape: Any = {"height_ratios": [*[1.0] * lines, 0.055], "wspace": 0.14}
    grid = canvas.add_gridspec(lines + 1, len(sides), **shape)
    for column, side in enumerate(sides):
        for line, shown in enumerate(side):
            _map(canvas, grid[line, column], shown, line + 1 == len(side))
    labels = ["harmful, full colour", "0", "helpful, full colour"]
    bar = canvas.add_subplot(grid[-1, :])
    scale_bar(bar, (-0.86, 0.0, 0.86), labels, "an element's part of the score")


def _map(canvas: Figure, place: Any, shown: Attribution, last: bool) -> None:
    """A sample's parts, and bars of their sums over either axis in the hues of the map."""
    parts_SF = np.atleast_2d(np.asarray(shown.parts_SF, dtype=np.float64))
    sizes = np.abs(svg.finite(parts_SF))
    reach = float(np.quantile(sizes, 1 - CLIPPED_SHARE)) or float(sizes.max())
    shape: Any = {"height_ratios": [1, 2.4], "width_ratios": [7, 1], "hspace": 0.04}
    inner = place.subgridspec(2, 2, wspace=0.03, **shape)
    axes = canvas.add_subplot(inner[1, 0])
    show(axes, parts_SF / reach)
    above = canvas.add_subplot(inner[0, 0], sharex=axes)
    beside = canvas.add_subplot(inner[1, 1], sharey=axes)
    for side, axis, bars in ((above, 0, above.fill_between), (beside, 1, beside.fill_betweenx)):
        sums = np.nansum(parts_SF, axis=axis)
        for sign, color in ((1, "helpful"), (-1, "harmful")):
            length = np.where(sums * sign > 0, sums, 0.0)
            bars(np.arange(sums.size), length, step="mid", color=svg.COLOR[color], lw=0)
        svg.level(side, 0, "muted", side is beside, lw=0.7)
        side.grid(False)
        side.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
        side.spines["bottom"].set_visible(False)
    svg.linear_axis(axes, "x", integer=True)
    svg.linear_axis(axes, "y", integer=True)
    axes.locator_params(axis="y", nbins=4)
    axes.set_ylabel(shortened(shown.axes[0], 20))
    axes.set_xlabel(shortened(shown.axes[-1], 30) if last else "")
    kind = SELECTED if shown.rank > 0 else OPPOSITE
    what = f"{kind} {abs(shown.rank)}: sample {identifier(shown.id)}, score {number(shown.score)}"
    svg.title(above, f"{what}; full colour ±{number(reach, 2)}", strong=True)
