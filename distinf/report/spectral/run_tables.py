"""Rows that set runs beside each other: Table 1, what tuning did to whom, variations, overlaps."""

import math
from collections.abc import Iterator
from itertools import combinations

from distinf.numerics.means import highest, mean_sd
from distinf.report.rows import Row
from distinf.report.spectral import families, trials
from distinf.report.spectral.findings import CONTROL, SELECTED, AxisCurves, Findings, Outcome


def table_1(findings: Findings) -> list[Row]:
    """Per run, loss, variant and selection: the gap closed, here and as published.

    `place` ranks the guided cells of a column: 1 is the largest mean.
    """
    columns: dict[tuple[str, str, str], list[Row]] = {}
    for name, run in families.runs(findings).items():
        family, label = families.table_1(run), families.run_label(name, run)
        for group in families.arms(family).values() if family is not None else ():
            row: Row = {"run": name, "column": label, "source": "measured"}
            row |= {n: getattr(group[0], n) for n in ("loss", "variant", "selection")}
            row["target_ids"] = " ".join(str(i) for i in dict.fromkeys(o.target for o in group))
            row |= trials.reduction(group)
            columns.setdefault(("", label, name), []).append(row)
    names = ("run", "column", "source", "loss", "variant", "selection", "mean_pct", "sd_pct")
    for p in findings.published if columns else ():
        row = {n: getattr(p, n) for n in names}
        row["sd_pct"] = math.nan if p.sd_pct is None else p.sd_pct
        columns.setdefault(("published", p.column, p.run), []).append(row)
    for column in columns.values():
        guided = [r for r in column if r["selection"] == SELECTED and math.isfinite(r["mean_pct"])]
        guided.sort(key=lambda r: -r["mean_pct"])
        for row in column:
            row["place"] = guided.index(row) + 1 if row in guided else None
    return [row for column in columns.values() for row in column]


def panels(findings: Findings) -> list[tuple[str, str, Findings, AxisCurves]]:
    """(run, experiment, that run, curves): the headline's first, then families that hold some.

    Of the runs with a Table 1, and of this one.
    """
    compared = {
        n: r for n, r in families.runs(findings).items() if not n or families.table_1(r) is not None
    }
    found = [(n, "", r, r.axis_curves) for n, r in compared.items() if r.axis_curves]
    for family in families.experiments(findings):
        for name, run in compared.items():
            same = next((f for f in families.experiments(run) if f.name == family.name), None)
            if same is not None and same.axis_curves is not None:
                found.append((name, family.name, run, same.axis_curves))
    return found


def panel_label(run: Findings, experiment: str = "") -> str:
    """Aim and length, "single-target, 3 steps": the headline's, or an experiment's, by its name
    where its aim is the headline's."""
    head = run.headline
    if not experiment:
        steps = [families.spoken("steps", head.steps)] if head.steps else []
        return ", ".join(filter(None, (head.aim, *steps)))
    family = next(f for f in families.experiments(run) if f.name == experiment)
    aim = families.fixed(run, family).get("aim", experiment.replace("_", " "))
    return f"{aim}, {families.spoken('steps', families.longest(family))}"


def effects(findings: Findings) -> list[Row]:
    """What tuning did to targets and to others, per panel and role; empty where nobody measured."""
    rows = []
    for name, experiment, run, curves in panels(findings):
        family = next((f for f in families.experiments(run) if f.name == experiment), None)
        mine = run.headline_outcomes() if family is None else list(family.outcomes)
        if any(o.non_target_metric is not None for o in mine):
            told = {"run": name, "label": families.run_label(name, run), "experiment": experiment}
            told["panel"] = panel_label(run, experiment)
            touched = {o.target for o in mine}
            rows += [told | r for r in (*_untuned(run, touched), *_tuned(mine, curves))]
    return rows


def _untuned(run: Findings, touched: set[int]) -> Iterator[Row]:
    for role, key in (("reference", "reference"), ("baseline", "baseline"), ("before", "metric")):
        mean, _, known = mean_sd(getattr(t, key) for t in run.targets if t.id in touched)
        other = getattr(run, f"non_target_{role}")
        if known or other is not None:
            yield {"role": role, "target_metric": mean, "non_target_metric": other}


def _tuned(every: list[Outcome], curves: AxisCurves) -> Iterator[Row]:
    first: dict[str, Outcome] = {}
    for o in every:
        first.setdefault(o.selection, o)
    order = [s for s in curves.curves if s in first]
    for selection in dict.fromkeys([*order, *first]):
        group = [
            o
            for o in every
            if families.alike(o, first[selection], ("selection", *families.COMPARED))
        ]
        ends = [o.metric_by_step[-1] for o in group if len(o.metric_by_step)]
        mean, sd, _ = mean_sd(ends)
        row: Row = {"role": selection, "target_metric": mean, "target_metric_sd": sd}
        yield row | trials.reduction(group) | trials.others(group)


def variations(findings: Findings) -> list[Row]:
    """How well each run's model does, how far its targets fall short, and what guidance gained.

    Empty where there is no other beside this one.
    """
    if not findings.beside:
        return []
    return [_variation(*run) for run in {"": findings, **findings.beside}.items()]


def _variation(name: str, run: Findings) -> Row:
    groups, chosen, points = run.by_selection(), run.guided(), run.evaluation
    row: Row = {"run": name, "label": families.run_label(name, run), "targets": len(run.targets)}
    row |= {"experiment": panel_label(run), "guided": chosen}
    for key in ("metric", "reference"):
        values_E = None if points is None else getattr(points, f"{key}_E")
        row[f"evaluation_{key}"] = math.nan if values_E is None else mean_sd(values_E)[0]
    for key in ("metric", "gap"):
        row[f"target_{key}"] = mean_sd(getattr(t, key) for t in run.targets)[0]
    row["non_target_before"] = run.non_target_before
    by = {"guided": groups.get(chosen, []), CONTROL: groups.get(CONTROL, [])}
    for who, group in by.items():
        metric = {"non_target_metric": trials.others(group)["non_target_metric"]}
        if group:
            row |= {f"{who}_{k}": v for k, v in (trials.reduction(group) | metric).items()}
    if all(by.values()):
        row |= {f"vs_{k}": v for k, v in trials.difference(by["guided"], by[CONTROL]).items()}
    return row


def overlaps(findings: Findings) -> list[Row]:
    """Per target and pair of scores: how many rows are in both pools of highest scores.

    Pairs are of one run, or of one loss and variant in this run and one beside it that has the
    same rows.
    """
    found, pool, every = [], findings.headline.pool, {"": findings, **findings.beside}
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
