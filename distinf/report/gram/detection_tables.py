"""Rows about what the scores found: rates, deciles, blocks, cancellation, conditioning."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distinf.numerics.bootstrap import estimate
from distinf.report.gram.findings import (
    BETWEEN,
    Configuration,
    EstimatorTime,
    Findings,
    FreeRanking,
    Scored,
)
from distinf.report.gram.summaries import (
    Row,
    areas,
    estimators,
    falling,
    groups,
    keys,
    mean_sd,
    place,
    rates,
    summary,
)
from distinf.report.rows import plain
from distinf.tasks.notes import beside


def cells(findings: Findings) -> list[Row]:
    """Per dataset and seed: its sizes, and how the model did that was scored."""
    rows = []
    for c in findings.cells:
        row: Row = {"cell": c.name, "dataset": c.dataset, "seed": c.seed, "rows": c.rows}
        row |= {"queries": c.queries, "correct_queries": c.correct_queries, "flips": c.flips}
        row |= {"majority_queries": c.majority_queries, "learned_nothing": c.learned_nothing}
        row |= {"suggested_wrong": c.suggested_wrong}
        row |= {"label_ndr_pct": None if c.label_ndr is None else 100 * c.label_ndr}
        row |= {"truncated": c.truncated, "best_epoch": None if c.best is None else c.best + 1}
        for name, series in c.history.items():
            known = c.best is not None and c.best < len(series)
            row[name] = series[c.best or 0] if known else math.nan
        rows.append(row)
    return rows


def detection(findings: Findings) -> list[Row]:
    """Per configuration, most noise found first: NDR and AUC over cells, with intervals."""
    found, area = rates(findings), areas(findings)
    rows = []
    for name, trials in found.items():
        made = Configuration.of(name)
        assert made is not None
        row: Row = {"configuration": name, "estimator": made.estimator, "group": made.group}
        row |= {"how": made.how, "cells": len(trials)}
        row |= summary("ndr_", estimate(trials))
        row |= _chances(findings, [s for s in findings.scored if s.name == name])
        row |= mean_sd("auc_", area.get(name, {}), "")
        rows.append(row)
    return sorted(
        rows,
        key=lambda r: (falling(r["ndr_mean_pct"]), falling(r["auc_mean"]), r["configuration"]),
    )


def free_rankings(findings: Findings) -> list[Row]:
    """As `detection`, of the rankings that need no influence, those that find the most first."""
    trial = keys(findings)
    rows = []
    for name in dict.fromkeys(f.name for f in findings.free):
        mine = [f for f in findings.free if f.name == name]
        row: Row = {"ranking": name, "cells": len(mine)}
        row |= summary("ndr_", estimate({trial[f.cell]: 100 * f.ndr for f in mine}))
        row |= _chances(findings, mine)
        rows.append(row | mean_sd("auc_", {trial[f.cell]: f.auc for f in mine}, ""))
    return sorted(rows, key=lambda r: (falling(r["ndr_mean_pct"]), falling(r["auc_mean"])))


def _chances(findings: Findings, mine: Sequence[Scored | FreeRanking]) -> Row:
    """In percent: the NDR of rows at random, and of rows at random with the same given labels as
    those removed, mean over cells (NaN where labels are not told)."""
    within = [100 * s.within_labels for s in mine if s.within_labels is not None]
    mean = float(np.mean(within)) if within else math.nan
    return {"chance_pct": 100 * findings.headline.share, "chance_within_labels_pct": mean}


def deciles(findings: Findings) -> list[Row]:
    """Per configuration and tenth of its ranking, lowest first: share of the flipped rows there."""
    return _spread(findings, "deciles", "decile", "share_pct", 1)


def curves(findings: Findings) -> list[Row]:
    """Per configuration and share removed: share of the flipped rows found, mean over cells; and
    of the free rankings."""
    return _spread(findings, "curve", "place", "found_pct", 0)


def _spread(findings: Findings, what: str, key: str, value: str, first: int) -> list[Row]:
    by_name: dict[str, list[Any]] = {}
    every: list[Any] = [*findings.scored, *(findings.free if what == "curve" else ())]
    for scored in every:
        if len(getattr(scored, what)):
            by_name.setdefault(scored.name, []).append(getattr(scored, what))
    rows = []
    for name, series in by_name.items():
        same = [s for s in series if len(s) == len(series[0])]
        means = 100 * np.mean(np.array(same, dtype=np.float64), axis=0)
        for k, mean in enumerate(means):
            at = {} if first else {"removed_pct": 100 * k / max(1, len(means) - 1)}
            rows.append({"configuration": name, key: k + first, **at, value: float(mean)})
    return rows


def scored(findings: Findings) -> list[Row]:
    """Every configuration in every cell, with a summary of its scores."""
    rows = []
    for s in findings.scored:
        row: Row = {"cell": s.cell, "configuration": s.name, "estimator": s.estimator}
        row |= {"group": s.group, "how": s.how, "ndr": s.ndr, "auc": s.auc}
        row |= {"within_labels": s.within_labels}
        rows.append(row | {f"score_{name}": v for name, v in s.scores.items()})
    return rows


def modules(findings: Findings) -> list[Row]:
    """Per estimator, aggregation, LoRA module and layer: the blocks' own NDR, mean over cells."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for b in findings.blocks:
        if b.layer is not None and math.isfinite(b.ndr):
            key = (b.estimator, b.how, b.module, b.factor, b.layer)
            found.setdefault(key, []).append(b.ndr)
    names = ("estimator", "how", "module", "factor", "layer")
    order = estimators(findings)
    ordered = sorted(found, key=lambda k: (place(k[0], order), *k[1:]))
    return [
        dict(zip(names, key, strict=True))
        | {"blocks": len(found[key]), "ndr_mean_pct": 100 * float(np.mean(found[key]))}
        for key in ordered
    ]


