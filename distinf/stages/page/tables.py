"""Every number of the report as plain rows, and those rows as CSV or JSON."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distinf.stages.page.findings import CONTROL, Findings, Outcome, array_summary, plain
from distinf.stages.page.intervals import Trials, differences, estimate

Row = dict[str, Any]


def tables(findings: Findings) -> dict[str, list[Row]]:
    """Name -> rows. Percentages carry `_pct`, percentage points `_points`; missing is NaN/None.

    `low` and `high` bound the 95 % bootstrap interval over targets, then seeds.
    """
    return {
        "summary": summary(findings),
        "paired": paired(findings),
        "by_target": by_target(findings),
        "comparison": comparison(findings),
        "trials": [trial(o) for o in findings.outcomes],
        "steps": steps(findings),
        "axis": axis(findings),
        "targets": targets(findings),
        "scores": scores(findings),
        "top_samples": top_samples(findings),
        "ritz": ritz(findings),
        "solves": [plain(s) for s in findings.solves],
        "training": training(findings),
        "costs": costs(findings),
        "published": [plain(p) for p in findings.published],
    }


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV with the union of their columns; missing and non-finite values are empty."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None else v for k, v in plain(row).items()})
    return out.getvalue()


def json_text(rows: Sequence[Row]) -> str:
    """Rows as strict JSON; non-finite values are null."""
    return json.dumps(plain(rows), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def summary(findings: Findings) -> list[Row]:
    """Per selection of the headline arm: gap reduction and the change of the non-targets."""
    outcomes = findings.headline_outcomes()
    rows = []
    for selection in findings.selections():
        mine = [o for o in outcomes if o.selection == selection]
        rows.append({"selection": selection} | _reduction(mine) | _side_effect(mine))
    return rows


def paired(findings: Findings) -> list[Row]:
    """Per selection: its gap reduction minus random's, over the same targets and seeds."""
    outcomes = findings.headline_outcomes()
    control = reductions(o for o in outcomes if o.selection == CONTROL)
    names = [s for s in findings.selections() if s != CONTROL]
    return [
        {"selection": name, "control": CONTROL}
        | _difference(reductions(o for o in outcomes if o.selection == name), control)
        for name in names
        if control
    ]


def by_target(findings: Findings) -> list[Row]:
    """Per target and selection of the headline arm: mean and sd over seeds."""
    outcomes = findings.headline_outcomes()
    ids = list(dict.fromkeys([t.id for t in findings.targets] + [o.target for o in outcomes]))
    cells = ((i, s) for i in ids for s in findings.selections())
    return [
        {"target": i, "selection": s} | _spread(group)
        for i, s in cells
        if (group := [o for o in outcomes if (o.target, o.selection) == (i, s)])
    ]


def comparison(findings: Findings) -> list[Row]:
    """Every arm that was run (loss, variant, update, aim, selection), against its random one."""
    arms: dict[tuple[str, ...], list[Outcome]] = {}
    for o in findings.outcomes:
        arms.setdefault((o.aim, o.update, o.loss, o.variant, o.selection), []).append(o)
    rows = []
    for (aim, update, loss, variant, selection), group in arms.items():
        row = {"aim": aim, "update": update, "loss": loss, "variant": variant}
        row |= {"selection": selection} | _reduction(group)
        control = [o for o in findings.outcomes if _is_control(o, aim, update)]
        if selection != CONTROL and control:
            versus = _difference(reductions(group), reductions(control))
            row |= {f"vs_random_{k}": versus[k] for k in ("points", "low_points", "high_points")}
            row |= {"pairs": versus["pairs"], "wins": versus["wins"]}
        rows.append(row)
    return rows


def trial(outcome: Outcome) -> Row:
    row = {k: v for k, v in vars(outcome).items() if k != "metric_by_step"}
    last = outcome.metric_by_step[-1] if len(outcome.metric_by_step) else None
    return row | {"steps": max(0, len(outcome.metric_by_step) - 1), "metric_after": last}


