"""What groups of trials add up to: means, spreads, paired differences, as columns of a table."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from distinf.numerics.bootstrap import Trials, best_elsewhere, differences, estimate
from distinf.numerics.means import gap_reduction, mean_sd
from distinf.report.rows import Row
from distinf.report.spectral.findings import BASELINES, BEST, CONTROL, AxisCurves, Outcome

CLOSED = attrgetter("gap_reduction_pct")
VERSUS = ("points", "low_points", "high_points")


def by_trial(outcomes: Iterable[Outcome], of: Callable[[Outcome], Any] = CLOSED) -> Trials:
    """(draw, (target, seed)) -> gap reduction, or another number, but None."""
    found = {(o.draw, (o.target, o.seed)): of(o) for o in outcomes}
    return {trial: float(v) for trial, v in found.items() if v is not None}


def reduction(outcomes: Iterable[Outcome], of: Callable[[Outcome], Any] = CLOSED) -> Row:
    """Mean, sd and interval of the gap reduction, and over what."""
    e = estimate(by_trial(outcomes, of))
    row: Row = {"mean_pct": e.mean, "sd_pct": e.sd, "low_pct": e.low, "high_pct": e.high}
    return row | {"trials": e.trials, "failed": e.failed, "targets": e.targets}


def reduction_after(outcomes: list[Outcome], steps: int, reference: dict[int, float]) -> Row:
    """The same after the first `steps` steps; `reference`: target -> the metric to reach."""

    def closed(o: Outcome) -> float | None:
        path = o.metric_by_step
        if len(path) <= steps or o.target not in reference:
            return None
        return gap_reduction(path[0], path[steps], reference[o.target])

    return reduction(outcomes, closed)


def side_effect(outcomes: list[Outcome]) -> Row:
    """Changes of others' mean metric in percent: non_target_, sibling_ and fresh_ columns."""
    row = Row()
    for whose in ("non_target", "sibling", "fresh"):
        found = reduction(outcomes, attrgetter(f"{whose}_change_pct"))
        row |= {f"{whose}_{k}": v for k, v in found.items() if k.endswith("_pct")}
    return row


def difference(ours: Iterable[Outcome], control: Iterable[Outcome]) -> Row:
    """Ours − control over the pairs of equal target and seed, in points."""
    values = differences(by_trial(ours), by_trial(control))
    e, wins = estimate(values), sum(v > 0 for v in values.values())
    row: Row = {"points": e.mean, "sd_points": e.sd, "low_points": e.low, "high_points": e.high}
    row |= {"pairs": e.trials, "targets": e.targets, "wins": wins}
    row["ties"] = sum(v == 0 for v in values.values())
    return row | {"win_share": wins / e.trials if e.trials else math.nan}


def controls(groups: Mapping[str, list[Outcome]]) -> dict[str, list[Outcome]]:
    """The baselines among selections; of several, the last is the best of them: for each trial
    the trials of the one that did best on the other targets (or conditions)."""
    found = {name: groups[name] for name in BASELINES if groups.get(name)}
    if len(found) > 1:
        chosen = best_elsewhere({name: by_trial(group) for name, group in found.items()})
        every = [o for group in found.values() for o in group]
        found[BEST] = [o for o in every if chosen.get((o.draw, (o.target, o.seed))) == o.selection]
    return found


def paired(groups: Mapping[str, list[Outcome]]) -> list[Row]:
    """Selections minus each of `controls`; `baselines`: which selections the control is made of."""
    return [
        {"selection": name, "control": control}
        | difference(mine, of)
        | {"baselines": " and ".join(dict.fromkeys(o.selection for o in of))}
        for control, of in controls(groups).items()
        for name, mine in groups.items()
        if name not in (control, CONTROL) and not (control == BEST and name in BASELINES)
    ]


def against(prefix: str, ours: list[Outcome], control: list[Outcome], pairs: str = "") -> Row:
    """`difference` with its columns' `prefix`: points, interval, pairs and wins."""
    versus = difference(ours, control)
    row = {f"{prefix}{k}": versus[k] for k in VERSUS}
    return row | ({pairs: versus["pairs"]} if pairs else {k: versus[k] for k in ("pairs", "wins")})


def spread(outcomes: list[Outcome]) -> Row:
    """Mean and sd of the gap reduction, without an interval."""
    mean, sd, finite = mean_sd(map(CLOSED, outcomes))
    return {"mean_pct": mean, "sd_pct": sd, "trials": finite, "failed": len(outcomes) - finite}


def others(group: Sequence[Outcome]) -> Row:
    """The other samples after the last step: their mean metric, and the gap that was closed."""
    mean, sd, _ = mean_sd(o.non_target_gap_reduction_pct for o in group)
    row = {"non_target_metric": mean_sd(o.non_target_metric for o in group)[0]}
    return row | {"non_target_gap_mean_pct": mean, "non_target_gap_sd_pct": sd}


def path(outcomes: Iterable[Outcome]) -> list[Row]:
    """Per fine-tuning step, from before the first: the targets' mean metric, sd and trials."""
    series = [o.metric_by_step for o in outcomes]
    rows = []
    for step in range(max(map(len, series), default=0)):
        mean, sd, finite = mean_sd(s[step] for s in series if len(s) > step)
        rows.append({"step": step, "mean": mean, "sd": sd, "trials": finite})
    return rows


def extra(columns: Mapping[str, Any], own: Collection[str]) -> Row:
    """Columns from the data; one that would shadow ours, or another, gets a trailing underscore."""
    found: Row = {}
    for key, value in columns.items():
        name = str(key)
        while name in found or name in own:
            name += "_"
        found[name] = value
    return found


def trial(outcome: Outcome) -> Row:
    """One fine-tune as a row; its further settings are columns, the path only its end."""
    own = {k: v for k, v in vars(outcome).items() if k not in ("metric_by_step", "settings")}
    last = outcome.metric_by_step[-1] if len(outcome.metric_by_step) else None
    own |= {"steps": outcome.value("steps"), "metric_after": last}
    return own | extra({k: v for k, v in outcome.settings.items() if k != "steps"}, own)


def bins(curves: AxisCurves | None) -> list[Row]:
    """Per bin of the axis: its centre, its samples and every curve."""
    if curves is None:
        return []
    every = zip(curves.x, curves.counts, *curves.curves.values())
    return [dict(zip(("x", "samples", *curves.curves), values)) for values in every]
