"""Pictures of the machinery: scores, attribution, the spectrum, training and what it cost.

Each function draws into a canvas and returns False where the findings do not hold its data.
Shapes: N training samples, K Ritz values, a map's [S, F] elements.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.numerics.means import running_mean
from distinf.report import svg
from distinf.report.formats import duration, identifier, number, shortened
from distinf.report.maps import scale_bar, show
from distinf.report.rows import Row
from distinf.report.spectral.families import run_label, runs
from distinf.report.spectral.findings import OPPOSITE, SELECTED, Attribution, Findings

BINS, MOST_STEPS = 60, 1_000
MOST_MAPS = 4  # of helpful samples, and of harmful ones
DASHED: Any = {"ls": svg.DASH["reference"], "lw": 1.3}
CLIPPED_SHARE = 0.005  # of the elements, the largest: drawn in the full hue


def scores(findings: Findings, canvas: Figure) -> bool:
    """Histograms of the first target's scores per loss and variant, log counts."""
    target, head = findings.first_scored(), findings.headline
    if target is None:
        return False
    known = [(s, svg.finite(s.scores[target])) for s in findings.scores if target in s.scores]
    sets = [(s, scores_N) for s, scores_N in known if scores_N.size]
    ours = [(s.loss, s.variant) == (head.loss, head.variant) and len(sets) > 1 for s, _ in sets]
    names = [shortened(" ".join(filter(None, (s.loss, s.variant)))) for s, _ in sets]
    columns = 2 if len(sets) in (2, 4) else 4
    panels = list(zip(names, ours, (scores_N for _, scores_N in sets), strict=True))
    return _histograms(findings, panels, columns, 2.0, canvas)


def score_runs(findings: Findings, canvas: Figure) -> bool:
    """The headline's scores of each run's first target, run by run (Tuononen et al., Fig. 8)."""
    panels = []
    for name, run in runs(findings).items():
        target, head = run.first_scored(), (run.headline.loss, run.headline.variant)
        scoring = next((s for s in run.scores if (s.loss, s.variant) == head), None)
        if target is not None and scoring is not None and target in scoring.scores:
            label = shortened(f"target {identifier(target)}, {run_label(name, run)}", 60)
            panels.append((label, True, svg.finite(scoring.scores[target])))
    panels = [p for p in panels if p[2].size]
    return len(panels) > 1 and _histograms(findings, panels, 3, 2.2, canvas)


def _histograms(
    findings: Findings,
    panels: Sequence[tuple[str, bool, np.ndarray]],
    most: int,
    height: float,
    canvas: Figure,
) -> bool:
    if not panels:
        return False
    columns = min(len(panels), most)
    rows = math.ceil(len(panels) / columns)
    every = svg.panels(canvas, 0.7 + height * rows, rows, columns).ravel()
    for axes, (name, strong, scores_N) in zip(every, panels):
        _histogram(axes, np.sort(scores_N), findings.headline.pool or 50)
        svg.title(axes, name, strong)
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    svg.legend(canvas, every[0])
    return True


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


def ritz(findings: Findings, canvas: Figure) -> bool:
    """Sizes of the converged Ritz values and their residuals, most extreme first."""
    pairs = findings.ritz
    places = pairs.converged() if pairs is not None else []
    if pairs is None or not places:
        return False
    left, right = canvas.subplots(1, 2, width_ratios=[1.25, 1])
    values_K, residuals_K = (np.array(v)[places] for v in (pairs.values_K, pairs.residuals_K))
    residuals_K, rank_K = np.maximum(residuals_K, 1e-18), np.array(places) + 1
    style: Any = {"ms": 4.2, "mew": 0}
    negative = (values_K < 0, "harmful", "v", "negative (its size is drawn)")
    for mask, color, marker, label in ((values_K > 0, "accent", "o", "positive"), negative):
        if mask.any():
            sizes_K = np.abs(values_K[mask])
            svg.line(left, rank_K[mask], sizes_K, color, marker, label=label, **style)
            svg.line(right, rank_K[mask], residuals_K[mask], color, marker, **style)
    mean = pairs.complement_mean or 0.0
    lines = ((pairs.damping, "random", "damping λ"), (mean, "reference", "mean of the rest μ"))
    for value, color, label in lines:
        if value > 0:
            svg.level(left, value, color, False, label=label, **DASHED)
    shown = [value for value, *_ in lines if value > 0]
    svg.log_axis(left, "y", [*np.abs(values_K), *shown])
    svg.log_axis(right, "y", residuals_K.tolist())
    svg.title(left, "size of the Ritz value |θ|")
    svg.title(right, "residual ‖Hu − θu‖")
    for axes in (left, right):
        for place in (k for k in places if not pairs.is_kept(k)):
            named: Any = {"label": "not kept"} if axes is left else {}
            svg.level(axes, place + 1, "muted", lw=0.9, ls=":", **named)
        svg.linear_axis(axes, "x", integer=True)
        axes.set_xlabel("rank")
    svg.legend(canvas, left)
    return True


