"""Every number of the report as plain rows: what the scores found, and what it took."""

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from distinf.report.gram import retraining
from distinf.report.gram.configurations import BETWEEN, ESTIMATORS, groups, place
from distinf.report.gram.findings import Findings
from distinf.report.gram.trials import by_trial, falling, grouped, mean_sd, with_interval
from distinf.report.provenance import cost_rows
from distinf.report.rows import Row

Tables = dict[str, list[Row]]
ANY = "any"  # of all pairs of groups
COUNTED = ("pairs", "premises", "claimed", "triples", "aligned", "more")


def tables(findings: Findings) -> Tables:
    """Name -> rows, for CSV and JSON. Percentages carry `_pct`, percentage points `_points`.

    `low` and `high` bound the 95 % bootstrap interval over datasets, then seeds; missing is NaN or
    None. Tables without rows are left out.
    """
    again = retraining.tables(findings)
    made = {
        "cells": [_cell(c) for c in findings.cells],
        "ranking": list(findings.ranking),
        "detection": detection(findings),
        "free_rankings": free_rankings(findings),
        "scored": [_scored(s) for s in findings.scored],
        "deciles": deciles(findings),
        "curves": curves(findings),
        "modules": modules(findings),
        **again,
        "cancellation": cancellation(findings, again["proxy_points"]),
        "theorem": theorem(findings),
        "correlations": correlations(findings),
        "joint_correlations": joint_correlations(findings),
        "conditioning": conditioning(findings),
        "estimator_times": estimator_times(findings),
        "costs": cost_rows(findings.costs),
    }
    return {name: rows for name, rows in made.items() if rows}


def _cell(cell: Row) -> Row:
    """Per dataset and seed: its sizes, and how the model did that was scored."""
    named = ("dataset", "seed", "rows", "queries", "correct_queries", "flips", "majority_queries",
             "learned_nothing", "suggested_wrong")  # fmt: skip
    best, by_label = cell["best"], cell["label_ndr"]
    row = {"cell": cell["name"], **{name: cell[name] for name in named}}
    row |= {"label_ndr_pct": None if by_label is None else 100 * by_label}
    row |= {"truncated": cell["truncated"], "best_epoch": None if best is None else best + 1}
    for name, series in cell["history"].items():
        row[name] = series[best] if best is not None and best < len(series) else math.nan
    return row


def _scored(row: Row) -> Row:
    """A configuration in a cell, with a summary of its scores."""
    summary = {f"score_{name}": value for name, value in row["scores"].items()}
    return {k: v for k, v in row.items() if k not in ("scores", "curve", "deciles")} | summary


def _rates(findings: Findings, rows: Sequence[Row]) -> dict[str, Row]:
    """Configuration -> NDR and AUC over cells; beside them, in percent, the NDR of rows at random
    and of rows at random with the same given labels as those removed (NaN where none are told)."""
    area, within = by_trial(findings, rows, "auc", 1), by_trial(findings, rows, "within_labels")
    return {
        name: {
            "cells": len(trials),
            **with_interval("ndr_", trials),
            "chance_pct": 100 * findings.share,
            "chance_within_labels_pct": mean_sd("", within.get(name, {}).values())["mean_pct"],
            **mean_sd("auc_", area.get(name, {}).values(), ""),
        }
        for name, trials in by_trial(findings, rows, "ndr").items()
    }


def _most_found(row: Row) -> tuple[float, float]:
    return falling(row["ndr_mean_pct"]), falling(row["auc_mean"])


def detection(findings: Findings) -> list[Row]:
    """Per configuration, most noise found first."""
    named = {s["configuration"]: s for s in findings.scored}
    rows = [
        {k: named[name][k] for k in ("configuration", "estimator", "group", "how")} | rates
        for name, rates in _rates(findings, findings.scored).items()
    ]
    return sorted(rows, key=lambda row: (*_most_found(row), row["configuration"]))


def free_rankings(findings: Findings) -> list[Row]:
    """As `detection`, of the rankings that need no influence."""
    found = _rates(findings, findings.free)
    return sorted(({"ranking": name, **row} for name, row in found.items()), key=_most_found)


def deciles(findings: Findings) -> list[Row]:
    """Per configuration and tenth of its ranking, lowest first: share of the flipped rows there."""
    return [
        {"configuration": name, "decile": k + 1, "share_pct": share}
        for name, shares in _mean_series(findings.scored, "deciles").items()
        for k, share in enumerate(shares)
    ]


def curves(findings: Findings) -> list[Row]:
    """Per ranking, free ones too, and share removed: share of the flipped rows found."""
    found = _mean_series([*findings.scored, *findings.free], "curve")
    return [
        {"configuration": name, "place": k, "removed_pct": 100 * k / max(1, len(shares) - 1),
         "found_pct": share}
        for name, shares in found.items()
        for k, share in enumerate(shares)
    ]  # fmt: skip


def _mean_series(rows: Sequence[Row], what: str) -> dict[str, list[float]]:
    """Configuration -> in percent, mean over cells."""
    found = {}
    for (name,), mine in grouped((r for r in rows if r.get(what)), "configuration").items():
        same = [r[what] for r in mine if len(r[what]) == len(mine[0][what])]
        found[name] = (100 * np.mean(np.array(same, dtype=np.float64), axis=0)).tolist()
    return found


