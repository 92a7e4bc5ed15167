"""The page's maps: a value by row and column, as colours."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from distinf.gram.settings import HOWS
from distinf.report import maps
from distinf.report.formats import fixed, shortened
from distinf.report.gram.configurations import groups, place
from distinf.report.gram.figures import ROW_IN, estimators, panels
from distinf.report.gram.findings import Findings
from distinf.report.gram.tables import Tables
from distinf.report.gram.trials import grouped
from distinf.report.svg import COLOR, title

STRENGTH = 0.72  # of a map's deepest colour, so that its numbers can be read
MOST_NUMBERED, MOST_NUMBERED_PAIRS = 16, 8  # columns of a map whose cells carry numbers
MOST_BESIDE = 26  # columns of all maps of one line, from which each gets a line of its own


def _values(rows: Sequence[Any], columns: Sequence[Any], found: Mapping[Any, float]) -> np.ndarray:
    return np.array([[found.get((row, column), math.nan) for column in columns] for row in rows])


def _at_chance(share: float, values: np.ndarray) -> np.ndarray:
    """Shades of rates in percent that fade at chance; none where there is no rate."""
    level = 100 * share
    room = np.where(values >= level, 100 - level, level)
    found: np.ndarray = np.nan_to_num((values - level) / np.maximum(room, 1e-9))
    return found


Map = tuple[str, Sequence[str], Sequence[str], np.ndarray]  # heading, rows, columns, values


def _maps(
    canvas: Canvas, made: Sequence[Map], across: int, each_in: float, shades: Any, **more: Any
) -> bool:
    """Side by side where there is room, with their numbers where there is; strong: a heading."""
    if not made:
        return False
    highest, widest = (max(len(each[side]) for each in made) for side in (1, 2))
    across = 1 if across * widest > MOST_BESIDE else min(across, len(made))
    drawn = panels(canvas, len(made), across, each_in + ROW_IN * max(3, highest))
    digits, style = more.get("digits", 0), {"ha": "center", "va": "center_baseline"}
    most = MOST_NUMBERED_PAIRS if digits else MOST_NUMBERED
    for axes, (heading, rows, columns, values) in zip(drawn, made, strict=True):
        maps.show(axes, STRENGTH * shades(values))
        axes.set_yticks(range(len(rows)), [shortened(name, 20) for name in rows])
        axes.tick_params(axis="y", labelcolor=COLOR["ink"], labelsize=8.5)
        step = max(1, len(columns) // 8) if columns[0].isdigit() else 1
        slanted = step == 1 and max(map(len, columns)) > 2
        axes.set_xticks(*zip(*list(enumerate(shortened(c, 20) for c in columns))[::step]))
        axes.tick_params(axis="x", length=0, labelsize=8.5, rotation=40 if slanted else 0)
        for label in axes.get_xticklabels() if slanted else ():
            label.set(horizontalalignment="right", rotation_mode="anchor")
        title(axes, shortened(heading, 58), strong=heading == more.get("strong"))
        for (i, j), value in np.ndenumerate(values) if len(columns) <= most else ():
            if math.isfinite(value):
                told = fixed(float(value), digits)
                axes.text(j, i, told, color=COLOR["ink"], fontsize=8.5, **style)
    return True


def grid(findings: Findings, rows: Tables, canvas: Canvas) -> bool:
    """NDR of every estimator by layer group, one map per aggregation."""
    detected, made = rows.get("detection", []), []
    names, columns = estimators(detected), groups(r["group"] for r in detected)
    by_how = grouped(detected, "how")
    for (how,) in sorted(by_how, key=lambda key: place(key[0], HOWS)):
        found = {(r["estimator"], r["group"]): r["ndr_mean_pct"] for r in by_how[(how,)]}
        made.append((how, names, columns, _values(names, columns, found)))
    strong = findings.headline.rpartition("/")[2] if len(made) > 1 else ""
    shades = partial(_at_chance, findings.share)
    return _maps(canvas, made, len(made), 0.95, shades, strong=strong)


def modules(findings: Findings, rows: Tables, canvas: Canvas) -> bool:
    """NDR of every block by itself: LoRA modules down, layers across, one map per estimator."""
    by_how = {how: mine for (how,), mine in grouped(rows.get("modules", []), "how").items()}
    ways = [findings.headline.rpartition("/")[2], *HOWS, *by_how]
    how = next((how for how in ways if how in by_how), "")
    mine, order = by_how.get(how, []), ("query", "value", "key")
    of = sorted(grouped(mine, "module", "factor"), key=lambda p: (*place(p[0], order), p[1]))
    layers, made = range(max((r["layer"] for r in mine), default=0) + 1), []
    for name in estimators(mine):
        rates = [r for r in mine if r["estimator"] == name]
        found = {((r["module"], r["factor"]), r["layer"]): r["ndr_mean_pct"] for r in rates}
        labels = [" ".join(filter(None, part)) for part in of], [str(k) for k in layers]
        made.append((f"{name}, {how}, by layer", *labels, _values(of, layers, found)))
    return _maps(canvas, made, 2, 0.6, partial(_at_chance, findings.share))


def correlations(findings: Findings, _rows: Tables, canvas: Canvas) -> bool:
    """Spearman's correlation of the scores, one map per matrix."""
    several = [c for c in findings.correlations if len(c["names"]) > 1]
    made = [(c["title"], c["names"], c["names"], np.array(c["values_MM"])) for c in several]
    return _maps(canvas, made, 2, 1.0, lambda values_MM: values_MM, digits=2)