def truncation(terms: Sequence[Row], kept: int, canvas: Figure) -> bool:
    """How much each further Ritz value lowers the truncation bound (Tuononen et al., Fig. 5, 6)."""
    if not terms:
        return False
    x, (left, right) = np.array([r["terms"] for r in terms]), svg.panels(canvas, 3.3, 1, 2)[0]
    lowered: list[float] = []
    frobenius = ("sum_sq", "soft", "s", "Frobenius norm of what is dropped")
    for kind, color, marker, label in (frobenius, ("max", "accent", "o", "largest value dropped")):
        share, amount = (np.array([r[f"lowered_{kind}{u}"] for r in terms]) for u in ("_pct", ""))
        lowered += amount[amount > 0].tolist()
        style: Any = {"marker": marker, "ms": 3.4, "mew": 0, "lw": 0.8}
        svg.line(left, x, share, color, label=label, **style)
        svg.line(right, x, np.where(amount > 0, amount, np.nan), color, **style)
    for axes in (left, right):
        svg.level(axes, kept, "random", label=f"k = {kept}, as chosen", **DASHED)
        svg.linear_axis(axes, "x", integer=True)
        axes.set_xlabel("terms kept, k")
    svg.linear_axis(left, "y")
    left.set_ylim(bottom=0)
    svg.log_axis(right, "y", lowered)
    svg.title(left, "by how much term k lowers the bound [%]")
    svg.title(right, "the same, absolute")
    svg.legend(canvas, left, most=40)
    return True


def training(rows: Sequence[Row], label: str, canvas: Figure) -> bool:
    """Training loss: each step pale, its running mean on top."""
    if len(rows) < 2:
        return False
    step, loss = (np.array([r[k] for r in rows]) for k in ("step", "loss"))
    every, axes = math.ceil(step.size / MOST_STEPS), svg.panels(canvas, 2.9, 1, 1)[0][0]
    svg.line(axes, step[::every], loss[::every], "accent", lw=0.9, alpha=0.35)
    smooth = running_mean(loss, max(1, step.size // 40))
    svg.line(axes, step[::every], smooth[::every], "accent")
    known = svg.finite(loss)
    log = bool(known.size) and known.min() > 0 and known.max() > 4 * known.min()
    svg.axis(axes, "y", known.tolist(), log)
    svg.linear_axis(axes, "x")
    axes.set_xlabel("training step")
    svg.title(axes, label)
    return True


def costs(rows: Sequence[Row], canvas: Figure) -> bool:
    """Wall time per stage, in the order that they ran."""
    rows = [r for r in rows if r["stage"] != "total"]
    if not rows:
        return False
    seconds, height = [r["seconds"] for r in rows], 0.8 + 0.34 * len(rows)
    axes = svg.panels(canvas, height, 1, 1)[0][0]
    axes.barh(range(len(rows)), seconds, 0.58, color=svg.COLOR["accent"])
    for row, taken in enumerate(seconds):
        svg.note(axes, duration(taken), (taken, row), 6)
    svg.row_axis(axes, [shortened(r["stage"]) for r in rows])
    axes.set_xlim(0, 1.12 * max(*seconds, 1e-9))
    svg.title(axes, "wall time [s]")
    return True


def attribution(found: Sequence[Attribution], canvas: Figure) -> bool:
    """One target's pictured samples: helpful ones at the left, harmful ones at the right."""
    drawn = sorted((a for a in found if np.any(svg.finite(a.parts_SF))), key=lambda a: abs(a.rank))
    sides = [[a for a in drawn if a.rank > 0], [a for a in drawn if a.rank < 0]]
    sides = [side[:MOST_MAPS] for side in sides if side]
    if not sides:
        return False
    lines = max(len(side) for side in sides)
    canvas.set_figheight(0.85 + 2.05 * lines)
    grid = canvas.add_gridspec(
        lines + 1, len(sides), height_ratios=[*[1.0] * lines, 0.055], wspace=0.14
    )
    for column, side in enumerate(sides):
        for line, shown in enumerate(side):
            _map(canvas, grid[line, column], shown, line + 1 == len(side))
    labels = ["harmful, full colour", "0", "helpful, full colour"]
    bar = canvas.add_subplot(grid[-1, :])
    scale_bar(bar, (-0.86, 0.0, 0.86), labels, "an element's part of the score")
    return True


def _map(canvas: Figure, place: Any, shown: Attribution, last: bool) -> None:
    parts_SF = np.atleast_2d(np.asarray(shown.parts_SF, dtype=np.float64))
    sizes = np.abs(svg.finite(parts_SF))
    reach = float(np.quantile(sizes, 1 - CLIPPED_SHARE)) or float(sizes.max())
    inner = place.subgridspec(
        2, 2, height_ratios=[1, 2.4], width_ratios=[7, 1], hspace=0.04, wspace=0.03
    )
    axes = canvas.add_subplot(inner[1, 0])
    show(axes, parts_SF / reach)
    above = canvas.add_subplot(inner[0, 0], sharex=axes)
    beside = canvas.add_subplot(inner[1, 1], sharey=axes)
    for side, axis in ((above, 0), (beside, 1)):
        _sums(side, np.nansum(parts_SF, axis=axis), across=side is above)
    svg.linear_axis(axes, "x", integer=True)
    svg.linear_axis(axes, "y", integer=True)
    axes.locator_params(axis="y", nbins=4)
    axes.set_ylabel(shortened(shown.axes[0], 20))
    if last:
        axes.set_xlabel(shortened(shown.axes[-1], 30))
    kind = SELECTED if shown.rank > 0 else OPPOSITE
    what = f"{kind} {abs(shown.rank)}: sample {identifier(shown.id)}, score {number(shown.score)}"
    svg.title(above, f"{what}; full colour ±{number(reach, 2)}", strong=True)


def _sums(axes: Axes, sums: np.ndarray, across: bool) -> None:
    """Bars of the sums over the other axis, in the hues of the map."""
    fill = axes.fill_between if across else axes.fill_betweenx
    for mask, color in ((sums > 0, "helpful"), (sums < 0, "harmful")):
        length = np.where(mask, sums, 0.0)
        fill(np.arange(sums.size), length, step="mid", color=svg.COLOR[color], lw=0)
    svg.level(axes, 0, "muted", not across, lw=0.7)
    axes.grid(False)
    axes.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    axes.spines["bottom"].set_visible(False)
