"""Rows about the machinery: scores, top samples, spectrum, training, attribution and cost."""

import math
from typing import get_args

import numpy as np

from distinf.numerics.krylov import has_converged
from distinf.numerics.truncation import Kind, marginal_reductions, truncation_bound
from distinf.report.rows import array_summary, plain
from distinf.report.spectral.findings import Findings
from distinf.report.spectral.summaries import Row, extra


def scores(findings: Findings) -> list[Row]:
    """Per loss, variant and target: how the training samples' scores are distributed."""
    rows = []
    for scoring in findings.scores:
        for target, scores_N in scoring.scores.items():
            row: Row = {"loss": scoring.loss, "variant": scoring.variant, "target": target}
            row |= array_summary(scores_N)
            row["helpful"] = int(np.sum(np.asarray(scores_N) > 0))
            row["nonpositive_denominators"] = scoring.nonpositive_denominators
            if target in scoring.outside_shares:
                row["outside_share"] = scoring.outside_shares[target]
            rows.append(row)
    return rows


def top_samples(findings: Findings) -> list[Row]:
    own = ("target", "rank", "id", "score")
    return [
        {name: getattr(s, name) for name in own} | extra(s.columns, own)
        for s in findings.top_samples
    ]


def ritz(findings: Findings) -> list[Row]:
    """Ritz pairs in order; `drop` is how much smaller in size the next value is (0 to 1)."""
    pairs = findings.ritz
    if pairs is None:
        return []
    sizes = [abs(v) for v in pairs.values_K]
    rows = []
    for k, (value, residual) in enumerate(zip(pairs.values_K, pairs.residuals_K, strict=True)):
        last = k + 1 == len(sizes) or sizes[k] == 0
        drop = math.nan if last else 1 - sizes[k + 1] / sizes[k]
        row = {"rank": k + 1, "value": value, "residual": residual}
        row |= {"converged": has_converged(value, residual)}
        rows.append(row | {"kept": pairs.is_kept(k), "drop": drop})
    return rows


def training(findings: Findings) -> list[Row]:
    curve = findings.training
    if curve is None:
        return []
    return [{"step": s, "loss": x} for s, x in zip(curve.steps, curve.loss, strict=True)]


def costs(findings: Findings) -> list[Row]:
    """Per stage, then the total; `bytes` is what the stage stored."""
    rows = [plain(c) for c in findings.costs]
    if len(rows) < 2:
        return rows
    names = ("units", "seconds", "worker_seconds", "bytes")
    return [*rows, {"stage": "total"} | {n: sum(r[n] for r in rows) for n in names}]


def truncation(findings: Findings) -> list[Row]:
    """Per term added, the bound on what is dropped and by how much the term lowered it.

    From the values of all Krylov steps that have converged, where more of them are known than were
    kept; see numerics.truncation, which says what is reconstructed.
    """
    pairs = findings.ritz
    values = pairs.converged_values() if pairs is not None else []
    if pairs is None or len(values) <= max(2, len(pairs.values_K)):
        return []
    rows: list[Row] = [{"terms": k} for k in range(1, len(values))]
    for kind in get_args(Kind):
        bounds = truncation_bound(values, kind)
        lowered, share = marginal_reductions(bounds)
        for k, row in enumerate(rows):
            row[f"bound_{kind}"] = float(bounds[k + 1])
            row[f"lowered_{kind}"] = float(lowered[k])
            row[f"lowered_{kind}_pct"] = 100 * float(share[k])
    return rows


def attributions(findings: Findings) -> list[Row]:
    """Per pictured sample: its score, and how concentrated the parts are that add up to it.

    `top_tenth_pct`: share of all absolute parts that the largest tenth of the elements hold.
    """
    rows = []
    for a in findings.attributions:
        parts_SF = np.atleast_2d(np.asarray(a.parts_SF, dtype=np.float64))
        sizes = np.sort(np.abs(parts_SF[np.isfinite(parts_SF)]))[::-1]
        total = float(sizes.sum())
        tenth = float(sizes[: math.ceil(sizes.size / 10)].sum())
        row: Row = {"target": a.target, "rank": a.rank, "id": a.id, "score": a.score}
        row |= {"elements": int(sizes.size), "left_out": int(parts_SF.size - sizes.size)}
        row |= {"sum": float(np.nansum(parts_SF)), "above_0_pct": math.nan}
        if sizes.size:
            row["above_0_pct"] = 100 * float(np.mean(parts_SF[np.isfinite(parts_SF)] > 0))
        row["top_tenth_pct"] = 100 * tenth / total if total > 0 else math.nan
        for axis, name in enumerate(a.axes):
            sums = np.nansum(parts_SF, axis=1 - axis)
            row[f"strongest_{name}"] = int(np.argmax(np.abs(sums)))
        rows.append(row)
    return rows


def attribution_sums(findings: Findings) -> list[Row]:
    """Per pictured sample, axis and place on it: the sum of the parts there."""
    rows = []
    for a in findings.attributions:
        parts_SF = np.atleast_2d(np.asarray(a.parts_SF, dtype=np.float64))
        for axis, name in enumerate(a.axes):
            told: Row = {"target": a.target, "rank": a.rank, "id": a.id, "axis": name}
            sums = np.nansum(parts_SF, axis=1 - axis)
            rows += [told | {"place": k, "sum": float(s)} for k, s in enumerate(sums)]
    return rows
