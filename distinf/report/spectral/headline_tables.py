"""Rows about the headline: its selections, its targets, and the arms in Findings.outcomes."""

from distinf.report.spectral.findings import CONTROL, AxisCurves, Findings, Outcome
from distinf.report.spectral.summaries import (
    Row,
    difference,
    extra,
    is_control,
    path,
    reduction,
    reductions,
    side_effect,
    spread,
)


def summary(findings: Findings) -> list[Row]:
    """Per selection of the headline arm: gap reduction and the change of the non-targets."""
    outcomes = findings.headline_outcomes()
    rows = []
    for selection in findings.selections():
        mine = [o for o in outcomes if o.selection == selection]
        rows.append({"selection": selection} | reduction(mine) | side_effect(mine))
    return rows


def paired(findings: Findings) -> list[Row]:
    """Per selection: its gap reduction minus random's, over the same targets and seeds."""
    outcomes = findings.headline_outcomes()
    control = reductions(o for o in outcomes if o.selection == CONTROL)
    names = [s for s in findings.selections() if s != CONTROL]
    return [
        {"selection": name, "control": CONTROL}
        | difference(reductions(o for o in outcomes if o.selection == name), control)
        for name in names
        if control
    ]


def by_target(findings: Findings) -> list[Row]:
    """Per target and selection of the headline arm: mean and sd over seeds."""
    outcomes = findings.headline_outcomes()
    ids = list(dict.fromkeys([t.id for t in findings.targets] + [o.target for o in outcomes]))
    cells = ((i, s) for i in ids for s in findings.selections())
    return [
        {"target": i, "selection": s} | spread(group)
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
        row |= {"selection": selection} | reduction(group)
        control = [o for o in findings.outcomes if is_control(o, aim, update)]
        if selection != CONTROL and control:
            versus = difference(reductions(group), reductions(control))
            row |= {f"vs_random_{k}": versus[k] for k in ("points", "low_points", "high_points")}
            row |= {"pairs": versus["pairs"], "wins": versus["wins"]}
        rows.append(row)
    return rows


def trial(outcome: Outcome) -> Row:
    """One fine-tune as a row; its further settings are columns, the path only its end."""
    own = {k: v for k, v in vars(outcome).items() if k not in ("metric_by_step", "settings")}
    last = outcome.metric_by_step[-1] if len(outcome.metric_by_step) else None
    rest = {"steps": outcome.value("steps"), "metric_after": last}
    further = {k: v for k, v in outcome.settings.items() if k != "steps"}
    return own | rest | extra(further, [*own, *rest])


def steps(findings: Findings) -> list[Row]:
    """Per selection and fine-tuning step: the metric's mean and sd over trials."""
    outcomes = findings.headline_outcomes()
    return [
        {"selection": selection} | row
        for selection in findings.selections()
        for row in path(o for o in outcomes if o.selection == selection)
    ]


def axis(findings: Findings) -> list[Row]:
    """Per bin of the axis: its centre, its samples and every curve."""
    return [] if findings.axis_curves is None else bins(findings.axis_curves)


def bins(curves: AxisCurves) -> list[Row]:
    return [
        {"x": x, "samples": curves.counts[b]} | {k: y[b] for k, y in curves.curves.items()}
        for b, x in enumerate(curves.x)
    ]


def targets(findings: Findings) -> list[Row]:
    return [
        {"id": t.id, "axis": t.axis, "metric": t.metric, "reference": t.reference, "gap": t.gap}
        | extra(t.columns, ("id", "axis", "metric", "reference", "gap"))
        for t in findings.targets
    ]
