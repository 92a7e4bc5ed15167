"""Rows about retraining: accuracies, the pairwise comparison of methods and the proxies
of Vitel and Chhabra.

Shape legend: C configurations, T trials (dataset and seed).
"""

import math
from collections.abc import Iterable

import numpy as np

from distinf.gram.blocks import EMBEDDING, HEAD
from distinf.gram.configurations import ORDER, groups, in_order, layers, parts, place
from distinf.gram.settings import HOWS
from distinf.numerics.comparison import (
    Correlated,
    correlated,
    pareto_ranks,
    quartiles,
    relative_changes,
    wilcoxon,
    win_matrix,
    win_rates,
)
from distinf.report.gram.findings import Findings
from distinf.report.gram.trials import (
    ALL_ROWS,
    by_trial,
    datasets,
    falling,
    keys,
    mean_sd,
    versus,
    with_interval,
)
from distinf.report.rows import Row, combined, grouped

PARETO_METHODS, PARETO_LAYERS = 0.75, 0.5  # Vitel and Chhabra, Tables 4 to 6, and Table 3
MARK_P, MARK_CHANGE_PCT = 0.1, 1.0  # Figure 3: what is drawn in full colour
FEWEST_TRIALS = 2  # one trial gives neither win rates nor fronts
MEASURED, TRACIN_WE, EVERY = "measured", "tracin-we", "every estimator"
Accuracies = dict[str, dict[tuple[int, int], float]]  # configuration -> trial -> percent


def tables(findings: Findings) -> dict[str, list[Row]]:
    """Name -> rows."""
    found = by_trial(findings, findings.retrained, "test_accuracy")
    found = {name: found[name] for name in sorted(found, key=in_order)}
    points = proxy_points(findings, found)
    trials = gain_trials(points)
    return {
        "accuracy": accuracy(findings, found),
        "query_loss": query_loss(findings),
        "methods": [*methods(findings, found), *findings.methods_published],
        "layers": [*layer_ranks(found), *findings.layers_published],
        "gains": gains(trials),
        "gain_trials": trials,
        "quartiles": spreads(points),
        "proxies": proxies(points),
        "proxy_points": points,
        "retrained": [_retrained(row) for row in findings.retrained],
    }


def _retrained(row: Row) -> Row:
    """A configuration in a cell."""
    told = {name: row[name] for name in ("cell", "configuration", "kept", "kept_flips")}
    told |= {f"{name}_pct": 100 * row[name] for name in ("test_accuracy", "accuracy_at_best")}
    return told | {"query_loss": row["query_loss"], "job": row["job"]}


def accuracy(findings: Findings, found: Accuracies) -> list[Row]:
    """Per configuration, best first: test accuracy over trials, and against random and full."""
    at_best, at = by_trial(findings, findings.retrained, "accuracy_at_best"), keys(findings)
    series = {at[c["name"]]: c["history"].get("test_accuracy", ()) for c in findings.cells}
    finite = {key: [v for v in values if math.isfinite(v)] for key, values in series.items()}
    whole = {key: 100 * max(values) for key, values in finite.items() if values}
    rows = []
    for name, trials in {**found, **({ALL_ROWS: whole} if found and whole else {})}.items():
        row: Row = {"configuration": name, "trials": len(trials), **with_interval("", trials)}
        row["at_best_pct"] = mean_sd("", at_best.get(name, {}).values())["mean_pct"]
        for other in ("random", "full"):
            if other in found and other != name:
                row |= versus(trials, found[other], f"vs_{other}_")
        rows.append(row)
    return sorted(rows, key=lambda r: (falling(r["mean_pct"]), in_order(r["configuration"])))


def query_loss(findings: Findings) -> list[Row]:
    """Per configuration, best first: the least query loss, mean over cells; also of all rows."""
    every = sorted(findings.retrained, key=lambda row: in_order(row["configuration"]))
    whole = [c["history"].get("query_loss") for c in findings.cells if every]
    every += [{"configuration": ALL_ROWS, "query_loss": min(losses)} for losses in whole if losses]

    def of(mine: list[Row]) -> Row:
        return {"trials": len(mine), **mean_sd("", [row["query_loss"] for row in mine], "")}

    return sorted(combined(every, ("configuration",), of), key=lambda row: row["mean"])


