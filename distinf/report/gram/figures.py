"""The page's pictures. Each draws on the canvas, where there is something to draw."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Canvas

from distinf.gram.configurations import ORDER, groups, parts, place, spoken
from distinf.gram.settings import HOWS
from distinf.report import maps, svg
from distinf.report.formats import SPACE, fixed, shortened
from distinf.report.gram.findings import Findings
from distinf.report.gram.tables import Tables
from distinf.report.gram.trials import ALL_ROWS, datasets
from distinf.report.maps import ROW_IN
from distinf.report.plots import Dot, Panel, dot, rows_of_dots
from distinf.report.rows import Row, grouped
from distinf.report.svg import COLOR, DASH, axis, grid_of, legend, level, linear_axis, title

HUES: dict[str, tuple[str, Any, str]] = {  # colour role, line style and marker
    "tracin": ("accent", "-", "o"),
    "cosine": ("baseline", (0, (5, 1.6)), "D"),
    "datainf": ("helpful", "-", "s"),
    "fisher": ("reference", (0, (3, 1.3, 1, 1.3)), "^"),
    "fisher-joint": ("other", (0, (1.3, 1.3)), "v"),
    "tracin-we-top10": ("harmful", (0, (6, 1.4, 1.2, 1.4)), "P"),
    "ekfac": ("random", (0, (8, 1.5)), "X"),
}
FREE_DASHES = ((0, (1, 1)), (0, (4, 1, 1, 1)))
LINES: dict[str, tuple[str, str, Any]] = {  # what is not by influence: words, colour, line style
    "random": ("random", "random", DASH["reference"]),
    "full": ("known noise removed", "ink", DASH["baseline"]),
    ALL_ROWS: (ALL_ROWS, "muted", DASH["before"]),
}
SERIES = {"train_loss": ("training rows", "soft"), "query_loss": ("queries", "accent"),
          "test_loss": ("test rows", "muted")}  # fmt: skip
PROXIES = {"ndr_pct": "NDR [%]", "auc": "noise curve, area", "c": "cancellation C (L1)"}
MOST_ROWS, MOST_LINES, MOST_POINTS = 16, 5, 1_200


def hue(name: str) -> tuple[str, Any, str]:
    """Of an estimator, or of a configuration by its estimator."""
    return HUES.get(name.partition("/")[0], ("muted", "-", "o"))


def estimators(rows: Sequence[Row], key: str = "estimator") -> list[str]:
    found = {row[key].partition("/")[0] for row in rows}
    return sorted(found, key=lambda name: place(name, ORDER))


def _of_headline(findings: Findings, rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Every estimator's rows in the headline's group and aggregation."""
    found, (_, _, rest) = grouped(rows, "configuration"), findings.headline.partition("/")
    for estimator in estimators(rows, "configuration"):
        if mine := found.get((f"{estimator}/{rest}",)):
            yield estimator, mine


def curves(findings: Findings, rows: Tables, canvas: Canvas) -> None:
    """Share of the flipped rows found against share removed; free rankings in thin lines."""
    every = rows.get("curves", [])
    drawn: list[tuple[str, Sequence[Row], Any]] = [
        (name, line, dict(zip(("color", "ls"), hue(name))))
        for name, line in _of_headline(findings, every)
    ]
    if not drawn:
        return
    (axes,), found = grid_of(canvas, 1, 1, 4.0), grouped(every, "configuration")
    for free, dash in zip(rows.get("free_rankings", []), FREE_DASHES):
        name, style = free["ranking"], {"color": "ink", "ls": dash, "lw": 1.0}
        drawn.append((name, found.get((name,), []), style))
    for name, line, style in drawn:
        removed, found_pct = ([r[key] for r in line] for key in ("removed_pct", "found_pct"))
        svg.line(axes, removed, found_pct, label=name, **style)
    svg.line(axes, [0, 100], [0, 100], "random", ls=DASH["reference"], label="random")
    wrong = float(np.mean([100 * c["flips"] / c["rows"] for c in findings.cells if c["flips"]]))
    perfect: Any = {"lw": 1.0, "ls": DASH["baseline"], "label": "perfect"}
    svg.line(axes, [0, wrong, 100], [0, 100, 100], "muted", **perfect)
    share = 100 * findings.share
    level(axes, share, "muted", lw=0.9)
    style = {"textcoords": "offset points", "color": COLOR["muted"], "fontsize": 8.5}
    axes.annotate(f"{share:g}{SPACE}% filtered", (share, 3), (5, 0), **style)
    axes.set(xlim=(0, 100), ylim=(0, 103), xlabel="rows removed, lowest scores first [%]")
    _, group, how = parts(findings.headline) or ("", "", "")
    title(axes, f"wrong labels found [%]; {shortened(group)}, {how}")
    legend(canvas, axes, columns=8)


