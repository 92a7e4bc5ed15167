"""Pictures of what the scores found: curves, the grid of configurations, deciles, modules.

Each function returns an inline <svg>, or None where the findings do not hold its data.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from distinf.report import maps
from distinf.report.formats import SPACE, fixed, shortened
from distinf.report.gram.findings import Findings
from distinf.report.gram.summaries import Row, estimators, groups, hows, place
from distinf.report.gram.tables import Tables
from distinf.report.svg import COLOR, DASH, drawing, export, legend, linear_axis, title

HUES = {
    "tracin": ("accent", "-", "o"),
    "cosine": ("baseline", (0, (5, 1.6)), "D"),
    "datainf": ("helpful", "-", "s"),
    "fisher": ("reference", (0, (3, 1.3, 1, 1.3)), "^"),
    "fisher-joint": ("other", (0, (1.3, 1.3)), "v"),
    "tracin-we-top10": ("harmful", (0, (6, 1.4, 1.2, 1.4)), "P"),
}
FREE_DASHES = ((0, (1, 1)), (0, (4, 1, 1, 1)))
UNKNOWN_HUE = ("muted", "-", "o")
STRENGTH = 0.72  # of a map's deepest colour, so that its numbers can be read
MOST_NUMBERED = 16  # columns of a map whose cells carry numbers
MOST_BESIDE = 26  # columns of all maps of one line, from which each gets a line of its own
IN_CELL: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 8.5}
MODULE_ORDER = ("query", "value", "key")


def hue(estimator: str) -> tuple[str, Any, str]:
    """Colour role, line style and marker of an estimator."""
    return HUES.get(estimator, UNKNOWN_HUE)


def curves_figure(findings: Findings, rows: Tables, name: str, heading: str) -> str | None:
    """Share of the flipped rows found against share removed, for the headline's group and how;
    free rankings in thin lines."""
    head = findings.headline
    every = {r["configuration"] for r in rows.get("curves", [])}
    mine = [e for e in estimators(findings) if f"{e}/{head.group}/{head.how}" in every]
    if not mine:
        return None
    with drawing(name, 4.0) as figure:
        axes = figure.subplots()
        for estimator in mine:
            color, dash, _ = hue(estimator)
            line = [
                r for r in rows["curves"]
                if r["configuration"] == f"{estimator}/{head.group}/{head.how}"
            ]  # fmt: skip
            axes.plot(
                [r["removed_pct"] for r in line], [r["found_pct"] for r in line],
                color=COLOR[color], ls=dash, label=estimator,
            )  # fmt: skip
        for free, dash in zip(rows.get("free_rankings", []), FREE_DASHES):
            line = [r for r in rows["curves"] if r["configuration"] == free["ranking"]]
            axes.plot(
                [r["removed_pct"] for r in line], [r["found_pct"] for r in line],
                color=COLOR["ink"], ls=dash, lw=1.0, label=free["ranking"],
            )  # fmt: skip
        axes.plot(
            [0.0, 100.0], [0.0, 100.0], color=COLOR["random"], ls=DASH["reference"], label="random"
        )
        wrong = float(np.mean([100 * c.flips / c.rows for c in findings.cells if c.flips]))
        style: dict[str, Any] = {"color": COLOR["muted"], "lw": 1.0}
        axes.plot([0, wrong, 100], [0, 100, 100], ls=DASH["baseline"], label="perfect", **style)
        axes.axvline(100 * head.share, color=COLOR["muted"], lw=0.9)
        axes.annotate(
            f"{100 * head.share:g}{SPACE}% filtered", (100 * head.share, 3), (5, 0),
            textcoords="offset points", color=COLOR["muted"], fontsize=8.5,
        )  # fmt: skip
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 103)
        axes.set_xlabel("rows removed, lowest scores first [%]")
        title(axes, f"wrong labels found [%]; {shortened(head.group)}, {head.how}")
        legend(figure, axes, columns=8)
        return export(figure, name, heading)


def grid_figure(findings: Findings, rows: Tables, name: str, heading: str) -> str | None:
    """NDR of every estimator by layer group, one map per aggregation."""
    detected = rows.get("detection", [])
    if not detected:
        return None
    names = estimators(findings)
    columns = groups(r["group"] for r in detected)
    panels = [h for h in hows(findings) if any(r["how"] == h for r in detected)]
    names = [e for e in names if any(r["estimator"] == e for r in detected)]
    down = len(panels) if len(panels) * len(columns) > MOST_BESIDE else 1
    with drawing(name, down * (0.85 + 0.34 * len(names))) as figure:
        drawn = figure.subplots(down, len(panels) // down, squeeze=False, sharey=True).ravel()
        for axes, how in zip(drawn, panels, strict=True):
            values = np.full((len(names), len(columns)), math.nan)
            for r in (r for r in detected if r["how"] == how):
                at = names.index(r["estimator"]), columns.index(r["group"])
                values[at] = r["ndr_mean_pct"]
            rate_map(axes, values, findings.headline.share, [shortened(c, 12) for c in columns])
            axes.set_yticks(range(len(names)), [shortened(e, 18) for e in names])
            axes.tick_params(axis="y", labelcolor=COLOR["ink"])
            title(axes, how, strong=how == findings.headline.how and len(panels) > 1)
        return export(figure, name, heading)


def rate_map(axes: Axes, values: np.ndarray, share: float, labels: Sequence[str]) -> None:
    """Rates in percent as colours that fade at chance, with their numbers where there is room."""
    level = 100 * share
    above = (values - level) / max(1e-9, 100 - level)
    below = (values - level) / max(1e-9, level)
    shades = STRENGTH * np.where(values >= level, above, below)
    shades[~np.isfinite(values)] = 0.0  # no such configuration: empty, not grey
    maps.show(axes, shades)
    axes.set_xticks(range(len(labels)), list(labels))
    axes.tick_params(axis="x", length=0, labelsize=8.5)
    if len(labels) > 4:
        axes.tick_params(axis="x", rotation=40)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    if len(labels) > MOST_NUMBERED:
        return
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if math.isfinite(value):
                axes.text(j, i, fixed(value, 0), color=COLOR["ink"], **IN_CELL)


def deciles_figure(findings: Findings, rows: Tables, name: str, heading: str) -> str | None:
    """Where in each ranking the flipped rows are, by tenths, for the headline's group and how."""
    head = findings.headline
    found: dict[str, list[Row]] = {}
    for r in rows.get("deciles", []):
        found.setdefault(r["configuration"], []).append(r)
    mine = [
        (e, found[f"{e}/{head.group}/{head.how}"])
        for e in estimators(findings)
        if f"{e}/{head.group}/{head.how}" in found
    ]
    if not mine:
        return None
    with drawing(name, 2.3) as figure:
        panels = figure.subplots(1, len(mine), squeeze=False, sharey=True)[0]
        for axes, (estimator, shares) in zip(panels, mine, strict=True):
            color = COLOR[hue(estimator)[0]]
            level = 100 / len(shares)
            tenths = [r["decile"] for r in shares]
            axes.bar(tenths, [r["share_pct"] for r in shares], 0.82, color=color, lw=0)
            axes.axhline(level, color=COLOR["random"], ls=DASH["reference"], lw=1.2, label="random")
            axes.set_xticks([tenths[0], tenths[-1]], ["lowest", "highest"])
            axes.tick_params(axis="x", length=0, labelsize=8.5)
            for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
                label.set_horizontalalignment(side)
            linear_axis(axes, "y")
            title(
                axes, shortened(estimator, 18), strong=estimator == head.estimator and len(mine) > 1
            )
        legend(figure, panels[0])
        return export(figure, name, heading)