def methods(findings: Findings, found: Accuracies) -> list[Row]:
    """As Vitel and Chhabra's Tables 4 to 6: front, win rate, then mean and sd by dataset."""
    rows: list[Row] = []
    for name, placed in _ranked(found, PARETO_METHODS).items():
        estimator, group, how = parts(name) or (name, "", "")
        row: Row = {"configuration": name, "estimator": estimator, "how": how, "group": group}
        row |= {"source": MEASURED, **placed}
        for k, dataset in enumerate(datasets(findings)):
            row |= mean_sd(f"{dataset}_", [v for (d, _), v in found[name].items() if d == k])
        rows.append(row)
    return rows


def layer_ranks(found: Accuracies) -> list[Row]:
    """Vitel and Chhabra's Table 3: layer groups against each other, per estimator family, by mean.

    TracIn-WE pairs the embedding's gradients token by token: the same scores as TracIn on the
    embedding, so that its row repeats that one and does not compete.
    """
    means = {name: made for name in found if (made := parts(name)) and made[2] == "mean"}
    slots, rows = slots_of(group for _, group, _ in means.values()), []
    for family in sorted({family_of(made[0]) for made in means.values()}):
        mine = {
            name: found[name]
            for name, (estimator, group, _) in means.items()
            if family_of(estimator) == family and group in slots
        }
        if len(mine) < 2 or len({k for trials in mine.values() for k in trials}) < FEWEST_TRIALS:
            continue
        for name, placed in _ranked(mine, PARETO_LAYERS).items():
            estimator, group, _ = means[name]
            row = {"layer": slots[group] if estimator == family else estimator, "group": group}
            row |= {"estimator": family, "source": MEASURED}
            row |= {key: placed[key] for key in ("rank", "win_rate")}
            rows.append(row)
            if (estimator, group) == ("tracin", EMBEDDING):
                rows.append(row | {"layer": TRACIN_WE})
    return rows


def slots_of(names: Iterable[str]) -> dict[str, str]:
    """Group -> its row in Table 3: embedding, attention-1, …, head; without "all"."""
    every = groups(names)
    stretches = [g for g in every if layers(g) is not None]
    numbered = {g: f"attention-{k}" for k, g in enumerate(stretches, 1)}
    return {g: numbered.get(g, g) for g in every if g in (*stretches, EMBEDDING, HEAD)}


def family_of(estimator: str) -> str:
    """Table 3 ranks the embedding's variants of TracIn together with TracIn."""
    return "tracin" if estimator.startswith("tracin") else estimator


def _ranked(found: Accuracies, threshold: float) -> dict[str, Row]:
    """Front, win rate and its sd over opponents, best first; with one trial by accuracy only."""
    trials = sorted({key for mine in found.values() for key in mine})
    if len(trials) < FEWEST_TRIALS:
        names = sorted(found, key=lambda n: (falling(max(found[n].values())), in_order(n)))
        return {n: {"rank": 0, "win_rate": math.nan, "win_rate_sd": math.nan} for n in names}
    won_CC = win_matrix(
        np.array([[of.get(key, math.nan) for key in trials] for of in found.values()])
    )
    fronts, rates = (pareto_ranks(won_CC, threshold).tolist(), win_rates(won_CC).tolist())
    placed = {
        name: {"rank": front, "win_rate": rate, "win_rate_sd": float(np.nanstd(won_C))}
        for name, front, rate, won_C in zip(found, fronts, rates, won_CC, strict=True)
    }
    order = sorted(placed.items(), key=lambda p: (p[1]["rank"], -p[1]["win_rate"], p[0]))
    return dict(order)


def spreads(points: list[Row]) -> list[Row]:
    """Accuracy after filtering by estimator, group and dataset, mean scores: its mean, quartiles
    and median over seeds (Vitel and Chhabra, Figure 2; 5 to 7 for their other models)."""

    def of(mine: list[Row]) -> Row:
        return {"trials": len(mine), **_quartiles(mine, "accuracy_pct", "mean_pct")}

    by_mean = [p for p in points if p["how"] == "mean"]
    return combined(by_mean, ("estimator", "group", "dataset"), of)


def _quartiles(rows: list[Row], key: str, mean: str) -> Row:
    of = quartiles(np.array([row[key] for row in rows]))
    return {mean: of.mean, "q1_pct": of.q1, "median_pct": of.median, "q3_pct": of.q3}


