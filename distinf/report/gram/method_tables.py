"""Rows about retraining: accuracies, the pairwise comparison of methods and the proxies
of Vitel and Chhabra.

Shape legend: C configurations, T trials (dataset and seed).
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from distinf.numerics.bootstrap import estimate
from distinf.numerics.comparison import (
    Correlated,
    correlated,
    pareto_ranks,
    win_matrix,
    win_rates,
)
from distinf.report.gram.findings import (
    EMBEDDING,
    FULL,
    HEAD,
    HOWS,
    RANDOM,
    Configuration,
    Findings,
)
from distinf.report.gram.summaries import (
    Key,
    Row,
    accuracies,
    areas,
    configuration_order,
    datasets,
    estimators,
    falling,
    groups,
    keys,
    layers,
    mean_sd,
    place,
    query_losses,
    rates,
    summary,
    unfiltered,
    versus,
)

PARETO_METHODS = 0.75  # Vitel and Chhabra, Tables 4 to 6
PARETO_LAYERS = 0.5  # and Table 3
FEWEST_TRIALS = 2  # one trial gives neither win rates nor fronts
TRACIN_WE = "tracin-we"  # a row of Table 3
UNFILTERED, ALL_OF = "all rows", "every estimator"
Table = dict[str, dict[Key, float]]


class Placed(NamedTuple):
    """A configuration's front (0: none is known) and win rate, with its sd over opponents."""

    name: str
    rank: int
    win_rate: float
    sd: float


def retrained(findings: Findings) -> list[Row]:
    """Every configuration in every cell."""
    rows = []
    for r in findings.retrained:
        row: Row = {"cell": r.cell, "configuration": r.configuration, "kept": r.kept}
        row |= {"kept_flips": r.kept_flips, "test_accuracy_pct": 100 * r.test_accuracy}
        row |= {"accuracy_at_best_pct": 100 * r.accuracy_at_best, "query_loss": r.query_loss}
        row |= {"job": r.job}
        rows.append(row)
    return rows


def query_loss(findings: Findings) -> list[Row]:
    """Per configuration, best first: the least query loss, mean over cells."""
    rows = [
        {
            "configuration": name,
            "trials": len(found),
            **mean_sd("", {(0, k): v for k, v in enumerate(found)}, ""),
        }
        for name, found in query_losses(findings).items()
    ]
    return sorted(rows, key=lambda row: row["mean"])


def accuracy(findings: Findings) -> list[Row]:
    """Per configuration, best first: test accuracy over trials, and against random and full."""
    found, at_best = accuracies(findings), accuracies(findings, "accuracy_at_best")
    every = dict(found)
    if unfiltered(findings) and found:
        every[UNFILTERED] = unfiltered(findings)
    rows = []
    for name, trials in every.items():
        row: Row = {"configuration": name, "trials": len(trials)}
        row |= summary("", estimate(trials))
        row["at_best_pct"] = mean_sd("", at_best.get(name, {}))["mean_pct"]
        for other in (RANDOM, FULL):
            if other in found and other != name:
                row |= versus(trials, found[other], f"vs_{other}_")
        rows.append(row)
    return sorted(
        rows, key=lambda r: (falling(r["mean_pct"]), configuration_order(r["configuration"]))
    )


def methods(findings: Findings) -> list[Row]:
    """As Vitel and Chhabra's Tables 4 to 6: front, win rate, then mean and sd by dataset."""
    found = accuracies(findings)
    rows: list[Row] = []
    for placed in _ranked(found, PARETO_METHODS):
        made, trials = Configuration.of(placed.name), found[placed.name]
        row: Row = {"configuration": placed.name}
        row |= {"estimator": made.estimator if made else placed.name}
        row |= {"how": made.how if made else "", "group": made.group if made else ""}
        row |= {"source": "measured", "rank": placed.rank}
        row |= {"win_rate": placed.win_rate, "win_rate_sd": placed.sd}
        for place_, dataset in enumerate(datasets(findings)):
            mine = {key: v for key, v in trials.items() if key[0] == place_}
            row |= mean_sd(f"{dataset}_", mine)
        rows.append(row)
    for p in findings.methods_published:
        row = {"configuration": p.name, "estimator": p.estimator, "how": p.how, "group": p.group}
        row |= {"source": p.source, "model": p.model, "rank": p.rank}
        row |= {"win_rate": p.win_rate, "win_rate_sd": p.win_rate_sd}
        for dataset, (mean, sd) in p.accuracy.items():
            row |= {f"{dataset}_mean_pct": mean, f"{dataset}_sd_pct": sd}
        rows.append(row)
    return rows


