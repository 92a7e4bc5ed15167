"""Pictures that compare arms and runs by their means and intervals: Table 1, an experiment's arms,
the variations of the run.

Each function returns an inline <svg>, or None where the findings do not hold its data.
"""

import math
from collections.abc import Sequence

from distinf.report.formats import shortened
from distinf.report.spectral.captions import Tables
from distinf.report.spectral.dots import (
    DIVERGED,
    MOST_ROWS,
    ROW_IN,
    Dot,
    draw,
    limits,
    marker,
    stacked,
)
from distinf.report.spectral.findings import CONTROL, SELECTED
from distinf.report.spectral.summaries import Row
from distinf.report.svg import COLOR, DASH, drawing, export, legend, role, title


def table_1_figure(rows: Tables, name: str, heading: str) -> str | None:
    """Per run a panel: every loss and variant, here and as published, and random's mean."""
    measured = [r for r in rows.get("table_1", []) if r["source"] == "measured"]
    if not measured:
        return None
    columns = list(dict.fromkeys((r["run"], r["column"]) for r in measured))
    arms = list(dict.fromkeys((r["loss"], r["variant"]) for r in _guided(measured)))
    labels = [", ".join(filter(None, arm)) for arm in arms]
    with drawing(name, 1.1 + (ROW_IN + 0.05) * len(arms)) as figure:
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for k, (axes, (run, column)) in enumerate(zip(panels, columns, strict=True)):
            ours = [r for r in measured if r["run"] == run]
            printed = [r for r in rows["table_1"] if r["run"] == run and r not in ours]
            dots = _here(ours, arms) + _there(printed, arms)
            draw(axes, stacked(dots, 2), labels, "", DIVERGED, k == 0)
            title(axes, shortened(f"{column} [%]", 44), strong=True)
            for row in ours:
                if row["selection"] == CONTROL and math.isfinite(row["mean_pct"]):
                    style = {"color": COLOR["random"], "ls": DASH["reference"], "lw": 1.3}
                    axes.axvline(row["mean_pct"], label="random, mean", **style)
                    dots.append(Dot(0, row["mean_pct"]))
            axes.set_xlim(*limits(dots, DIVERGED))
        legend(figure, *panels)
        return export(figure, name, heading)


def _guided(rows: list[Row]) -> list[Row]:
    return [r for r in rows if r["selection"] != CONTROL]


def _here(rows: list[Row], arms: Sequence[tuple[str, str]]) -> list[Dot]:
    return [
        Dot(
            arms.index((r["loss"], r["variant"])), r["mean_pct"], r["low_pct"], r["high_pct"],
            "helpful", marker(SELECTED), name="here, with 95 % interval",
        )
        for r in _guided(rows)
    ]  # fmt: skip


def _there(rows: list[Row], arms: Sequence[tuple[str, str]]) -> list[Dot]:
    return [
        Dot(
            arms.index((r["loss"], r["variant"])), r["mean_pct"], r["mean_pct"] - r["sd_pct"],
            r["mean_pct"] + r["sd_pct"], "muted", "D", True, "published, ± sd",
        )
        for r in _guided(rows)
        if (r["loss"], r["variant"]) in arms
    ]  # fmt: skip


def arms_figure(rows: list[Row], metric: str, name: str, heading: str) -> str | None:
    """An experiment's arms: gap closed, the paired difference, what it did to other samples."""
    shown = [r for r in rows if math.isfinite(r["mean_pct"])][:MOST_ROWS]
    if not shown:
        return None
    versus = "vs_base" if any("vs_base_points" in r for r in shown) else "vs_random"
    minus = "minus the base arm" if versus == "vs_base" else f"minus {CONTROL}"
    parts: list[tuple[str, list[str], float]] = [
        ("gap closed [%]", ["mean_pct", "low_pct", "high_pct"], DIVERGED),
        (f"{minus} [points]", [f"{versus}_{k}points" for k in ("", "low_", "high_")], DIVERGED),
        (
            f"{metric} of others, change [%]",
            [f"non_target_{k}_pct" for k in ("mean", "low", "high")],
            -math.inf,
        ),
    ]
    parts = [p for p in parts if any(math.isfinite(r.get(p[1][0], math.nan)) for r in shown)]
    with drawing(name, 0.75 + ROW_IN * len(shown)) as figure:
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for k, (axes, (what, keys, least)) in enumerate(zip(panels, parts, strict=True)):
            dots = [_arm(place, r, keys) for place, r in enumerate(shown)]
            draw(axes, dots, [r["arm"] for r in shown], what, least, k == 0)
        return export(figure, name, heading)


def _arm(place: int, row: Row, keys: list[str]) -> Dot:
    mean, low, high = (row.get(key, math.nan) for key in keys)
    kind = row["selection"]
    return Dot(place, mean, low, high, role(kind), marker(kind), hollow=row["base"])


def variations_figure(rows: list[Row], metric: str, name: str, heading: str) -> str | None:
    """Per run: the model's mean metric, the gap closed by helpful and random, their difference."""
    if not rows:
        return None
    every = list(enumerate(rows))
    evaluation = [Dot(k, r["evaluation_metric"], color="ink", marker="o") for k, r in every]
    closed = [
        Dot(
            k,
            r[f"{who}_mean_pct"],
            r[f"{who}_low_pct"],
            r[f"{who}_high_pct"],
            color,
            marker(like),
            name=who,
        )
        for k, r in every
        for who, color, like in (("guided", "helpful", SELECTED), (CONTROL, "random", CONTROL))
        if f"{who}_mean_pct" in r
    ]
    apart = [
        Dot(k, r["vs_points"], r["vs_low_points"], r["vs_high_points"])
        for k, r in every
        if "vs_points" in r
    ]
    parts = [
        (evaluation, f"{metric}, all evaluation samples", -math.inf),
        (stacked(closed, 2), "gap closed [%]", DIVERGED),
        (apart, f"guided − {CONTROL} [points]", DIVERGED),
    ]
    parts = [p for p in parts if any(math.isfinite(d.mean) for d in p[0])]
    if not parts:
        return None
    with drawing(name, 1.05 + 0.4 * len(rows)) as figure:
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for k, (axes, (dots, what, least)) in enumerate(zip(panels, parts, strict=True)):
            draw(axes, dots, [r["label"] for r in rows], what, least, k == 0)
        legend(figure, *panels)
        return export(figure, name, heading)