def steps(findings: Findings) -> list[Row]:
    """Per selection and fine-tuning step: the metric's mean and sd over trials."""
    rows = []
    outcomes = findings.headline_outcomes()
    for selection in findings.selections():
        series = [o.metric_by_step for o in outcomes if o.selection == selection]
        longest = max((len(s) for s in series), default=0)
        for step in range(longest):
            values = [s[step] for s in series if len(s) > step]
            mean, sd, finite = mean_sd(values)
            row = {"selection": selection, "step": step, "mean": mean, "sd": sd}
            rows.append(row | {"trials": finite})
    return rows


def axis(findings: Findings) -> list[Row]:
    curves = findings.axis_curves
    if curves is None:
        return []
    return [
        {"x": x, "samples": curves.counts[b]} | {k: y[b] for k, y in curves.curves.items()}
        for b, x in enumerate(curves.x)
    ]


def targets(findings: Findings) -> list[Row]:
    return [
        {"id": t.id, "axis": t.axis, "metric": t.metric, "reference": t.reference, "gap": t.gap}
        | _extra(t.columns, ("id", "axis", "metric", "reference", "gap"))
        for t in findings.targets
    ]


def scores(findings: Findings) -> list[Row]:
    """Per loss, variant and target: how the training samples' scores are distributed."""
    rows = []
    for scoring in findings.scores:
        for target, scores_N in scoring.scores.items():
            row: Row = {"loss": scoring.loss, "variant": scoring.variant, "target": target}
            row |= array_summary(scores_N)
            row["helpful"] = int(np.sum(np.asarray(scores_N) > 0))
            row["nonpositive_denominators"] = scoring.nonpositive_denominators
            rows.append(row)
    return rows


def top_samples(findings: Findings) -> list[Row]:
    own = ("target", "rank", "id", "score")
    return [
        {name: getattr(s, name) for name in own} | _extra(s.columns, own)
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


def reductions(outcomes: Iterable[Outcome]) -> Trials:
    return {(o.target, o.seed): float(o.gap_reduction_pct) for o in outcomes}


def mean_sd(values: Iterable[float]) -> tuple[float, float, int]:
    """Mean, sample sd and number of the finite values; NaN where there are too few."""
    finite = [float(v) for v in values if math.isfinite(v)]
    mean = float(np.mean(finite)) if finite else math.nan
    sd = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return mean, sd, len(finite)


def _reduction(outcomes: list[Outcome]) -> Row:
    e = estimate(reductions(outcomes))
    row: Row = {"mean_pct": e.mean, "sd_pct": e.sd, "low_pct": e.low, "high_pct": e.high}
    return row | {"trials": e.trials, "failed": e.failed, "targets": e.targets}


def _side_effect(outcomes: list[Outcome]) -> Row:
    changes = {
        (o.target, o.seed): float(o.non_target_change_pct)
        for o in outcomes
        if o.non_target_change_pct is not None
    }
    e = estimate(changes)
    names = ("mean_pct", "sd_pct", "low_pct", "high_pct")
    values = (e.mean, e.sd, e.low, e.high)
    return {f"non_target_{n}": v for n, v in zip(names, values, strict=True)}


def _difference(ours: Trials, control: Trials) -> Row:
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


def _spread(outcomes: list[Outcome]) -> Row:
    mean, sd, finite = mean_sd(o.gap_reduction_pct for o in outcomes)
    return {"mean_pct": mean, "sd_pct": sd, "trials": finite, "failed": len(outcomes) - finite}


def _is_control(outcome: Outcome, aim: str, update: str) -> bool:
    return (outcome.selection, outcome.aim, outcome.update) == (CONTROL, aim, update)


def _extra(columns: Any, own: Sequence[str]) -> Row:
    """Columns from the data; one that would shadow ours gets a trailing underscore."""
    return {f"{name}_" if name in own else str(name): value for name, value in columns.items()}