def layer_ranks(findings: Findings) -> list[Row]:
    """Vitel and Chhabra's Table 3: layer groups against each other, per estimator family, by mean.

    TracIn-WE pairs the embedding's gradients token by token: the same scores as TracIn on the
    embedding, so that its row repeats that one and does not compete.
    """
    found = accuracies(findings)
    made = {name: Configuration.of(name) for name in found}
    means = {name: c for name, c in made.items() if c is not None and c.how == "mean"}
    slots = slots_of(c.group for c in means.values())
    rows: list[Row] = []
    for family in sorted({family_of(c.estimator) for c in means.values()}):
        mine = {n: found[n] for n, c in means.items() if family_of(c.estimator) == family}
        mine = {n: trials for n, trials in mine.items() if means[n].group in slots}
        if len(mine) < 2 or len({k for trials in mine.values() for k in trials}) < FEWEST_TRIALS:
            continue
        for placed in _ranked(mine, PARETO_LAYERS):
            c = means[placed.name]
            slot = slots[c.group] if c.estimator == family else c.estimator
            row: Row = {"layer": slot, "group": c.group, "estimator": family, "source": "measured"}
            rows.append(row | {"rank": placed.rank, "win_rate": placed.win_rate})
            if placed.name == Configuration("tracin", EMBEDDING, "mean").name:
                rows.append(rows[-1] | {"layer": TRACIN_WE})
    for p in findings.layers_published:
        row = {"layer": p.group, "estimator": p.estimator, "source": p.source, "model": p.model}
        rows.append(row | {"rank": p.rank, "win_rate": p.win_rate})
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


def proxy_points(findings: Findings) -> list[Row]:
    """Per retrained configuration and trial: its accuracy, NDR, AUC and its group's C."""
    ndr, auc, trial = rates(findings), areas(findings), keys(findings)
    c_of = {(trial[c.cell], c.group): c.l1 for c in findings.cancellation}
    rows = []
    for name, trials in accuracies(findings).items():
        made = Configuration.of(name)
        if made is None:
            continue
        for key, value in sorted(trials.items()):
            row: Row = {"estimator": made.estimator, "how": made.how, "group": made.group}
            row |= {"dataset": datasets(findings)[key[0]], "seed": key[1], "accuracy_pct": value}
            row |= {"c": c_of.get((key, made.group), math.nan)}
            row |= {"ndr_pct": ndr.get(name, {}).get(key, math.nan)}
            rows.append(row | {"auc": auc.get(name, {}).get(key, math.nan)})
    return rows


def proxies(findings: Findings) -> list[Row]:
    """Vitel and Chhabra's Table 2: Spearman of C, NDR, AUC with accuracy over groups and trials."""
    points = proxy_points(findings)
    rows = []
    for how in sorted({p["how"] for p in points}, key=lambda h: place(h, HOWS)):
        for estimator in [*estimators(findings), ALL_OF]:
            mine = [
                p for p in points if p["how"] == how and (estimator in (ALL_OF, p["estimator"]))
            ]
            if not mine:
                continue
            row: Row = {"how": how, "estimator": estimator, "points": len(mine)}
            found = np.array([p["accuracy_pct"] for p in mine])
            for proxy in ("c", "ndr_pct", "auc"):
                agreed = correlated(np.array([p[proxy] for p in mine]), found)
                name = proxy.removesuffix("_pct")
                row |= {f"{name}_rho": agreed.rho, f"{name}_p": agreed.p}
                row[f"{name}_within_rho"] = _within(mine, proxy)
            rows.append(row)
    return rows


def _within(points: list[Row], proxy: str) -> float:
    """The correlation inside each dataset, mean over datasets: free of what tells them apart."""
    found = []
    for dataset in {p["dataset"] for p in points}:
        mine = [p for p in points if p["dataset"] == dataset]
        sides = (np.array([p[key] for p in mine]) for key in (proxy, "accuracy_pct"))
        found.append(correlated(*sides).rho)
    known = sorted(r for r in found if math.isfinite(r))
    return float(np.mean(known)) if known else math.nan


def c_agreement(findings: Findings) -> dict[str, Correlated]:
    """Group -> Spearman of its C with accuracy over estimators, trials; mean scores (Table 1)."""
    points = [p for p in proxy_points(findings) if p["how"] == "mean"]
    found = {}
    for group in {p["group"] for p in points}:
        mine = [p for p in points if p["group"] == group]
        found[group] = correlated(
            np.array([p["c"] for p in mine]), np.array([p["accuracy_pct"] for p in mine])
        )
    return found


def _ranked(found: Table, threshold: float) -> list[Placed]:
    """Placed by pairwise wins; with one trial only by accuracy, with neither front nor win rate."""
    trials = sorted({key for mine in found.values() for key in mine})
    names = list(found)
    accuracy_CT = np.array([[found[n].get(key, math.nan) for key in trials] for n in names])
    if len(trials) >= FEWEST_TRIALS:
        won_CC = win_matrix(accuracy_CT.reshape(len(names), len(trials)))
        fronts, rates_C = pareto_ranks(won_CC, threshold).tolist(), win_rates(won_CC).tolist()
        placed = map(Placed, names, fronts, rates_C, map(float, map(np.nanstd, won_CC)))
        return sorted(placed, key=lambda p: (p.rank, -p.win_rate, p.name))
    ordered = sorted(names, key=lambda n: (falling(max(found[n].values())), configuration_order(n)))
    return [Placed(name, 0, math.nan, math.nan) for name in ordered]
