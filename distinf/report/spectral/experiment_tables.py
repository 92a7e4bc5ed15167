"""Rows about the experiments: their arms, their paths over fine-tuning steps, their rates."""

import math
from typing import Any

import numpy as np

from distinf.report.spectral.families import (
    COMPARED,
    arm_label,
    arms,
    base_of,
    control_of,
    experiments,
    of_kind,
    rate,
    varied,
)
from distinf.report.spectral.findings import CONTROL, Family, Findings, Outcome
from distinf.report.spectral.headline_tables import bins, trial
from distinf.report.spectral.summaries import (
    Row,
    difference,
    mean_sd,
    path,
    reduction,
    reduction_after,
    reductions,
    side_effect,
)

VERSUS = ("points", "low_points", "high_points")


def experiment_tables(findings: Findings) -> dict[str, list[Row]]:
    """Name -> rows, of every further experiment but Table 1's."""
    every = experiments(findings)
    return {
        "arms": [row for f in every for row in arm_rows(findings, f)],
        "arm_steps": [row for f in every for row in arm_steps(f)],
        "arm_axis": [
            {"experiment": f.name} | row
            for f in every
            if f.axis_curves is not None
            for row in bins(f.axis_curves)
        ],
        "rates": [row for f in of_kind(findings, "rates") for row in rate_rows(findings, f)],
        "arm_trials": [
            {"experiment": f.name} | trial(o) for f in findings.families for o in f.outcomes
        ],
    }


def arm_rows(findings: Findings, family: Family) -> list[Row]:
    """Per arm: gap closed, minus random, minus the base arm, and what it did to other samples.

    `base` marks the arm that others are compared with, where the family has it. `early_` columns
    are after as many steps as the headline took, where the family took more.
    """
    base = base_of(findings, family)
    references = {t.id: t.reference or 0.0 for t in findings.targets}
    rows = []
    for group in arms(family).values():
        row = _told_apart(family, group) | reduction(group)
        early = findings.headline.steps or 0
        if 0 < early < group[0].value("steps"):
            after = reduction_after(group, early, references)
            row |= {"early_steps": early} | {f"early_{k}": v for k, v in after.items()}
        control = control_of(findings, family, group)
        if control:
            versus = difference(reductions(group), reductions(control))
            row |= {f"vs_random_{k}": versus[k] for k in VERSUS}
            row |= {"pairs": versus["pairs"], "wins": versus["wins"]}
        row["base"] = group is base or group == base
        if base and not row["base"] and group[0].selection != CONTROL:
            versus = difference(reductions(group), reductions(base))
            row |= {f"vs_base_{k}": versus[k] for k in VERSUS} | {"base_pairs": versus["pairs"]}
        rows.append(row | side_effect(group) | others(group))
    return rows


def others(group: list[Outcome]) -> Row:
    """The other samples after the last step: their mean metric, and the gap that was closed."""
    metric, _, _ = mean_sd(o.non_target_metric for o in group if o.non_target_metric is not None)
    gaps = [o.non_target_gap_reduction_pct for o in group]
    mean, sd, _ = mean_sd(g for g in gaps if g is not None)
    return {
        "non_target_metric": metric,
        "non_target_gap_mean_pct": mean,
        "non_target_gap_sd_pct": sd,
    }


def arm_steps(family: Family) -> list[Row]:
    """Per arm and fine-tuning step: the targets' metric, mean and sd over trials."""
    return [
        _told_apart(family, group) | row for group in arms(family).values() for row in path(group)
    ]


def rate_rows(findings: Findings, family: Family) -> list[Row]:
    """Per arm of a sweep: the metric early and at last, and the step at which it was lowest."""
    swept = rate(family)
    early = findings.headline.steps
    rows = []
    for group in arms(family).values():
        means = [r["mean"] for r in path(group)]
        finite = [k for k, m in enumerate(means) if math.isfinite(m)]
        best = min(finite, key=lambda k: means[k]) if finite else None
        row = _told_apart(family, group) | {"rate": group[0].value(str(swept))}
        if early is not None and early < len(means):
            row |= {"early_steps": early, "early_mean": means[early]}
        row |= {"last_mean": means[-1], "best_step": best}
        rows.append(row | {"best_mean": math.nan if best is None else means[best]})
    return rows


def rate_maps(family: Family) -> list[tuple[str, list[float], np.ndarray]]:
    """(what else tells the arms apart, the rates R, the metric [R, steps + 1]) per map."""
    swept = str(rate(family))
    names = [n for n in varied(family) if n != swept]
    maps: dict[str, dict[float, list[float]]] = {}
    for group in arms(family).values():
        value = group[0].value(swept)
        if value is not None:
            label = arm_label(names, group[0])
            maps.setdefault(label, {})[value] = [r["mean"] for r in path(group)]
    found = []
    for label, rows in maps.items():
        rates = sorted(rows)
        metric_RS = np.full((len(rates), max(len(m) for m in rows.values())), np.nan)
        for row, value in zip(metric_RS, rates, strict=True):
            row[: len(rows[value])] = rows[value]
        found.append((label, rates, metric_RS))
    return found


def _told_apart(family: Family, group: list[Outcome]) -> Row:
    """The experiment, the arm in words, and every setting that an arm can have."""
    first = group[0]
    names = dict.fromkeys(["selection", *COMPARED, *first.settings])
    row: dict[str, Any] = {"experiment": family.name, "arm": arm_label(varied(family), first)}
    return row | {name: first.value(name) for name in names}