def gains(trials: list[Row]) -> list[Row]:
    """What rank and vote change against mean, per dataset, estimator and group: the mean change in
    % of the accuracy by mean, its quartiles over seeds, Wilcoxon's p, and whether it would be
    drawn in full colour (Vitel and Chhabra, Figures 3, 17 and 18)."""

    def of(mine: list[Row]) -> Row:
        p = wilcoxon(*(np.array([t[key] for t in mine]) for key in ("accuracy_pct", "base_pct")))
        row = {"pairs": len(mine), **_quartiles(mine, "change_pct", "change_pct"), "p": p}
        return row | {"marked": p < MARK_P and abs(row["change_pct"]) > MARK_CHANGE_PCT}

    return combined(trials, ("dataset", "estimator", "group", "how"), of)


def gain_trials(points: list[Row]) -> list[Row]:
    """`gains` seed by seed: the accuracy by mean (`base_pct`) and by rank or vote, and the change
    in % of the former: what the distributions of Figures 3, 17 and 18 are drawn from."""
    names, rows = ("dataset", "seed", "estimator", "group"), []
    base = {tuple(p[n] for n in names): p["accuracy_pct"] for p in points if p["how"] == "mean"}
    for p in points:
        key, found = tuple(p[n] for n in names), p["accuracy_pct"]
        if p["how"] != "mean" and key in base:
            row = dict(zip(names, key, strict=True)) | {"how": p["how"], "base_pct": base[key]}
            (change,) = relative_changes(np.array([base[key]]), np.array([found])).tolist()
            rows.append(row | {"accuracy_pct": found, "change_pct": change})
    return rows


def proxy_points(findings: Findings, found: Accuracies) -> list[Row]:
    """Per retrained configuration and trial: its accuracy, NDR, AUC and its group's C."""
    ndr = by_trial(findings, findings.scored, "ndr")
    auc = by_trial(findings, findings.scored, "auc", 1)
    at, names, rows = keys(findings), datasets(findings), []
    c_of = {(at[c["cell"]], c["group"]): c["l1"] for c in findings.cancellation}
    for name, trials in found.items():
        estimator, group, how = parts(name) or ("", "", "")
        for key, value in sorted(trials.items()) if how else ():
            row: Row = {"estimator": estimator, "how": how, "group": group}
            row |= {"dataset": names[key[0]], "seed": key[1], "accuracy_pct": value}
            row |= {"c": c_of.get((key, group), math.nan)}
            row |= {"ndr_pct": ndr.get(name, {}).get(key, math.nan)}
            rows.append(row | {"auc": auc.get(name, {}).get(key, math.nan)})
    return rows


def proxies(points: list[Row]) -> list[Row]:
    """Vitel and Chhabra's Table 2: Spearman of C, NDR, AUC with accuracy over groups and trials;
    `within`: inside each dataset, mean over datasets, free of what tells them apart."""
    every = [*points, *({**p, "estimator": EVERY} for p in points)]

    def order(key: tuple) -> tuple:
        return place(key[0], HOWS), key[1] == EVERY, place(key[1], ORDER)

    return combined(every, ("how", "estimator"), _correlations, order)


def _correlations(points: list[Row]) -> Row:
    row: Row = {"points": len(points)}
    for proxy in ("c", "ndr_pct", "auc"):
        name, found = proxy.removesuffix("_pct"), _with_accuracy(points, proxy)
        inside = [_with_accuracy(mine, proxy).rho for mine in grouped(points, "dataset").values()]
        within = mean_sd("", sorted(rho for rho in inside if math.isfinite(rho)))["mean_pct"]
        row |= {f"{name}_rho": found.rho, f"{name}_p": found.p, f"{name}_within_rho": within}
    return row


def _with_accuracy(points: list[Row], proxy: str) -> Correlated:
    return correlated(*(np.array([p[key] for p in points]) for key in (proxy, "accuracy_pct")))


def c_correlated(points: list[Row], group: str) -> Row:
    """Spearman of a group's C with accuracy over estimators, trials; mean scores (Table 1)."""
    mine = [p for p in points if (p["how"], p["group"]) == ("mean", group)]
    found = _with_accuracy(mine, "c")
    return {"rho": found.rho, "p": found.p} if mine else {}
