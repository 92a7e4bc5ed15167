"""Every number of the report as plain rows: what the scores found, and what it took."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from distinf.gram.configurations import BETWEEN, ORDER, group_order, groups, place
from distinf.gram.sensitivity import NAMES
from distinf.numerics.metrics import only_by_label
from distinf.report.gram import retraining
from distinf.report.gram.against import against
from distinf.report.gram.findings import Findings
from distinf.report.gram.trials import by_trial, falling, mean_sd, with_interval
from distinf.report.provenance import cost_rows
from distinf.report.rows import Row, combined, grouped

Tables = dict[str, list[Row]]
ANY = "any"  # of all pairs of groups
COUNTED = ("pairs", "premises", "claimed", "triples", "aligned", "more")
SHARES = {"premises": "pairs", "claimed": "premises", "aligned": "triples", "more": "triples"}
TIMES = ("wall_s", "processor_s", "alone_s")


def tables(findings: Findings) -> Tables:
    """Name -> rows, for CSV and JSON. Percentages carry `_pct`, percentage points `_points`.

    `low` and `high` bound the 95 % bootstrap interval over datasets, then seeds; missing is NaN or
    None. Tables without rows are left out.
    """
    again = retraining.tables(findings)
    named = ("configuration", "estimator", "group", "how")
    made = {
        "cells": [_cell(c) for c in findings.cells],
        "ranking": list(findings.ranking),
        "by_query": list(findings.by_query),
        "detection": rates(findings, findings.scored, **{name: name for name in named}),
        "free_rankings": rates(findings, findings.free, ranking="configuration"),
        "against_baselines": against(findings),
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
        "sensitivity": sensitivity(findings),
        "loss_and_influence": loss_and_influence(findings),
        "costs": cost_rows(findings.costs),
        "tokens": list(findings.tokens),
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


def rates(findings: Findings, rows: Sequence[Row], **named: str) -> list[Row]:
    """NDR and AUC over cells, most noise found first; beside them, in percent, the NDR of rows at
    random and of rows at random with the same given labels as those removed (NaN where none are
    told), and whether it finds no more than these do. named: columns, and which of `rows` they
    are."""
    of = {row["configuration"]: row for row in rows}
    area, within = by_trial(findings, rows, "auc", 1), by_trial(findings, rows, "within_labels")
    by_class = only_by_class(findings, rows)
    found = [
        {column: of[name][key] for column, key in named.items()}
        | {"cells": len(trials), **with_interval("ndr_", trials)}
        | {"chance_pct": 100 * findings.share}
        | {"chance_within_labels_pct": mean_sd("", within.get(name, {}).values())["mean_pct"]}
        | mean_sd("auc_", area.get(name, {}).values(), "")
        | {"only_by_class": by_class.get(name)}
        for name, trials in sorted(by_trial(findings, rows, "ndr").items())
    ]
    return sorted(found, key=lambda row: (falling(row["ndr_mean_pct"]), falling(row["auc_mean"])))


def only_by_class(findings: Findings, rows: Sequence[Row]) -> dict[str, bool]:
    """Of the rankings whose labels are told in every cell: whether they only sort by class."""
    counts = {c["name"]: (c["rows"], c["flips"]) for c in findings.cells}
    found = {}
    for (name,), mine in grouped(rows, "configuration").items():
        within = [(row["within_labels"], row.get("within_labels_sd")) for row in mine]
        known = [(mean, sd) for mean, sd in within if mean is not None and sd is not None]
        if len(known) == len(mine):
            of, ndrs = [counts[row["cell"]] for row in mine], [row["ndr"] for row in mine]
            found[name] = only_by_label(ndrs, known, of, findings.share)
    return found


def deciles(findings: Findings) -> list[Row]:
    """Per configuration and tenth of its ranking, lowest first: share of the flipped rows there."""
    return _series(findings.scored, "deciles", "share_pct", lambda k, _: {"decile": k + 1})


def curves(findings: Findings) -> list[Row]:
    """Per ranking, free ones too, and share removed: share of the flipped rows found."""

    def of(k: int, many: int) -> Row:
        return {"place": k, "removed_pct": 100 * k / max(1, many - 1)}

    return _series([*findings.scored, *findings.free], "curve", "found_pct", of)


def _series(rows: Sequence[Row], key: str, named: str, of: Callable[[int, int], Row]) -> list[Row]:
    """Per configuration and place, in percent, mean over cells; `of` a place among so many."""
    found = []
    for (name,), mine in grouped((r for r in rows if r.get(key)), "configuration").items():
        same = [r[key] for r in mine if len(r[key]) == len(mine[0][key])]
        shares = (100 * np.mean(np.array(same, dtype=np.float64), axis=0)).tolist()
        row = {"configuration": name}
        found += [{**row, **of(k, len(shares)), named: each} for k, each in enumerate(shares)]
    return found


def modules(findings: Findings) -> list[Row]:
    """Per estimator, aggregation, LoRA module and layer: the blocks' own NDR, mean over cells."""
    known = [b for b in findings.blocks if b["layer"] is not None and math.isfinite(b["ndr"])]
    return combined(
        known,
        ("estimator", "how", "module", "factor", "layer"),
        lambda mine: {"blocks": len(mine), "ndr_mean_pct": 100 * _mean(mine, "ndr")},
        lambda key: (place(key[0], ORDER), *key[1:]),
    )


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def cancellation(findings: Findings, points: list[Row]) -> list[Row]:
    """Per group, as Vitel and Chhabra's Table 1: C in both forms, and over single parameters; its
    correlation with accuracy, where models were trained again."""

    def of(mine: list[Row]) -> Row:
        row: Row = {"cells": len(mine)}
        for name in ("norm", "l1"):
            row |= mean_sd(f"{name}_", [c[name] for c in mine], "")
            row[f"{name}_mean"] = (
                math.inf if math.isnan(row[f"{name}_mean"]) else row[f"{name}_mean"]
            )
        row["median"] = float(np.median(np.array([c["median"] for c in mine], dtype=np.float64)))
        row |= {name: some(c[name] for c in mine) for name, some in (("least", min), ("most", max))}
        return row | retraining.c_correlated(points, mine[0]["group"])

    return combined(findings.cancellation, ("group",), of, lambda key: group_order(key[0]))


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

    def of(mine: list[Row]) -> Row:
        total = {name: sum(s[name] for s in mine) for name in COUNTED}
        told = {
            f"{some}_pct": 100 * total[some] / total[every] if total[every] else math.nan
            for some, every in SHARES.items()
        }
        return total | told

    names = ("theta", "w", "least_c")
    return combined(counted, names, of, lambda k: (order.index(k[0]), order.index(k[1]), k[2]))


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
    names, values_MM = findings.joint["names"], findings.joint["values_MM"]
    return [
        dict(zip(("estimator", "group"), name.split(BETWEEN, 1), strict=True))
        | dict(zip(names, values_M.tolist(), strict=True))
        for name, values_M in zip(names, values_MM, strict=True)
    ]


