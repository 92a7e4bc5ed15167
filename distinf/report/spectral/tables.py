"""Every number of the report as plain rows."""

import math
from operator import attrgetter
from typing import get_args

import numpy as np

from distinf.numerics.krylov import has_converged
from distinf.numerics.means import concentration_pct
from distinf.numerics.truncation import Kind, marginal_reductions, truncation_bound
from distinf.report.provenance import cost_rows
from distinf.report.rows import Row, array_summary, gathered, plain
from distinf.report.spectral import families, run_tables, trials
from distinf.report.spectral.findings import CONTROL, Findings, Ritz

Tables = dict[str, list[Row]]
TARGET = ("id", "axis", "metric", "reference", "gap")


def tables(findings: Findings) -> Tables:
    """Name -> rows. Percentages carry `_pct`, percentage points `_points`; missing is NaN/None.

    `low` and `high` bound the 95 % bootstrap interval over targets, then seeds. The tables of
    further experiments, of attribution and of other runs are there where those are.
    """
    own, curve = own_tables(findings), findings.training
    some = {
        "arms": own.pop("arms"),
        "arm_trials": own.pop("arm_trials"),
        **_experiments(findings),
        "table_1": run_tables.table_1(findings),
        "effects": run_tables.effects(findings),
        "free_rankings": run_tables.free_rankings(findings),
        "classes": run_tables.classes(findings),
        "overlaps": run_tables.overlaps(findings),
        "truncation": _truncation(findings.ritz),
        "sensitivity": [*findings.sensitivity],
        **_attributions(findings),
        "variations": run_tables.variations(findings),
    }
    for name, run in findings.variations.items():
        for table, rows in own_tables(run).items():
            some.setdefault(f"beside_{table}", []).extend({"run": name} | r for r in rows)
    always = own | {
        "comparison": _comparison(findings),
        "steps": [
            {"selection": selection} | row
            for selection, group in findings.by_selection().items()
            for row in trials.path(group)
        ],
        "scores": _scores(findings),
        "top_samples": [
            (own := {k: v for k, v in r.items() if k != "columns"})
            | trials.extra(r["columns"], own)
            for r in findings.top_samples
        ],
        "ritz": _ritz(findings.ritz),
        "solves": [*findings.solves],
        "training": [
            {"step": step, "loss": loss}
            for step, loss in (zip(curve.steps, curve.loss, strict=True) if curve else ())
        ],
        "costs": cost_rows(findings.costs),
        "published": [plain(p) for p in findings.published],
    }
    return always | {name: rows for name, rows in some.items() if rows}


def _experiments(findings: Findings) -> Tables:
    """The courses of the arms of further experiments, and the rates that they sweep over."""
    every = families.experiments(findings)
    return {
        "arm_steps": [
            families.told_apart(f, group[0]) | row
            for f in every
            for group in families.arms(f).values()
            for row in trials.path(group)
        ],
        "arm_axis": [
            {"experiment": f.name} | row for f in every for row in trials.bins(f.axis_curves)
        ],
        "rates": [row for f in every for row in families.rate_rows(findings, f)],
    }


def own_tables(run: Findings) -> Tables:
    """What every run has, those beside this one too."""
    groups, cells = run.by_selection(), run.main_outcomes()
    ids = dict.fromkeys([*(t.id for t in run.targets), *(o.target for o in cells)])
    return {
        "summary": [
            {"selection": name} | trials.reduction(mine) | trials.side_effect(mine)
            for name, mine in groups.items()
        ],
        "paired": trials.paired(groups),
        "by_target": [
            {"target": i, "selection": name} | trials.spread(group)
            for i in ids
            for name, mine in groups.items()
            if (group := [o for o in mine if o.target == i])
        ],
        "targets": [
            {k: getattr(t, k) for k in TARGET} | trials.extra(t.columns, TARGET)
            for t in run.targets
        ],
        "axis": trials.bins(run.axis_curves),
        "trials": [trials.trial(o) for o in run.outcomes],
        "arms": [row for f in families.experiments(run) for row in families.arm_rows(run, f)],
        "arm_trials": [
            {"experiment": f.name} | trials.trial(o) for f in run.families for o in f.outcomes
        ],
    }


def _comparison(findings: Findings) -> list[Row]:
    """Every arm that was run (loss, variant, update, aim, selection), against its random one."""
    names, rows = ("aim", "update", "loss", "variant", "selection"), list[Row]()
    for arm, group in gathered(findings.outcomes, attrgetter(*names)).items():
        row, alike = dict(zip(names, arm, strict=True)), (*arm[:2], CONTROL)
        row |= trials.reduction(group)
        control = [o for o in findings.outcomes if (o.aim, o.update, o.selection) == alike]
        if row["selection"] != CONTROL and control:
            row |= trials.against("vs_random_", group, control)
        rows.append(row)
    return rows


def _scores(findings: Findings) -> list[Row]:
    """Per loss, variant and target: how the training samples' scores are distributed."""
    rows = []
    for scoring in findings.scores:
        for target, scores_N in scoring.scores.items():
            row: Row = {"loss": scoring.loss, "variant": scoring.variant, "target": target}
            row |= array_summary(scores_N) | {"helpful": int(np.sum(np.asarray(scores_N) > 0))}
            row["nonpositive_denominators"] = scoring.nonpositive_denominators
            if target in scoring.outside_shares:
                row["outside_share"] = scoring.outside_shares[target]
            rows.append(row)
    return rows


def _ritz(pairs: Ritz | None) -> list[Row]:
    """Ritz pairs in order; `drop` is how much smaller in size the next value is (0 to 1)."""
    if pairs is None:
        return []
    sizes = [*map(abs, pairs.values_K), math.nan]
    return [
        {"rank": k + 1, "value": value, "residual": residual}
        | {"converged": has_converged(value, residual), "kept": pairs.is_kept(k)}
        | {"drop": 1 - sizes[k + 1] / sizes[k] if sizes[k] else math.nan}
        for k, (value, residual) in enumerate(zip(pairs.values_K, pairs.residuals_K, strict=True))
    ]


def _truncation(pairs: Ritz | None) -> list[Row]:
    """Per term added, the bound on what is dropped and by how much the term lowered it.

    From the values of all Krylov steps that have converged, where more of them are known than were
    kept; see numerics.truncation, which says what is reconstructed.
    """
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
        row = told | {"score": a.score, "elements": finite.size}
        row |= {"left_out": parts_SF.size - finite.size, "sum": float(np.nansum(parts_SF))}
        row["above_0_pct"] = 100 * float(np.mean(finite > 0)) if finite.size else math.nan
        row["top_tenth_pct"] = concentration_pct(finite)
        for axis, name in enumerate(a.axes):
            along = np.nansum(parts_SF, axis=1 - axis).tolist()
            row[f"strongest_{name}"] = int(np.argmax(np.abs(along)))
            sums += [told | {"axis": name, "place": k, "sum": s} for k, s in enumerate(along)]
        rows.append(row)
    return {"attributions": rows, "attribution_sums": sums}