def deciles(findings: Findings, rows: Tables, canvas: Canvas) -> None:
    """Where in each ranking the flipped rows are, by tenths."""
    mine = list(_of_headline(findings, rows.get("deciles", [])))
    if not mine:
        return
    (drawn,) = svg.panels(canvas, 2.3, 1, len(mine), sharey=True)
    head = findings.headline.partition("/")[0]
    for axes, (estimator, shares) in zip(drawn, mine, strict=True):
        tenths, heights = ([r[key] for r in shares] for key in ("decile", "share_pct"))
        axes.bar(tenths, heights, 0.82, color=COLOR[hue(estimator)[0]], lw=0)
        style = {"ls": DASH["reference"], "lw": 1.2, "label": "random"}
        level(axes, 100 / len(shares), "random", upright=False, **style)
        axes.set_xticks([tenths[0], tenths[-1]], ["lowest", "highest"])
        axes.tick_params(axis="x", length=0, labelsize=8.5)
        for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
            label.set_horizontalalignment(side)
        linear_axis(axes, "y")
        title(axes, shortened(estimator, 18), strong=estimator == head and len(mine) > 1)
    legend(canvas, drawn[0])


def shown(findings: Findings, rows: Tables, most: int) -> list[Row]:
    """The best configurations that were retrained, and the headline's wherever it comes."""
    ours = [r for r in rows.get("accuracy", []) if parts(r["configuration"])]
    head = findings.headline
    return [r for k, r in enumerate(ours) if k < most or r["configuration"] == head]


def accuracy(findings: Findings, rows: Tables, canvas: Canvas) -> None:
    """Test accuracy after filtering, and its paired difference from random, with intervals."""
    mine = shown(findings, rows, MOST_ROWS)
    labels = [shortened(spoken(r["configuration"])) for r in mine]
    beside = [r for r in rows.get("accuracy", []) if r["configuration"] in LINES]
    levels = [
        (r["mean_pct"], role, f"{words}, {fixed(r['mean_pct'])}")
        for r in beside
        for words, role, _ in [LINES[r["configuration"]]]
    ]
    rows_of_dots(
        canvas,
        1.05 + ROW_IN * len(mine),
        Panel("test accuracy [%]", labels, _dots(mine, ""), levels=levels, from_zero=False),
        Panel("minus random [points]", labels, _dots(mine, "vs_random_", "_points")),
    )


def _dots(rows: Sequence[Row], prefix: str, unit: str = "_pct") -> list[Dot]:
    return [
        dot(k, row, prefix, unit, color=role, marker=marker)
        for k, row in enumerate(rows)
        for role, _, marker in [hue(row["configuration"])]
    ]


