"""Every number of the report as plain rows."""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import Any, get_args

import numpy as np

from distinf.numerics.bootstrap import concentration_pct, highest, mean_sd
from distinf.numerics.krylov import has_converged
from distinf.numerics.truncation import Kind, marginal_reductions, truncation_bound
from distinf.report.rows import Row, array_summary, plain
from distinf.report.spectral.families import (
    arms,
    experiments,
    fixed,
    kind,
    longest,
    run_label,
    runs,
    same_arm,
    spoken,
    table_1,
)
from distinf.report.spectral.findings import (
    CONTROL,
    SELECTED,
    AxisCurves,
    Findings,
    Outcome,
)
from distinf.report.spectral.trials import (
    against,
    arm_rows,
    bins,
    difference,
    extra,
    others,
    path,
    rate_rows,
    reduction,
    side_effect,
    spread,
    told_apart,
    trial,
)

Tables = dict[str, list[Row]]
BESIDE = ("summary", "paired", "by_target", "targets", "axis", "arms", "trials", "arm_trials")


def tables(findings: Findings) -> Tables:
    """Name -> rows. Percentages carry `_pct`, percentage points `_points`; missing is NaN/None.

    `low` and `high` bound the 95 % bootstrap interval over targets, then seeds. The tables of
    further experiments, of attribution and of other runs are there where those are.
    """
    own, every = run_tables(findings), experiments(findings)
    some = {
        "arms": own.pop("arms"),
        "arm_trials": own.pop("arm_trials"),
        "arm_steps": [
            told_apart(f, group[0]) | row
            for f in every
            for group in arms(f).values()
            for row in path(group)
        ],
        "arm_axis": [{"experiment": f.name} | row for f in every for row in bins(f.axis_curves)],
        "rates": [row for f in every if kind(f) == "rates" for row in rate_rows(findings, f)],
        "table_1": _table_1(findings),
        "effects": _effects(findings),
        "overlaps": _overlaps(findings),
        "truncation": _truncation(findings),
        **_attributions(findings),
        "variations": [_variation(*run) for run in _all(findings).items() if findings.beside],
    }
    for name, run in findings.beside.items():
        for table, rows in run_tables(run).items():
            some.setdefault(f"beside_{table}", []).extend({"run": name} | r for r in rows)
    always = own | {
        "comparison": _comparison(findings),
        "steps": [
            {"selection": selection} | row
            for selection, group in findings.by_selection().items()
            for row in path(group)
        ],
        "scores": _scores(findings),
        "top_samples": [_flat(r) for r in findings.top_samples],
        "ritz": _ritz(findings),
        "solves": [*findings.solves],
        "training": _training(findings),
        "costs": _costs(findings),
        "published": [plain(p) for p in findings.published],
    }
    return always | {name: rows for name, rows in some.items() if rows}


def run_tables(run: Findings) -> Tables:
    """What every run has, those beside this one too."""
    groups, cells = run.by_selection(), run.headline_outcomes()
    ids = dict.fromkeys([*(t.id for t in run.targets), *(o.target for o in cells)])
    control = groups.get(CONTROL)
    return {
        "summary": [
            {"selection": name} | reduction(mine) | side_effect(mine)
            for name, mine in groups.items()
        ],
        "paired": [
            {"selection": name, "control": CONTROL} | difference(mine, control)
            for name, mine in groups.items()
            if control and name != CONTROL
        ],
        "by_target": [
            {"target": i, "selection": name} | spread(group)
            for i in ids
            for name, mine in groups.items()
            if (group := [o for o in mine if o.target == i])
        ],
        "targets": [
            {k: getattr(t, k) for k in ("id", "axis", "metric", "reference", "gap")}
            | extra(t.columns, ("id", "axis", "metric", "reference", "gap"))
            for t in run.targets
        ],
        "axis": bins(run.axis_curves),
        "trials": [trial(o) for o in run.outcomes],
        "arms": [row for f in experiments(run) for row in arm_rows(run, f)],
        "arm_trials": [{"experiment": f.name} | trial(o) for f in run.families for o in f.outcomes],
    }