def modules(findings: Findings) -> list[Row]:
    """Per estimator, aggregation, LoRA module and layer: the blocks' own NDR, mean over cells."""
    names = ("estimator", "how", "module", "factor", "layer")
    known = [b for b in findings.blocks if b["layer"] is not None and math.isfinite(b["ndr"])]
    found = grouped(known, *names)
    return [
        dict(zip(names, key, strict=True))
        | {"blocks": len(mine), "ndr_mean_pct": 100 * float(np.mean([b["ndr"] for b in mine]))}
        for key, mine in sorted(
            found.items(), key=lambda item: (place(item[0][0], ESTIMATORS), *item[0][1:])
        )
    ]


def cancellation(findings: Findings, points: list[Row]) -> list[Row]:
    """Per group, as Vitel and Chhabra's Table 1: C in both forms, and over single parameters; its
    correlation with accuracy, where models were trained again."""
    rows, found = [], grouped(findings.cancellation, "group")
    for group in groups(name for (name,) in found):
        mine = found[(group,)]
        row: Row = {"group": group, "cells": len(mine)}
        for name in ("norm", "l1"):
            row |= mean_sd(f"{name}_", [c[name] for c in mine], "")
            if math.isnan(row[f"{name}_mean"]):
                row[f"{name}_mean"] = math.inf
        row["median"] = float(np.median(np.array([c["median"] for c in mine], dtype=np.float64)))
        row |= {name: of(c[name] for c in mine) for name, of in (("least", min), ("most", max))}
        rows.append(row | retraining.c_correlated(points, group))
    return rows


def theorem(findings: Findings) -> list[Row]:
    """Theorem 5.1 of Vitel and Chhabra on the run's gradients. Per least C(w), counts of all cells:
    of any groups first, and then for each theta and w."""
    counted = [
        {"theta": theta, "w": w, "least_c": s.found.level, **asdict(s.found)}
        for s in findings.separated
        for theta, w in ((ANY, ANY), (s.theta, s.w))
    ]
    order = [ANY, *groups(s.theta for s in findings.separated)]
    order += groups({s.w for s in findings.separated} - {*order})
    found = grouped(counted, "theta", "w", "least_c")
    rows = []
    for key in sorted(found, key=lambda k: (order.index(k[0]), order.index(k[1]), k[2])):
        total = {name: sum(s[name] for s in found[key]) for name in COUNTED}
        shares = {
            "premises": "pairs",
            "claimed": "premises",
            "aligned": "triples",
            "more": "triples",
        }
        told = {
            f"{some}_pct": 100 * total[some] / total[every] if total[every] else math.nan
            for some, every in shares.items()
        }
        rows.append({"theta": key[0], "w": key[1], "least_c": key[2], **total, **told})
    return rows


def correlations(findings: Findings) -> list[Row]:
    """Every pair of every matrix once."""
    return [
        {"of": c["title"], "first": second, "second": first, "rho": float(c["values_MM"][i][j])}
        for c in findings.correlations
        for i, first in enumerate(c["names"])
        for j, second in enumerate(c["names"][:i])
    ]


def joint_correlations(findings: Findings) -> list[Row]:
    """The matrix of Spearman's correlations between the mean scores of every estimator in every
    layer group, a row and a column each, mean over cells (Vitel and Chhabra, Figure 12)."""
    if findings.joint is None:
        return []
    names, rows = findings.joint["names"], []
    for name, values_M in zip(names, findings.joint["values_MM"], strict=True):
        estimator, group = name.split(BETWEEN, 1)
        row: Row = {"estimator": estimator, "group": group}
        rows.append(row | dict(zip(names, values_M.tolist(), strict=True)))
    return rows


def conditioning(findings: Findings) -> list[Row]:
    """Per estimator: the damping and the condition numbers over blocks and cells."""
    rows, found = [], grouped(findings.conditioning, "estimator")
    for (name,) in sorted(found, key=lambda key: (len(key[0]), key)):
        mine = found[(name,)]
        conditions, dampings = [c["condition"] for c in mine], [c["damping"] for c in mine]
        finite = [c if math.isfinite(c) else math.inf for c in conditions]
        worst = mine[finite.index(max(finite))]
        row: Row = {"estimator": name, "systems": len(mine)}
        row |= {"least_damping": min(dampings), "most_damping": max(dampings)}
        row |= {"median_condition": float(np.median(conditions))}
        rows.append(row | {"worst_condition": worst["condition"], "worst": worst["block"]})
    return rows


def estimator_times(findings: Findings) -> list[Row]:
    """Per estimator and layer group: seconds of a cell, mean over cells."""
    found = grouped(findings.estimator_times, "estimator", "group")
    order = groups(group for _, group in found)
    rows = []
    for key in sorted(found, key=lambda k: (place(k[0], ESTIMATORS), order.index(k[1]))):
        row: Row = {"estimator": key[0], "group": key[1], "cells": len(found[key])}
        for name in ("wall_s", "processor_s", "alone_s"):
            row[name] = float(np.mean([t[name] for t in found[key]]))
        rows.append(row)
    return rows
