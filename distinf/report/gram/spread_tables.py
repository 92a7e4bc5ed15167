"""Rows about how accuracies spread over a dataset's seeds: by layer group, and by aggregation."""

from collections.abc import Iterator

import numpy as np

from distinf.numerics.comparison import quartiles as quartiles_of
from distinf.numerics.comparison import relative_changes, wilcoxon
from distinf.report.gram.findings import Configuration, Findings
from distinf.report.gram.summaries import Key, Row, accuracies, datasets

MARK_P, MARK_CHANGE_PCT = 0.1, 1.0  # Figure 3: what is drawn in full colour
Pair = tuple[str, Configuration, list[Key], np.ndarray, np.ndarray]


def quartiles(findings: Findings) -> list[Row]:
    """Accuracy after filtering by estimator, group and dataset, mean scores: its mean, quartiles
    and median over seeds (Vitel and Chhabra, Figure 2; 5 to 7 for their other models)."""
    rows = []
    for name, trials in accuracies(findings).items():
        made = Configuration.of(name)
        if made is None or made.how != "mean":
            continue
        for place, dataset in enumerate(datasets(findings)):
            mine = quartiles_of(np.array([v for (d, _), v in trials.items() if d == place]))
            if mine.trials:
                row: Row = {"estimator": made.estimator, "group": made.group, "dataset": dataset}
                row |= {"trials": mine.trials, "mean_pct": mine.mean, "q1_pct": mine.q1}
                rows.append(row | {"median_pct": mine.median, "q3_pct": mine.q3})
    return rows


def gains(findings: Findings) -> list[Row]:
    """What rank and vote change against mean, per dataset, estimator and group: the mean change in
    % of the accuracy by mean, its quartiles over seeds, Wilcoxon's p, and whether it would be
    drawn in full colour (Vitel and Chhabra, Figures 3, 17 and 18)."""
    rows = []
    for dataset, made, _, base_T, other_T in _pairs(findings):
        spread, p = quartiles_of(relative_changes(base_T, other_T)), wilcoxon(other_T, base_T)
        row: Row = {"dataset": dataset, "estimator": made.estimator, "group": made.group}
        row |= {"how": made.how, "pairs": len(base_T), "change_pct": spread.mean}
        row |= {"q1_pct": spread.q1, "median_pct": spread.median, "q3_pct": spread.q3}
        marked = p < MARK_P and abs(spread.mean) > MARK_CHANGE_PCT
        rows.append(row | {"p": p, "marked": marked})
    return rows


def gain_trials(findings: Findings) -> list[Row]:
    """`gains` seed by seed: the accuracy by mean (`base_pct`) and by rank or vote, and the change
    in % of the former: what the distributions of Figures 3, 17 and 18 are drawn from."""
    rows = []
    for dataset, made, trials, base_T, other_T in _pairs(findings):
        changes_T = relative_changes(base_T, other_T)
        for (_, seed), *numbers in zip(trials, base_T, other_T, changes_T, strict=True):
            row: Row = {"dataset": dataset, "seed": seed, "estimator": made.estimator}
            row |= {"group": made.group, "how": made.how}
            names = ("base_pct", "accuracy_pct", "change_pct")
            rows.append(row | {k: float(v) for k, v in zip(names, numbers, strict=True)})
    return rows


def _pairs(findings: Findings) -> Iterator[Pair]:
    """Dataset, a configuration by rank or vote, the trials that it shares with its mean, and both
    accuracies in %, the mean's first."""
    found = accuracies(findings)
    for name in found:
        made = Configuration.of(name)
        base = found.get(Configuration(made.estimator, made.group, "mean").name) if made else None
        if made is None or made.how == "mean" or base is None:
            continue
        for place, dataset in enumerate(datasets(findings)):
            trials = sorted(k for k in base if k in found[name] and k[0] == place)
            if trials:
                base_T, other_T = (np.array([of[k] for k in trials]) for of in (base, found[name]))
                yield dataset, made, trials, base_T, other_T