def _all(findings: Findings) -> dict[str, Findings]:
    return {"": findings, **findings.beside}


def _comparison(findings: Findings) -> list[Row]:
    """Every arm that was run (loss, variant, update, aim, selection), against its random one."""
    names = ("aim", "update", "loss", "variant", "selection")
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for o in findings.outcomes:
        groups.setdefault(tuple(getattr(o, n) for n in names), []).append(o)
    rows = []
    for arm, group in groups.items():
        row = dict(zip(names, arm, strict=True)) | reduction(group)
        control = [
            o for o in findings.outcomes if (o.aim, o.update, o.selection) == (*arm[:2], CONTROL)
        ]
        if row["selection"] != CONTROL and control:
            row |= against("vs_random_", group, control)
        rows.append(row)
    return rows


def _table_1(findings: Findings) -> list[Row]:
    """Per run, loss, variant and selection: the gap closed, here and as published.

    `place` ranks the guided cells of a column: 1 is the largest mean.
    """
    rows = []
    for name, run in runs(findings).items():
        family = table_1(run)
        if family is not None:
            rows += _ranked([_measured(name, run, g) for g in arms(family).values()])
    names = ("run", "column", "source", "loss", "variant", "selection", "mean_pct", "sd_pct")
    printed = [{n: getattr(p, n) for n in names} for p in findings.published]
    printed = [r | {"sd_pct": math.nan} if r["sd_pct"] is None else r for r in printed]
    for column in dict.fromkeys((r["column"], r["run"]) for r in printed if rows):
        rows += _ranked([r for r in printed if (r["column"], r["run"]) == column])
    return rows


def _measured(name: str, run: Findings, group: list[Outcome]) -> Row:
    first = group[0]
    row: Row = {"run": name, "column": run_label(name, run), "source": "measured"}
    row |= {n: getattr(first, n) for n in ("loss", "variant", "selection")}
    row |= {"target_ids": " ".join(str(i) for i in dict.fromkeys(o.target for o in group))}
    return row | reduction(group)


def _ranked(rows: list[Row]) -> list[Row]:
    guided = [r for r in rows if r["selection"] == SELECTED and math.isfinite(r["mean_pct"])]
    guided.sort(key=lambda r: -r["mean_pct"])
    places = {id(r): place for place, r in enumerate(guided, 1)}
    return [r | {"place": places.get(id(r))} for r in rows]


def panels(findings: Findings) -> list[tuple[str, str, Findings, AxisCurves]]:
    """(run, experiment, that run, curves): the headline's first, then families that hold some.

    Of the runs with a Table 1, and of this one.
    """
    compared = {n: r for n, r in runs(findings).items() if not n or table_1(r) is not None}
    found = [(n, "", r, r.axis_curves) for n, r in compared.items() if r.axis_curves]
    for family in experiments(findings):
        for name, run in compared.items():
            same = next((f for f in experiments(run) if f.name == family.name), None)
            if same is not None and same.axis_curves is not None:
                found.append((name, family.name, run, same.axis_curves))
    return found


def panel_label(run: Findings, experiment: str = "") -> str:
    """Aim and length, "single-target, 3 steps": the headline's, or an experiment's, by its name
    where its aim is the headline's."""
    head = run.headline
    if not experiment:
        steps = [spoken("steps", head.steps)] if head.steps else []
        return ", ".join(filter(None, (head.aim, *steps)))
    family = next(f for f in experiments(run) if f.name == experiment)
    aim = fixed(run, family).get("aim", experiment.replace("_", " "))
    return f"{aim}, {spoken('steps', longest(family))}"