def trends(findings: Findings, rows: Tables, canvas: Canvas) -> None:
    """Test accuracy by epoch, mean over seeds: the best configurations and the baselines. Hollow
    marks: an estimator's second best configuration and further ones."""
    of = {c["name"]: c["dataset"] for c in findings.cells}
    whole = [{**c, "cell": c["name"], "configuration": ALL_ROWS} for c in findings.cells]
    every = [
        {**r, "dataset": of[r["cell"]], "series": r["history"].get("test_accuracy", ())}
        for r in (*findings.retrained, *whole)
    ]
    found = grouped([r for r in every if len(r["series"])], "dataset", "configuration")
    best = [r["configuration"] for r in shown(findings, rows, MOST_LINES)]
    if not best or max((len(r["series"]) for r in every), default=0) < 2:
        return
    named = [name for name in datasets(findings) if any(key[0] == name for key in found)]
    across = min(4, len(named)) if len(named) != 4 else 2
    drawn = grid_of(canvas, len(named), across, 3.1 if len(named) == 1 else 2.0, 0.9)
    for axes, dataset in zip(drawn, named, strict=True):
        seen: set[str] = set()
        for name in (name for name in (*best, *LINES) if (dataset, name) in found):
            course = 100 * _mean([r["series"] for r in found[dataset, name]])
            estimator, epochs = name.partition("/")[0], range(1, len(course) + 1)
            if name in LINES:
                words, role, dash = LINES[name]
                svg.line(axes, epochs, course, role, ls=dash, lw=1.5, label=words)
                continue
            (color, _, marker), again = hue(name), estimator in seen
            style: Any = {"marker": marker, "ms": 4.2, "mew": 1.0, "lw": 1.1 if again else 1.7}
            style["mark"] = "paper" if again else color
            svg.line(axes, epochs, course, color, label=spoken(name), **style)
            seen.add(estimator)
        svg.frame(axes, shortened(dataset, 24), whole=True, strong=len(named) > 1)
    legend(canvas, *drawn, columns=4)


def _mean(series: Sequence[Sequence[float]]) -> np.ndarray:
    """By epoch, over those that are that long."""
    longest = max(len(s) for s in series)
    padded = np.array([[*s, *[math.nan] * (longest - len(s))] for s in series])
    found: np.ndarray = np.nanmean(padded, axis=0)
    return found


def thinned(points: list[Row]) -> list[Row]:
    """So many points at most, drawn evenly: a study of thousands stays a small picture."""
    kept = np.random.default_rng(0).permutation(len(points))[:MOST_POINTS]
    return [points[k] for k in sorted(kept)]


def proxies(findings: Findings, rows: Tables, canvas: Canvas) -> None:
    """Accuracy after filtering against NDR, AUC and the cancellation effect: one dot per trial."""
    points = thinned(rows.get("proxy_points", []))
    known = {key: [p for p in points if math.isfinite(p[key])] for key in PROXIES}
    kept = [key for key in PROXIES if len(known[key]) >= 3]
    if not kept:
        return
    (drawn,) = svg.panels(canvas, 3.3, 1, len(kept), sharey=True)
    for axes, key in zip(drawn, kept, strict=True):
        for estimator in estimators(known[key]):
            mine = [p for p in known[key] if p["estimator"] == estimator]
            color, _, marker = hue(estimator)
            style: Any = {"label": estimator, "ms": 4.0, "mew": 0, "alpha": 0.65}
            x, y = ([p[k] for p in mine] for k in (key, "accuracy_pct"))
            svg.line(axes, x, y, color, marker, **style)
        axis(axes, "x", [p[key] for p in points], log=key == "c")
        linear_axis(axes, "y")
        axes.locator_params(axis="y", nbins=5)
        axes.set_xlabel(PROXIES[key])
    many = ", every dataset" if len(datasets(findings)) > 1 else ""
    title(drawn[0], f"test accuracy [%]{many}")
    legend(canvas, *drawn, columns=6)


def training(findings: Findings, _rows: Tables, canvas: Canvas) -> None:
    """Loss by epoch of the training on all rows, mean over cells, and the epochs scored."""
    cells = [c for c in findings.cells if any(len(c["history"].get(s, ())) > 1 for s in SERIES)]
    if not cells:
        return
    (axes,) = grid_of(canvas, 1, 1, 3.0)
    for key, (words, color) in SERIES.items():
        mine = [c["history"][key] for c in cells if len(c["history"].get(key, ()))]
        if mine:
            shortest = min(len(series) for series in mine)
            mean = _mean([series[:shortest] for series in mine])
            svg.line(axes, range(1, shortest + 1), mean, color, label=words)
    scored = Counter(sorted(c["best"] for c in cells if c["best"] is not None))
    times = ", ".join(f"{best + 1} ({many}×)" for best, many in scored.items())
    label = f"epoch scored: {times}" if len(cells) > 1 else "epoch scored"
    for k, best in enumerate(scored):
        told = None if k else label
        level(axes, best + 1, "helpful", ls=DASH["reference"], lw=1.2, label=told)
    name = "loss, mean over cells" if len(cells) > 1 else "loss"
    svg.frame(axes, name, "epoch", whole=True)
    legend(canvas, axes, most=60)