def conditioning(findings: Findings) -> list[Row]:
    """Per estimator: the damping and the condition numbers over blocks and cells."""

    def of(mine: list[Row]) -> Row:
        dampings, conditions = ([c[key] for c in mine] for key in ("damping", "condition"))
        finite = [c if math.isfinite(c) else math.inf for c in conditions]
        worst = mine[finite.index(max(finite))]
        row: Row = {"systems": len(mine)}
        row |= {"least_damping": min(dampings), "most_damping": max(dampings)}
        row |= {"median_condition": float(np.median(conditions))}
        return row | {"worst_condition": worst["condition"], "worst": worst["block"]}

    return combined(findings.conditioning, ("estimator",), of, lambda key: (len(key[0]), key))


def loss_and_influence(findings: Findings) -> list[Row]:
    """By which of the two a row is filtered: rows and known wrong labels, over all cells."""
    found = []
    for name in ("both", "influence", "loss", "neither") if findings.placed else ():
        rows, wrong = (sum(c["counts"][name][k] for c in findings.placed) for k in (0, 1))
        share = 100 * wrong / rows if rows else math.nan
        found.append({"filtered_by": name, "rows": rows, "wrong": wrong, "wrong_pct": share})
    return found


def sensitivity(findings: Findings) -> list[Row]:
    """Per estimator and factor of its damping: how far the ranking stays, mean and lowest."""

    def of(mine: list[Row]) -> Row:
        row = {"queries": sum(each["queries"] for each in mine)}
        return row | {"spearman": _mean(mine, "spearman"), "least": min(r["least"] for r in mine)}

    order = list(NAMES.values())
    return combined(
        findings.sensitivity, ("estimator", "factor"), of,
        lambda key: (place(key[0], ORDER), place(key[1], order)),
    )  # fmt: skip


def estimator_times(findings: Findings) -> list[Row]:
    """Per estimator and layer group: seconds of a cell, mean over cells."""
    return combined(
        findings.estimator_times,
        ("estimator", "group"),
        lambda mine: {"cells": len(mine)} | {name: _mean(mine, name) for name in TIMES},
        lambda key: (place(key[0], ORDER), group_order(key[1])),
    )