def _effects(findings: Findings) -> list[Row]:
    """What tuning did to targets and to others, per panel and role; empty where nobody measured."""
    rows = []
    for name, experiment, run, curves in panels(findings):
        family = next((f for f in experiments(run) if f.name == experiment), None)
        trials = run.headline_outcomes() if family is None else list(family.outcomes)
        if any(o.non_target_metric is not None for o in trials):
            told = {"run": name, "label": run_label(name, run), "experiment": experiment}
            told["panel"] = panel_label(run, experiment)
            touched = {o.target for o in trials}
            rows += [told | r for r in (*_untuned(run, touched), *_tuned(trials, curves))]
    return rows


def _untuned(run: Findings, touched: set[int]) -> Iterator[Row]:
    for role, key in (("reference", "reference"), ("baseline", "baseline"), ("before", "metric")):
        mean, _, known = mean_sd(getattr(t, key) for t in run.targets if t.id in touched)
        other = getattr(run, f"non_target_{role}")
        if known or other is not None:
            yield {"role": role, "target_metric": mean, "non_target_metric": other}


def _tuned(trials: list[Outcome], curves: AxisCurves) -> Iterator[Row]:
    first: dict[str, Outcome] = {}
    for o in trials:
        first.setdefault(o.selection, o)
    order = [s for s in curves.curves if s in first]
    for selection in dict.fromkeys([*order, *first]):
        group = [o for o in trials if same_arm(o, first[selection])]
        ends = [o.metric_by_step[-1] for o in group if len(o.metric_by_step)]
        mean, sd, _ = mean_sd(ends)
        row: Row = {"role": selection, "target_metric": mean, "target_metric_sd": sd}
        yield row | reduction(group) | others(group)


def _variation(name: str, run: Findings) -> Row:
    """How well a run's model does, how far its targets fall short, and what guidance gained."""
    groups, chosen, points = run.by_selection(), run.guided(), run.evaluation
    by = {"guided": groups.get(chosen, []), CONTROL: groups.get(CONTROL, [])}
    row: Row = {"run": name, "label": run_label(name, run), "targets": len(run.targets)}
    row |= {"experiment": panel_label(run), "guided": chosen}
    for key in ("metric", "reference"):
        values_E = None if points is None else getattr(points, f"{key}_E")
        row[f"evaluation_{key}"] = math.nan if values_E is None else mean_sd(values_E)[0]
    for key in ("metric", "gap"):
        row[f"target_{key}"] = mean_sd(getattr(t, key) for t in run.targets)[0]
    row["non_target_before"] = run.non_target_before
    for who, group in by.items():
        if group:
            told = reduction(group) | {"non_target_metric": others(group)["non_target_metric"]}
            row |= {f"{who}_{k}": v for k, v in told.items()}
    if all(by.values()):
        row |= {f"vs_{k}": v for k, v in difference(by["guided"], by[CONTROL]).items()}
    return row


def _overlaps(findings: Findings) -> list[Row]:
    """Per target and pair of scores: how many rows are in both pools of highest scores.

    Pairs are of one run, or of one loss and variant in this run and one beside it that has the
    same rows.
    """
    found, pool, every = [], findings.headline.pool, _all(findings)
    tops = {
        (name, s.loss, s.variant): {t: highest(v, pool) for t, v in s.scores.items()}
        for name, run in every.items()
        for s in run.scores
    }
    for one, other in combinations(tops, 2):
        across = one[0] != other[0] and (one[0] or one[1:] != other[1:])
        if across or every[one[0]].data != every[other[0]].data:
            continue
        names = dict(zip(("run", "loss", "variant"), one, strict=True))
        names |= dict(zip(("other_run", "other_loss", "other_variant"), other, strict=True))
        for target in tops[one].keys() & tops[other].keys():
            shared = len(tops[one][target] & tops[other][target])
            found.append(names | {"target": target, "pool": pool, "shared": shared})
    return sorted(found, key=lambda r: r["run"] != r["other_run"])


