"""Rows that set runs beside each other: Table 1, what tuning did to whom, the variations."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from distinf.report.spectral.experiment_tables import arm_rows, others
from distinf.report.spectral.families import (
    arms,
    experiments,
    fixed,
    run_label,
    runs,
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
from distinf.report.spectral.headline_tables import (
    bins,
    by_target,
    paired,
    summary,
    targets,
    trial,
)
from distinf.report.spectral.summaries import Row, difference, mean_sd, reduction, reductions

ROLES = ("reference", "baseline", "before")


def table_1_rows(findings: Findings) -> list[Row]:
    """Per run, loss, variant and selection: the gap closed, here and as published.

    `place` ranks the guided cells of a column: 1 is the largest mean.
    """
    rows = []
    for name, run in runs(findings).items():
        family = table_1(run)
        if family is not None:
            rows += _ranked([_measured(name, run, g) for g in arms(family).values()])
    if rows:
        columns = dict.fromkeys((p.column, p.run) for p in findings.published)
        for column in columns:
            rows += _ranked([r for r in _printed(findings) if (r["column"], r["run"]) == column])
    return rows


def _measured(name: str, run: Findings, group: list[Outcome]) -> Row:
    first = group[0]
    row = {"run": name, "column": run_label(name, run), "source": "measured"}
    row |= {"loss": first.loss, "variant": first.variant, "selection": first.selection}
    row |= {"target_ids": " ".join(str(i) for i in dict.fromkeys(o.target for o in group))}
    return row | reduction(group)


def _printed(findings: Findings) -> list[Row]:
    return [
        {
            "run": p.run,
            "column": p.column,
            "source": p.source,
            "loss": p.loss,
            "variant": p.variant,
            "selection": p.selection,
            "mean_pct": p.mean_pct,
            "sd_pct": math.nan if p.sd_pct is None else p.sd_pct,
        }
        for p in findings.published
    ]


def _ranked(rows: list[Row]) -> list[Row]:
    guided = [r for r in rows if r["selection"] == SELECTED and math.isfinite(r["mean_pct"])]
    guided.sort(key=lambda r: -r["mean_pct"])
    places = {id(r): place for place, r in enumerate(guided, 1)}
    return [r | {"place": places.get(id(r))} for r in rows]


def compared_runs(findings: Findings) -> dict[str, Findings]:
    """The runs whose curves stand beside each other: those with a Table 1, and this one."""
    return {n: r for n, r in runs(findings).items() if not n or table_1(r) is not None}


def panels(findings: Findings) -> list[tuple[str, str, Findings, AxisCurves]]:
    """(run, experiment, that run, curves): the headline's first, then families that hold some."""
    compared = compared_runs(findings)
    found = [(n, "", r, r.axis_curves) for n, r in compared.items() if r.axis_curves]
    for family in experiments(findings):
        for name, run in compared.items():
            same = next((f for f in experiments(run) if f.name == family.name), None)
            if same is not None and same.axis_curves is not None:
                found.append((name, family.name, run, same.axis_curves))
    return found


def headline_label(findings: Findings) -> str:
    """The headline's aim and length: "single-target, 3 steps"."""
    head = findings.headline
    return ", ".join(filter(None, (head.aim, spoken("steps", head.steps) if head.steps else "")))


def panel_label(run: Findings, experiment: str) -> str:
    """The same for a panel; an experiment is told by its name and by what sets it apart."""
    if not experiment:
        return headline_label(run)
    family = next(f for f in experiments(run) if f.name == experiment)
    apart = fixed(run, family)
    steps = max((o.value("steps") for o in family.outcomes), default=0)
    aim = [str(apart["aim"])] if "aim" in apart else []
    return ", ".join([*(aim or [experiment.replace("_", " ")]), spoken("steps", steps)])


def effects(findings: Findings) -> list[Row]:
    """What tuning did to targets and to others, per panel and role; empty where nobody measured."""
    rows = []
    for name, experiment, run, curves in panels(findings):
        family = next((f for f in experiments(run) if f.name == experiment), None)
        trials = run.headline_outcomes() if family is None else list(family.outcomes)
        if not any(o.non_target_metric is not None for o in trials):
            continue
        told = {"run": name, "label": run_label(name, run), "experiment": experiment}
        told["panel"] = panel_label(run, experiment)
        touched = {o.target for o in trials}
        rows += [told | r for r in _untuned(run, touched)]
        rows += [told | r for r in _tuned(trials, curves)]
    return rows