def modules_figure(findings: Findings, rows: Tables, name: str, heading: str) -> str | None:
    """NDR of every block by itself: LoRA modules down, layers across, one map per estimator."""
    every = rows.get("modules", [])
    ways = [findings.headline.how, *hows(findings), *(r["how"] for r in every)]
    how = next((h for h in ways if any(r["how"] == h for r in every)), None)
    mine = [r for r in every if r["how"] == how]
    if not mine:
        return None
    parts = sorted({(r["module"], r["factor"]) for r in mine}, key=_module)
    layers = list(range(max(r["layer"] for r in mine) + 1))
    names = sorted({r["estimator"] for r in mine}, key=lambda e: place(e, estimators(findings)))
    across = 1 if 2 * len(layers) > MOST_BESIDE or len(names) == 1 else 2
    down = math.ceil(len(names) / across)
    with drawing(name, 0.35 + down * (0.55 + 0.27 * len(parts))) as figure:
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for axes, estimator in zip(panels, names):
            values = np.full((len(parts), len(layers)), math.nan)
            for r in (r for r in mine if r["estimator"] == estimator):
                values[parts.index((r["module"], r["factor"])), r["layer"]] = r["ndr_mean_pct"]
            rate_map(axes, values, findings.headline.share, [""] * len(layers))
            step = max(1, len(layers) // 8)
            axes.set_xticks(layers[::step], [str(k) for k in layers[::step]])
            axes.tick_params(axis="x", rotation=0)
            axes.set_yticks(
                range(len(parts)), [shortened(" ".join(filter(None, p)), 14) for p in parts]
            )
            axes.tick_params(axis="y", labelcolor=COLOR["ink"])
            title(axes, f"{estimator}, {how}, by layer")
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        return export(figure, name, heading)


def _module(part: tuple[str, str]) -> tuple[Any, ...]:
    return (*place(part[0], MODULE_ORDER), part[1])