def _scores(findings: Findings) -> list[Row]:
    """Per loss, variant and target: how the training samples' scores are distributed."""
    rows = []
    for scoring in findings.scores:
        for target, scores_N in scoring.scores.items():
            row: Row = {"loss": scoring.loss, "variant": scoring.variant, "target": target}
            row |= array_summary(scores_N)
            row["helpful"] = int(np.sum(np.asarray(scores_N) > 0))
            row["nonpositive_denominators"] = scoring.nonpositive_denominators
            if target in scoring.outside_shares:
                row["outside_share"] = scoring.outside_shares[target]
            rows.append(row)
    return rows


def _flat(sample: Row) -> Row:
    own = {k: v for k, v in sample.items() if k != "columns"}
    return own | extra(sample["columns"], own)


def _ritz(findings: Findings) -> list[Row]:
    """Ritz pairs in order; `drop` is how much smaller in size the next value is (0 to 1)."""
    pairs = findings.ritz
    if pairs is None:
        return []
    sizes = [*(abs(v) for v in pairs.values_K), math.nan]
    return [
        {
            "rank": k + 1,
            "value": value,
            "residual": residual,
            "converged": has_converged(value, residual),
            "kept": pairs.is_kept(k),
            "drop": 1 - sizes[k + 1] / sizes[k] if sizes[k] else math.nan,
        }
        for k, (value, residual) in enumerate(zip(pairs.values_K, pairs.residuals_K, strict=True))
    ]


def _training(findings: Findings) -> list[Row]:
    curve = findings.training
    both = zip(curve.steps, curve.loss, strict=True) if curve is not None else ()
    return [{"step": s, "loss": x} for s, x in both]


def _costs(findings: Findings) -> list[Row]:
    """Per stage, then the total; `bytes` is what the stage stored."""
    rows = [plain(c) for c in findings.costs]
    names = ("units", "seconds", "worker_seconds", "bytes")
    total: dict[str, Any] = {"stage": "total"} | {n: sum(r[n] for r in rows) for n in names}
    return [*rows, total] if len(rows) > 1 else rows


def _truncation(findings: Findings) -> list[Row]:
    """Per term added, the bound on what is dropped and by how much the term lowered it.

    From the values of all Krylov steps that have converged, where more of them are known than were
    kept; see numerics.truncation, which says what is reconstructed.
    """
    pairs = findings.ritz
    values = pairs.converged_values() if pairs is not None else []
    if pairs is None or len(values) <= max(2, len(pairs.values_K)):
        return []
    rows: list[Row] = [{"terms": k} for k in range(1, len(values))]
    for which in get_args(Kind):
        bounds = truncation_bound(values, which)
        lowered, share = marginal_reductions(bounds)
        for k, row in enumerate(rows):
            row[f"bound_{which}"] = float(bounds[k + 1])
            row[f"lowered_{which}"] = float(lowered[k])
            row[f"lowered_{which}_pct"] = 100 * float(share[k])
    return rows


def _attributions(findings: Findings) -> Tables:
    """Per pictured sample: its score, and how concentrated the parts are that add up to it; and
    their sums per place of each axis.

    `top_tenth_pct`: share of all absolute parts that the largest tenth of the elements hold.
    """
    rows, sums = [], []
    for a in findings.attributions:
        parts_SF = np.atleast_2d(np.asarray(a.parts_SF, dtype=np.float64))
        finite = parts_SF[np.isfinite(parts_SF)]
        told: Row = {"target": a.target, "rank": a.rank, "id": a.id}
        row = told | {"score": a.score, "elements": int(finite.size)}
        row |= {"left_out": int(parts_SF.size - finite.size), "sum": float(np.nansum(parts_SF))}
        row["above_0_pct"] = 100 * float(np.mean(finite > 0)) if finite.size else math.nan
        row["top_tenth_pct"] = concentration_pct(finite)
        for axis, name in enumerate(a.axes):
            along = np.nansum(parts_SF, axis=1 - axis)
            row[f"strongest_{name}"] = int(np.argmax(np.abs(along)))
            sums += [
                told | {"axis": name, "place": k, "sum": float(s)} for k, s in enumerate(along)
            ]
        rows.append(row)
    return {"attributions": rows, "attribution_sums": sums}