def cancellation(findings: Findings) -> list[Row]:
    """Per group, as Vitel and Chhabra's Table 1: C in both forms, and over single parameters."""
    rows = []
    for group in groups(c.group for c in findings.cancellation):
        mine = [c for c in findings.cancellation if c.group == group]
        row: Row = {"group": group, "cells": len(mine)}
        for name in ("norm", "l1"):
            values = np.array([getattr(c, name) for c in mine], dtype=np.float64)
            known = values[np.isfinite(values)]
            row[f"{name}_mean"] = float(known.mean()) if known.size else math.inf
            row[f"{name}_sd"] = float(known.std(ddof=1)) if known.size > 1 else math.nan
        row["median"] = _middle(c.median for c in mine)
        row["least"] = min(c.least for c in mine)
        row["most"] = max(c.most for c in mine)
        rows.append(row)
    return rows


def _middle(values: Iterable[float]) -> float:
    return float(np.median(np.array(list(values), dtype=np.float64)))


def correlations(findings: Findings) -> list[Row]:
    """Every pair of every matrix once."""
    rows = []
    for c in findings.correlations:
        values_MM = np.asarray(c.values_MM, dtype=np.float64)
        for i, first in enumerate(c.names):
            for j, second in enumerate(c.names[:i]):
                pair = {"of": c.title, "first": second, "second": first}
                rows.append(pair | {"rho": float(values_MM[i, j])})
    return rows


def joint_correlations(findings: Findings) -> list[Row]:
    """The matrix of Spearman's correlations between the mean scores of every estimator in every
    layer group, a row and a column each, mean over cells (Vitel and Chhabra, Figure 12)."""
    if findings.joint is None:
        return []
    rows = []
    for name, values_M in zip(findings.joint.names, findings.joint.values_MM, strict=True):
        estimator, group = name.split(BETWEEN, 1)
        row: Row = {"estimator": estimator, "group": group}
        rows.append(row | dict(zip(findings.joint.names, values_M.tolist(), strict=True)))
    return rows


def conditioning(findings: Findings) -> list[Row]:
    """Per estimator: the damping and the condition numbers over blocks and cells."""
    rows = []
    for name in sorted({c.estimator for c in findings.conditioning}, key=lambda n: (len(n), n)):
        mine = [c for c in findings.conditioning if c.estimator == name]
        worst = max(mine, key=lambda c: c.condition if math.isfinite(c.condition) else math.inf)
        row: Row = {"estimator": name, "systems": len(mine)}
        row |= {"least_damping": min(c.damping for c in mine)}
        row |= {"most_damping": max(c.damping for c in mine)}
        row |= {"median_condition": _middle(c.condition for c in mine)}
        rows.append(row | {"worst_condition": worst.condition, "worst": worst.block})
    return rows


def ranking(findings: Findings) -> list[Row]:
    """The lowest rows of the headline's ranking, with their text, as the ranked CSV has them."""
    rows = []
    for r in findings.ranking:
        row: Row = {"cell": r.cell, "rank": r.rank, "row": r.row, "score": r.score}
        row |= {"label": r.label, "flipped": r.flipped, "text": r.text}
        rows.append(beside(row, r.columns))
    return rows


def estimator_times(findings: Findings) -> list[Row]:
    """Per estimator and layer group: seconds of a cell, mean over cells."""
    found: dict[tuple[str, str], list[EstimatorTime]] = {}
    for t in findings.estimator_times:
        found.setdefault((t.estimator, t.group), []).append(t)
    every, order = groups(g for _, g in found), estimators(findings)
    rows = []
    for key in sorted(found, key=lambda k: (place(k[0], order), every.index(k[1]))):
        row: Row = {"estimator": key[0], "group": key[1], "cells": len(found[key])}
        for name in ("wall_s", "processor_s", "alone_s"):
            row[name] = float(np.mean([getattr(t, name) for t in found[key]]))
        rows.append(row)
    return rows


def costs(findings: Findings) -> list[Row]:
    """Per stage, then the total; `bytes` is what the stage stored."""
    rows = [plain(c) for c in findings.costs]
    if len(rows) < 2:
        return rows
    names = ("units", "seconds", "worker_seconds", "bytes")
    return [*rows, {"stage": "total"} | {n: sum(r[n] for r in rows) for n in names}]
