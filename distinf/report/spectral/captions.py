"""What each picture shows and what to look for in it."""

from typing import Any

from distinf.report.formats import count, duration, identifier, number, size
from distinf.report.spectral.findings import CONTROL, Findings

Tables = dict[str, list[dict[str, Any]]]


def titles(findings: Findings) -> dict[str, str]:
    """Figure name -> title: its quantity, by what it is split, and the unit."""
    metric = findings.metric
    gap = f"Share of the {metric.name} gap closed, by selection [%]"
    if metric.reference is None:
        gap = f"Reduction of the targets' {metric.name}, by selection [%]"
    return {
        "gap": gap,
        "steps": f"{metric.name} of the targets over fine-tuning steps",
        "axis": f"{metric.name} against {metric.axis or 'the axis'}, before and after",
        "targets": f"Where the model falls short, against {metric.axis or 'the axis'}",
        "scores": f"Influence scores of the training {findings.headline.noun}, one target",
        "ritz": f"Spectrum of the {findings.ritz.operator if findings.ritz else 'curvature'}",
        "training": f"{_capital(findings.training.label if findings.training else 'loss')} by step",
        "costs": "Wall time by stage [s]",
    }


def captions(findings: Findings, rows: Tables) -> dict[str, str]:
    """Figure name -> caption; numbers come from the tables."""
    return {
        "gap": _gap(findings, rows),
        "steps": _steps(findings, rows),
        "axis": _axis(findings),
        "targets": _targets(findings),
        "scores": _scores(findings, rows),
        "ritz": _ritz(findings),
        "training": "Pale: each step. Solid: running mean.",
        "costs": _costs(rows),
    }


def _gap(findings: Findings, rows: Tables) -> str:
    text = "One dot per target and seed, targets in separate lanes; right of 0 is better. "
    text += "Diamond and bar: mean and 95 % bootstrap interval over targets, those of one "
    text += "condition together, then seeds. "
    text += "Arrows at an edge count the trials beyond it."
    failed = sum(r["failed"] for r in rows["summary"])
    if failed:
        text += f" {count(failed)} trials without a finite result are not drawn."
    chosen = findings.guided()
    if len(findings.targets) > 1 and any(r["selection"] == chosen for r in rows["paired"]):
        text += f" The difference {chosen} − {CONTROL} pairs trials of equal target and seed."
    return text


def _steps(findings: Findings, rows: Tables) -> str:
    last: dict[str, dict[str, Any]] = {r["selection"]: r for r in rows["steps"]}
    parts = [f"{number(r['mean'])} with {name}" for name, r in last.items()]
    first = next((r for r in rows["steps"] if r["step"] == 0), None)
    text = "Lines: mean over targets and seeds; bands: one standard deviation."
    if first is not None and parts:
        most = max(r["step"] for r in last.values())
        text += f" {number(first['mean'])} before; after {most} steps {', '.join(parts)}."
    if any(t.reference is not None for t in findings.targets):
        name = findings.metric.reference or "the reference"
        text += f" Dashed, where in range: {name} on the same targets."
    return text


def _axis(findings: Findings) -> str:
    text = "Mean of every bin. Look for where the curves part: gains on the targets can cost "
    text += "samples elsewhere on the axis."
    curves = findings.axis_curves
    if curves is not None:
        text += distinct(curves.draws, sum(curves.counts), findings)
    empty = curves is not None and any(not y > 0 for c in curves.curves.values() for y in c)
    if findings.metric.log and empty:
        text += f" Bins with {findings.metric.name} 0 cannot be drawn on a log scale."
    return text


def _targets(findings: Findings) -> str:
    points = findings.evaluation
    if points is None:
        return ""
    text = f"{count(int(points.ids_E.size))} evaluation {findings.headline.noun} before fine-tuning"
    if points.eligible_E is not None:
        rule = f" ({points.rule})" if points.rule else ""
        text += f"; {count(int(points.eligible_E.sum()))} eligible as targets{rule}"
    text += ". Ringed: the targets, those with the largest gap, named where there is room. Where "
    text += "points are very many, an evenly spaced part of them is drawn; gaps above the eligible "
    text += "range are cut off."
    return text + distinct(points.draws, int(points.ids_E.size), findings)


def distinct(draws: int | None, samples: int, findings: Findings) -> str:
    if draws is None or draws == samples:
        return ""
    return f" The {count(samples)} {findings.headline.noun} are {count(draws)} distinct conditions."


def _scores(findings: Findings, rows: Tables) -> str:
    first = next((r for r in rows["scores"] if r["target"] == findings.first_scored()), None)
    if first is None:
        return ""
    text = f"{count(first['count'])} training {findings.headline.noun}, target "
    text += f"{identifier(first['target'])}; counts on a log scale. Above 0: training on the "
    text += "sample lowers the target's loss. The tails are what fine-tuning draws from."
    nonfinite = sum(r["nonfinite"] for r in rows["scores"] if r["target"] == first["target"])
    if nonfinite:
        text += f" {count(nonfinite)} non-finite scores of it are left out."
    return text


def _ritz(findings: Findings) -> str:
    pairs = findings.ritz
    if pairs is None:
        return ""
    text = f"{count(len(pairs.values_K))} Ritz pairs, {count(pairs.kept)} kept"
    negative = sum(v < 0 for k, v in enumerate(pairs.values_K) if pairs.is_kept(k))
    text += f", {count(negative)} of them negative. "
    text += "A flat tail means that keeping more changes little. "
    out = set(range(len(pairs.values_K))) - set(pairs.converged())
    if not out:
        return text + "All have converged: no residual is above a tenth of its value's size."
    used = sum(pairs.is_kept(k) for k in out)
    text += f"Left out: {count(len(out))} that have not converged, their residual above a tenth of "
    return text + f"the value's size; {count(used)} of them are kept all the same."


def _costs(rows: Tables) -> str:
    total = rows["costs"][-1] if rows["costs"] else None
    if total is None:
        return ""
    text = f"{duration(total['seconds'])} in all, {duration(total['worker_seconds'])} of worker "
    return text + f"time, {size(total['bytes'])} stored."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
