"""Rows that set runs beside each other: Table 1, what tuning did to whom, variations, overlaps."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch

from distinf.numerics.means import highest, mean_sd
from distinf.numerics.metrics import sorted_by_class, spearman
from distinf.report.rows import Row
from distinf.report.spectral import families, trials
from distinf.report.spectral.findings import CONTROL, SELECTED, Family, Findings


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


def panels(findings: Findings) -> list[tuple[str, Findings, Family]]:
    """(run's name, run, family): the headline's first, then those that hold curves on the axis.

    Of the runs with a Table 1, and of this one.
    """
    compared = {
        name: [(name, run, f) for f in (families.headline(run), *families.experiments(run))]
        for name, run in families.runs(findings).items()
        if not name or families.table_1(run) is not None
    }
    every = [panel for own in compared.values() for panel in own if panel[2].axis_curves]
    order = [f.name for _, _, f in compared[""]]
    known = [panel for panel in every if panel[2].name in order]
    return sorted(known, key=lambda panel: order.index(panel[2].name))


def panel_label(run: Findings, family: Family | None = None) -> str:
    """Aim and length, "single-target, 3 steps": the headline's, or an experiment's, by its name
    where its aim is the headline's."""
    aim, steps = run.headline.aim, run.headline.steps
    if family is not None and family.name:
        aim = families.fixed(run, family).get("aim", family.name.replace("_", " "))
        steps = families.longest(family)
    return ", ".join(filter(None, (aim, families.spoken("steps", steps) if steps else "")))


def effects(findings: Findings) -> list[Row]:
    """What tuning did to targets and to others, per panel and role; empty where nobody measured."""
    rows = []
    for name, run, family in panels(findings):
        if any(o.non_target_metric is not None for o in family.outcomes):
            told = {"run": name, "label": families.run_label(name, run), "experiment": family.name}
            told["panel"] = panel_label(run, family)
            rows += [told | r for r in (*_untuned(run, family), *_tuned(family))]
    return rows


def _untuned(run: Findings, family: Family) -> Iterator[Row]:
    touched = {o.target for o in family.outcomes}
    for role, key in (("reference", "reference"), ("baseline", "baseline"), ("before", "metric")):
        mean, _, known = mean_sd(getattr(t, key) for t in run.targets if t.id in touched)
        other = getattr(run, f"non_target_{role}")
        if known or other is not None:
            yield {"role": role, "target_metric": mean, "non_target_metric": other}


def _tuned(family: Family) -> Iterator[Row]:
    """Per selection, the first arm's; in the order of the curves."""
    first = {o.selection: o for o in reversed(family.outcomes)}
    curves = family.axis_curves.curves if family.axis_curves else {}
    came = dict.fromkeys(o.selection for o in family.outcomes)
    names = ("selection", *families.COMPARED)
    for selection in dict.fromkeys([*(s for s in curves if s in first), *came]):
        group = [o for o in family.outcomes if families.alike(o, first[selection], names)]
        mean, sd, _ = mean_sd(o.metric_by_step[-1] for o in group if len(o.metric_by_step))
        row: Row = {"role": selection, "target_metric": mean, "target_metric_sd": sd}
        yield row | trials.reduction(group) | trials.others(group)


def variations(findings: Findings) -> list[Row]:
    """How well each run's model does, how far its targets fall short, and what guidance gained.

    Empty where there is no other beside this one.
    """
    if not findings.variations:
        return []
    return [_variation(*run) for run in {"": findings, **findings.variations}.items()]


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
    against = trials.controls(groups)
    if by["guided"] and against:
        control = [*against][-1]
        row["control"] = control
        told = trials.difference(by["guided"], against[control])
        row |= {f"vs_{k}": v for k, v in told.items()}
    return row


def versus(rows: Sequence[Row]) -> str:
    """What the guided selection is compared with in each of the runs."""
    return " or ".join(dict.fromkeys(r["control"] for r in rows if "control" in r)) or CONTROL


def free_rankings(findings: Findings) -> list[Row]:
    """Per target and ranking that costs nothing beside: its rank correlation with the headline's
    scores, and how many of their highest rows are among its highest, or its lowest where the
    correlation is below 0; `by_chance`: how many are expected of a random ranking."""
    pool, found = findings.headline.pool or 50, list[Row]()
    for free in findings.free_scores:
        for target, scores_N in findings.headline_scores().items():
            both_2N = np.stack([scores_N, free.scores[target]])
            known = np.isfinite(both_2N).all(0)
            row: Row = {"target": target, "ranking": free.variant, "rows": int(known.sum())}
            if row["rows"] < 2:
                continue
            one_N, other_N = both_2N[:, known]
            row["spearman"] = spearman(torch.from_numpy(one_N), torch.from_numpy(other_N))
            end = "lowest" if row["spearman"] < 0 else "highest"
            of = highest(-other_N if end == "lowest" else other_N, pool)
            row |= {"end": end, "pool": pool, "shared": len(highest(one_N, pool) & of)}
            found.append(row | {"by_chance": min(pool, row["rows"]) ** 2 / row["rows"]})
    return found


def classes(findings: Findings) -> list[Row]:
    """Per label, target and class: its share of all rows, which rows at random have too, and of
    the headline's pools; `sorted_pct`: how much of the ranking is its classes."""
    pool, found = findings.headline.pool or 50, list[Row]()
    for label, (names, of_N) in findings.classes.items():
        for target, scores_N in findings.headline_scores().items():
            known = np.isfinite(scores_N)
            one_N, class_N = scores_N[known], of_N[known]
            if len(np.unique(class_N)) < 2:
                continue
            ends = {"all": np.arange(len(one_N)), "helpful": [*highest(one_N, pool)]}
            ends["harmful"] = [*highest(-one_N, pool)]
            by_class = sorted_by_class(torch.from_numpy(one_N), torch.from_numpy(class_N))
            for place in np.unique(class_N).tolist():
                row: Row = {"label": label, "target": target, "class": names[place]}
                row |= {f"{k}_pct": 100 * float(np.mean(class_N[at] == place))
                        for k, at in ends.items()}  # fmt: skip
                found.append(row | {"sorted_pct": 100 * by_class})
    return found


def overlaps(findings: Findings) -> list[Row]:
    """Per target and pair of scores: how many rows are in both pools of highest scores.

    Pairs are of one run, or of one loss and variant in this run and one beside it that has the
    same rows.
    """
    found, pool, every = [], findings.headline.pool, {"": findings, **findings.variations}
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
