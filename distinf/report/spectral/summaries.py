"""What a group of trials adds up to: means, spreads, paired differences, as columns of a table."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from distinf.numerics.bootstrap import Trials, differences, estimate
from distinf.report.spectral.findings import CONTROL, Outcome

Row = dict[str, Any]


def reductions(outcomes: Iterable[Outcome]) -> Trials:
    """(draw, (target, seed)) -> gap reduction."""
    return {(o.draw, (o.target, o.seed)): float(o.gap_reduction_pct) for o in outcomes}


def mean_sd(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean, sample sd and number of the finite values; NaN where there are too few."""
    finite = [float(v) for v in values if math.isfinite(v)]
    mean = float(np.mean(finite)) if finite else math.nan
    sd = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return mean, sd, len(finite)


def reduction(outcomes: Iterable[Outcome]) -> Row:
    """Mean, sd and interval of the gap reduction, and over what."""
    return _estimated(reductions(outcomes))


def reduction_after(outcomes: Iterable[Outcome], steps: int, reference: dict[int, float]) -> Row:
    """The same after the first `steps` steps; `reference`: target -> the metric to reach."""
    found = {}
    for o in outcomes:
        path = o.metric_by_step
        if len(path) > steps and o.target in reference:
            gap = path[0] - reference[o.target]
            closed = 100 * (path[0] - path[steps]) / gap if gap > 0 else math.nan
            found[o.draw, (o.target, o.seed)] = closed
    return _estimated(found)


def side_effect(outcomes: Iterable[Outcome]) -> Row:
    """Changes of others' mean metric in percent: non_target_, sibling_ and fresh_ columns."""
    outcomes, row = list(outcomes), Row()
    for whose in ("non_target", "sibling", "fresh"):
        changes = {
            (o.draw, (o.target, o.seed)): getattr(o, f"{whose}_change_pct") for o in outcomes
        }
        e = estimate({trial: float(v) for trial, v in changes.items() if v is not None})
        row |= {f"{whose}_mean_pct": e.mean, f"{whose}_sd_pct": e.sd}
        row |= {f"{whose}_low_pct": e.low, f"{whose}_high_pct": e.high}
    return row


def difference(ours: Trials, control: Trials) -> Row:
    """ours − control over the pairs of equal target and seed, in points."""
    values = differences(ours, control)
    e = estimate(values)
    wins = sum(v > 0 for v in values.values())
    return {
        "points": e.mean,
        "sd_points": e.sd,
        "low_points": e.low,
        "high_points": e.high,
        "pairs": e.trials,
        "targets": e.targets,
        "wins": wins,
        "ties": sum(v == 0 for v in values.values()),
        "win_share": wins / e.trials if e.trials else math.nan,
    }


def spread(outcomes: list[Outcome]) -> Row:
    """Mean and sd of the gap reduction, without an interval."""
    mean, sd, finite = mean_sd(o.gap_reduction_pct for o in outcomes)
    return {"mean_pct": mean, "sd_pct": sd, "trials": finite, "failed": len(outcomes) - finite}


def path(outcomes: Iterable[Outcome]) -> list[Row]:
    """Per fine-tuning step, from before the first: the targets' mean metric, sd and trials."""
    series = [o.metric_by_step for o in outcomes]
    rows = []
    for step in range(max((len(s) for s in series), default=0)):
        mean, sd, finite = mean_sd(s[step] for s in series if len(s) > step)
        rows.append({"step": step, "mean": mean, "sd": sd, "trials": finite})
    return rows


def is_control(outcome: Outcome, aim: str, update: str) -> bool:
    """Whether it is a random trial of this aim and update."""
    return (outcome.selection, outcome.aim, outcome.update) == (CONTROL, aim, update)


def extra(columns: Mapping[str, Any], own: Collection[str]) -> Row:
    """Columns from the data; one that would shadow ours, or another, gets a trailing underscore."""
    found: Row = {}
    for key, value in columns.items():
        name = str(key)
        while name in found or name in own:
            name += "_"
        found[name] = value
    return found


def _estimated(trials: Trials) -> Row:
    e = estimate(trials)
    row: Row = {"mean_pct": e.mean, "sd_pct": e.sd, "low_pct": e.low, "high_pct": e.high}
    return row | {"trials": e.trials, "failed": e.failed, "targets": e.targets}