def _untuned(run: Findings, touched: set[int]) -> Iterator[Row]:
    mine = [t for t in run.targets if t.id in touched]
    values: Mapping[str, tuple[list[Any], float | None]] = {
        "reference": ([t.reference for t in mine], run.non_target_reference),
        "baseline": ([t.baseline for t in mine], run.non_target_baseline),
        "before": ([t.metric for t in mine], run.non_target_before),
    }
    for role, (metrics, other) in values.items():
        mean, _, known = mean_sd(m for m in metrics if m is not None)
        if known or other is not None:
            yield {"role": role, "target_metric": mean, "non_target_metric": other}


def _tuned(trials: list[Outcome], curves: AxisCurves) -> Iterator[Row]:
    first: dict[str, Outcome] = {}
    for o in trials:
        first.setdefault(o.selection, o)
    order = [s for s in curves.curves if s in first] + [s for s in first if s not in curves.curves]
    for selection in order:
        group = [o for o in trials if _same_arm(o, first[selection])]
        ends = [o.metric_by_step[-1] for o in group if len(o.metric_by_step)]
        mean, sd, _ = mean_sd(ends)
        row: Row = {"role": selection, "target_metric": mean, "target_metric_sd": sd}
        yield row | reduction(group) | others(group)


def _same_arm(one: Outcome, other: Outcome) -> bool:
    names = ("selection", "loss", "variant", "update", "aim", "order", "pool", "lr", "adapter")
    return all(one.value(n) == other.value(n) for n in (*names, "steps", *other.settings))


def variations(findings: Findings) -> list[Row]:
    """Per run: how well its model does, how far its targets fall short, and what guidance gained.

    Empty without runs beside this one.
    """
    if not findings.beside:
        return []
    return [_variation(name, run) for name, run in {"": findings, **findings.beside}.items()]


def _variation(name: str, run: Findings) -> Row:
    trials, chosen = run.headline_outcomes(), run.guided()
    by = {
        "guided": [o for o in trials if o.selection == chosen],
        CONTROL: [o for o in trials if o.selection == CONTROL],
    }
    points = run.evaluation
    row: Row = {"run": name, "label": run_label(name, run), "targets": len(run.targets)}
    row |= {"experiment": headline_label(run), "guided": chosen}
    for key, array in (("metric", "metric_E"), ("reference", "reference_E")):
        values_E = getattr(points, array) if points is not None else None
        row[f"evaluation_{key}"] = math.nan if values_E is None else mean_sd(values_E)[0]
    row["target_metric"] = mean_sd(t.metric for t in run.targets)[0]
    row["target_gap"] = mean_sd(t.gap for t in run.targets)[0]
    row["non_target_before"] = run.non_target_before
    for who, group in by.items():
        if group:
            told = reduction(group) | {"non_target_metric": others(group)["non_target_metric"]}
            row |= {f"{who}_{k}": v for k, v in told.items()}
    if by["guided"] and by[CONTROL]:
        versus = difference(reductions(by["guided"]), reductions(by[CONTROL]))
        row |= {f"vs_{k}": v for k, v in versus.items()}
    return row


def beside_tables(findings: Findings) -> dict[str, list[Row]]:
    """The runs beside this one, table by table, with the run in the first column."""
    found: dict[str, list[Row]] = {}
    for name, run in findings.beside.items():
        tables = {
            "summary": summary(run),
            "paired": paired(run),
            "by_target": by_target(run),
            "targets": targets(run),
            "axis": bins(run.axis_curves) if run.axis_curves else [],
            "arms": [row for f in experiments(run) for row in arm_rows(run, f)],
            "trials": [trial(o) for o in run.outcomes],
            "arm_trials": [
                {"experiment": f.name} | trial(o) for f in run.families for o in f.outcomes
            ],
        }
        for table, rows in tables.items():
            found.setdefault(f"beside_{table}", []).extend({"run": name} | r for r in rows)
    return found