# -- maps: a value by row and column, as colours -------------------------------------------


def _values(rows: Sequence[Any], columns: Sequence[Any], found: Mapping[Any, float]) -> np.ndarray:
    return np.array([[found.get((row, column), math.nan) for column in columns] for row in rows])


def _at_chance(share: float, values: np.ndarray) -> np.ndarray:
    """Shades of rates in percent that fade at chance; none where there is no rate."""
    level = 100 * share
    room = np.where(values >= level, 100 - level, level)
    found: np.ndarray = np.nan_to_num((values - level) / np.maximum(room, 1e-9))
    return found


def grid(findings: Findings, rows: Tables, canvas: Canvas) -> None:
    """NDR of every estimator by layer group, one map per aggregation."""
    detected, made = rows.get("detection", []), []
    names, columns = estimators(detected), groups(r["group"] for r in detected)
    by_how = grouped(detected, "how")
    for (how,) in sorted(by_how, key=lambda key: place(key[0], HOWS)):
        found = {(r["estimator"], r["group"]): r["ndr_mean_pct"] for r in by_how[(how,)]}
        made.append((how, names, columns, _values(names, columns, found)))
    strong = findings.headline.rpartition("/")[2] if len(made) > 1 else ""
    shades = partial(_at_chance, findings.share)
    maps.several(canvas, made, len(made), 0.95, shades, strong=strong)


def loss_and_influence(findings: Findings, _rows: Tables, canvas: Canvas) -> None:
    """Each row of the first cell by both of its places, the wrong ones marked."""
    if not findings.placed:
        return
    cell, share = findings.placed[0], 100 * findings.share
    (axes,) = grid_of(canvas, 1, 1, 3.6)
    xy, wrong = np.array([cell["own_loss_pct"], cell["influence_pct"]]), np.array(cell["flipped"])
    (x, y), told = xy[:, ~wrong], "known to be wrong"
    svg.line(axes, x, y, "muted", "o", ms=3.0, mew=0, alpha=0.45, label="other rows")
    x, y = xy[:, wrong]
    svg.line(axes, x, y, "harmful", "D", ms=4.5, mew=0, alpha=0.9, label=told)
    for upright in (True, False):
        level(axes, share, "ink", upright, ls=DASH["baseline"], lw=1.0)
    axes.set_xlim(-1, 101)  # no mark is cut in half
    axes.set_ylim(101, -1)
    axes.set_xlabel("place by own loss [% of the rows], the largest loss first")
    title(axes, "place by influence [% of the rows], the lowest score first")
    legend(canvas, axes)


def modules(findings: Findings, rows: Tables, canvas: Canvas) -> None:
    """NDR of every block by itself: LoRA modules down, layers across, one map per estimator."""
    by_how = {how: mine for (how,), mine in grouped(rows.get("modules", []), "how").items()}
    ours = findings.headline.rpartition("/")[2]
    how = min(by_how, key=lambda name: (name != ours, place(name, HOWS)), default="")
    mine, order = by_how.get(how, []), ("query", "value", "key")
    of = sorted(grouped(mine, "module", "factor"), key=lambda p: (*place(p[0], order), p[1]))
    layers, made = range(max((r["layer"] for r in mine), default=0) + 1), []
    for name in estimators(mine):
        rates = [r for r in mine if r["estimator"] == name]
        found = {((r["module"], r["factor"]), r["layer"]): r["ndr_mean_pct"] for r in rates}
        labels = [" ".join(filter(None, part)) for part in of], [str(k) for k in layers]
        made.append((f"{name}, {how}, by layer", *labels, _values(of, layers, found)))
    maps.several(canvas, made, 2, 0.6, partial(_at_chance, findings.share))


def correlations(findings: Findings, _rows: Tables, canvas: Canvas) -> None:
    """Spearman's correlation of the scores, one map per matrix."""
    several = [c for c in findings.correlations if len(c["names"]) > 1]
    made = [(c["title"], c["names"], c["names"], np.array(c["values_MM"])) for c in several]
    maps.several(canvas, made, 2, 1.0, lambda values_MM: values_MM, digits=2)
