"""The targets' metric over steps, per update and selection (Tuononen et al., Fig. 3)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from distinf.report.spectral.families import arm_label, arms, varied
from distinf.report.spectral.figures import reference_line
from distinf.report.spectral.findings import (
    CONTROL,
    OPPOSITE,
    SELECTED,
    Family,
    Findings,
    Outcome,
)
from distinf.report.spectral.summaries import path
from distinf.report.svg import (
    COLOR,
    UPDATE_DASH,
    drawing,
    export,
    legend,
    linear_axis,
    log_axis,
    role,
    title,
)

ASCENT = "ascent"
MOST_ROWS = 3
WIDE_RANGE = 8.0  # largest over smallest mean, from which a scale is logarithmic


def path_figure(findings: Findings, family: Family, name: str, heading: str) -> str | None:
    """A panel per guided selection, random in each; a row per value of whatever else is varied."""
    names = [n for n in varied(family) if n not in ("update", "selection")]
    rows: dict[str, list[list[Outcome]]] = {}
    for group in arms(family).values():
        label = arm_label(names, group[0]) if names else ""
        rows.setdefault(label, []).append(group)
    guided = {o.selection for o in family.outcomes} - {CONTROL}
    order = [s for s in (SELECTED, OPPOSITE) if s in guided]
    columns = order + sorted(guided - set(order)) or [CONTROL]
    shown = list(rows.items())[:MOST_ROWS]
    with drawing(name, 0.75 + 2.75 * len(shown)) as figure:
        panels = figure.subplots(len(shown), len(columns), squeeze=False)
        for (label, groups), line in zip(shown, panels, strict=True):
            for place, (selection, axes) in enumerate(zip(columns, line, strict=True)):
                _panel(axes, findings, panel_arms(groups, selection))
                what = f"({'abcdefgh'[place % 8]}) {selection} {findings.headline.noun}"
                title(axes, ", ".join(filter(None, (what, label))), strong=True)
        for axes in panels[-1]:
            axes.set_xlabel("fine-tuning step")
        panels[0][0].set_ylabel(f"{findings.metric.name} of the targets")
        legend(figure, *panels.ravel(), columns=4, most=36)
        return export(figure, name, heading)


def panel_arms(groups: Sequence[list[Outcome]], selection: str) -> list[list[Outcome]]:
    """The arms of a selection and random's; ascent only where it is meant, on harmful samples."""
    mine = [g for g in groups if g[0].selection in (selection, CONTROL)]
    descents = [g for g in mine if g[0].update != ASCENT]
    return mine if selection == OPPOSITE else descents or mine


def _panel(axes: Axes, findings: Findings, groups: Sequence[list[Outcome]]) -> None:
    means: list[float] = []
    steady: list[float] = []
    log = findings.metric.log
    for group in groups:
        rows = [r for r in path(group) if math.isfinite(r["mean"])]
        if rows:
            _line(axes, rows, group[0], log)
            means += [r["mean"] for r in rows]
            steady += [r["mean"] for r in rows if group[0].update != ASCENT]
    touched = {o.target for g in groups for o in g}
    references = [
        t.reference for t in findings.targets if t.id in touched and t.reference is not None
    ]
    level = [float(np.mean(references))] if references else []
    if reference_line(axes, level, means, findings.metric.reference or "reference"):
        means += level
    positive = bool(means) and min(means) > 0
    if positive and (log or max(means) > WIDE_RANGE * min(means)):
        log_axis(axes, "y", means)
    else:
        linear_axis(axes, "y")
        if steady and means and max(means) > 2 * max(steady):
            axes.set_ylim(top=1.5 * max(steady))  # ascent runs out of the picture
    linear_axis(axes, "x", integer=True)


def _line(axes: Axes, rows: list[dict[str, Any]], first: Outcome, log: bool) -> None:
    x, mean, sd = (np.array([r[k] for r in rows]) for k in ("step", "mean", "sd"))
    low = np.maximum(mean - sd, mean / 10) if log else mean - sd
    color = COLOR[role(first.selection)]
    axes.fill_between(x, low, mean + sd, color=color, alpha=0.12, lw=0)
    axes.plot(
        x,
        mean,
        color=color,
        ls=UPDATE_DASH.get(first.update, "-"),
        label=f"{first.selection}, {first.update}",
    )
