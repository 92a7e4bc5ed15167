"""The page's pictures. Each draws on the canvas; False where there is nothing to draw."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from distinf.report.formats import SPACE, fixed, shortened
from distinf.report.gram.configurations import ESTIMATORS, parts, place, spoken
from distinf.report.gram.findings import Findings
from distinf.report.gram.tables import Tables
from distinf.report.gram.trials import ALL_ROWS, datasets, grouped
from distinf.report.rows import Row
from distinf.report.svg import COLOR, DASH, legend, linear_axis, log_axis, title

HUES: dict[str, tuple[str, Any, str]] = {  # colour role, line style and marker
    "tracin": ("accent", "-", "o"),
    "cosine": ("baseline", (0, (5, 1.6)), "D"),
    "datainf": ("helpful", "-", "s"),
    "fisher": ("reference", (0, (3, 1.3, 1, 1.3)), "^"),
    "fisher-joint": ("other", (0, (1.3, 1.3)), "v"),
    "tracin-we-top10": ("harmful", (0, (6, 1.4, 1.2, 1.4)), "P"),
    "ekfac": ("random", (0, (8, 1.5)), "X"),
}
UNKNOWN_HUE = ("muted", "-", "o")
FREE_DASHES = ((0, (1, 1)), (0, (4, 1, 1, 1)))
LINES: dict[str, tuple[str, str, Any]] = {  # what is not by influence: words, colour, line style
    "random": ("random", "random", DASH["reference"]),
    "full": ("known noise removed", "ink", DASH["baseline"]),
    ALL_ROWS: (ALL_ROWS, "muted", DASH["before"]),
}
SERIES = {"train_loss": ("training rows", "soft"), "query_loss": ("queries", "accent"),
          "test_loss": ("test rows", "muted")}  # fmt: skip
ROW_IN, MOST_ROWS, MOST_LINES, MOST_POINTS = 0.27, 16, 5, 1_200
ENDS = ("", "low_", "high_")
Style = dict[str, Any]


def hue(name: str) -> tuple[str, Any, str]:
    """Of an estimator, or of a configuration by its estimator."""
    color, dash, marker = HUES.get(name.partition("/")[0], UNKNOWN_HUE)
    return COLOR[color], dash, marker


def panels(canvas: Canvas, many: int, across: int, each_in: float, more_in: float = 0.0) -> Any:
    """So many axes, some beside each other, each so high."""
    down = math.ceil(many / across)
    canvas.set_figheight(more_in + each_in * down)
    every = canvas.subplots(down, across, squeeze=False).ravel()
    for spare in every[many:]:
        spare.set_visible(False)
    return every[:many]


def estimators(rows: Sequence[Row], key: str = "estimator") -> list[str]:
    found = {row[key].partition("/")[0] for row in rows}
    return sorted(found, key=lambda name: place(name, ESTIMATORS))


def _of_headline(findings: Findings, rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Every estimator's rows in the headline's group and aggregation."""
    found, (_, _, rest) = grouped(rows, "configuration"), findings.headline.partition("/")
    for estimator in estimators(rows, "configuration"):
        if mine := found.get((f"{estimator}/{rest}",)):
            yield estimator, mine


def curves(findings: Findings, rows: Tables, canvas: Canvas) -> bool | None:
    """Share of the flipped rows found against share removed; free rankings in thin lines."""
    every = rows.get("curves", [])
    mine = list(_of_headline(findings, every))
    if not mine:
        return False
    (axes,) = panels(canvas, 1, 1, 4.0)
    for estimator, line in mine:
        color, dash, _ = hue(estimator)
        _curve(axes, line, color=color, ls=dash, label=estimator)
    for free, dash in zip(rows.get("free_rankings", []), FREE_DASHES):
        line = [r for r in every if r["configuration"] == free["ranking"]]
        _curve(axes, line, color=COLOR["ink"], ls=dash, lw=1.0, label=free["ranking"])
    axes.plot([0, 100], [0, 100], color=COLOR["random"], ls=DASH["reference"], label="random")
    wrong = float(np.mean([100 * c["flips"] / c["rows"] for c in findings.cells if c["flips"]]))
    style: Style = {"color": COLOR["muted"], "lw": 1.0}
    axes.plot([0, wrong, 100], [0, 100, 100], ls=DASH["baseline"], label="perfect", **style)
    share = 100 * findings.share
    axes.axvline(share, color=COLOR["muted"], lw=0.9)
    style = {"textcoords": "offset points", "color": COLOR["muted"], "fontsize": 8.5}
    axes.annotate(f"{share:g}{SPACE}% filtered", (share, 3), (5, 0), **style)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 103)
    axes.set_xlabel("rows removed, lowest scores first [%]")
    _, group, how = parts(findings.headline) or ("", "", "")
    title(axes, f"wrong labels found [%]; {shortened(group)}, {how}")
    legend(canvas, axes, columns=8)
    return None


def _curve(axes: Axes, line: Sequence[Row], **style: Any) -> None:
    axes.plot([r["removed_pct"] for r in line], [r["found_pct"] for r in line], **style)


def deciles(findings: Findings, rows: Tables, canvas: Canvas) -> bool | None:
    """Where in each ranking the flipped rows are, by tenths."""
    mine = list(_of_headline(findings, rows.get("deciles", [])))
    if not mine:
        return False
    canvas.set_figheight(2.3)
    drawn = canvas.subplots(1, len(mine), squeeze=False, sharey=True)[0]
    head = findings.headline.partition("/")[0]
    for axes, (estimator, shares) in zip(drawn, mine, strict=True):
        tenths, heights = ([r[key] for r in shares] for key in ("decile", "share_pct"))
        axes.bar(tenths, heights, 0.82, color=hue(estimator)[0], lw=0)
        style: Style = {"color": COLOR["random"], "ls": DASH["reference"], "lw": 1.2}
        axes.axhline(100 / len(shares), label="random", **style)
        axes.set_xticks([tenths[0], tenths[-1]], ["lowest", "highest"])
        axes.tick_params(axis="x", length=0, labelsize=8.5)
        for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
            label.set_horizontalalignment(side)
        linear_axis(axes, "y")
        title(axes, shortened(estimator, 18), strong=estimator == head and len(mine) > 1)
    legend(canvas, drawn[0])
    return None


def shown(findings: Findings, rows: Tables, most: int = MOST_ROWS) -> list[Row]:
    """The best configurations that were retrained, and the headline's wherever it comes."""
    ours = [r for r in rows.get("accuracy", []) if parts(r["configuration"])]
    head = findings.headline
    return [r for k, r in enumerate(ours) if k < most or r["configuration"] == head]


def accuracy(findings: Findings, rows: Tables, canvas: Canvas) -> bool | None:
    """Test accuracy after filtering, and its paired difference from random, with intervals."""
    mine = shown(findings, rows)
    if not mine:
        return False
    paired = any(math.isfinite(r.get("vs_random_points", math.nan)) for r in mine)
    left, *right = panels(canvas, 1 + paired, 1 + paired, 1.05 + ROW_IN * len(mine))
    for row in rows["accuracy"]:
        if row["configuration"] in LINES:
            words, color, dash = LINES[row["configuration"]]
            style: Style = {"color": COLOR[color], "ls": dash, "lw": 1.4}
            left.axvline(row["mean_pct"], label=f"{words}, {fixed(row['mean_pct'])}", **style)
    _dots(left, mine, "test accuracy [%]", "mean_pct", "low_pct", "high_pct")
    for axes in right:
        _dots(axes, mine, "minus random [points]", *(f"vs_random_{k}points" for k in ENDS))
        axes.axvline(0, color=COLOR["random"], ls=DASH["reference"], lw=1.4)
        axes.set_yticklabels([])
    legend(canvas, left, most=44)
    return None


def _dots(axes: Axes, rows: Sequence[Row], heading: str, *keys: str) -> None:
    for k, row in enumerate(rows):
        mean, low, high = (row.get(key, math.nan) for key in keys)
        color, _, marker = hue(row["configuration"])
        if math.isfinite(low):
            axes.plot([low, high], [k, k], color=color, lw=2.0, solid_capstyle="butt")
        axes.plot([mean], [k], marker, color=color, ms=5.4, mew=0)
    axes.set_yticks(range(len(rows)), [shortened(spoken(r["configuration"])) for r in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(False)
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", labelcolor=COLOR["ink"])
    linear_axis(axes, "x")
    axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.08)
    title(axes, heading)


def trends(findings: Findings, rows: Tables, canvas: Canvas) -> bool | None:
    """Test accuracy by epoch, mean over seeds: the best configurations and the baselines."""
    courses = _courses(findings)
    best = [r["configuration"] for r in shown(findings, rows, MOST_LINES)]
    epochs = [len(line) for found in courses.values() for line in found.values()]
    if not best or max(epochs, default=0) < 2:
        return False
    across = min(4, len(courses)) if len(courses) != 4 else 2
    drawn = panels(canvas, len(courses), across, 3.1 if len(courses) == 1 else 2.0, 0.9)
    for axes, (dataset, found) in zip(drawn, courses.items(), strict=True):
        for name in (name for name in (*best, *LINES) if name in found):
            _course(axes, found[name], name, best)
        linear_axis(axes, "x", integer=True)
        linear_axis(axes, "y")
        title(axes, shortened(dataset, 24), strong=len(courses) > 1)
    legend(canvas, *drawn, columns=4)
    return None


def _course(axes: Axes, course: np.ndarray, name: str, best: Sequence[str]) -> None:
    """Hollow marks: an estimator's second best configuration and further ones."""
    epochs = range(1, len(course) + 1)
    if name in LINES:
        words, role, dash = LINES[name]
        axes.plot(epochs, course, color=COLOR[role], ls=dash, lw=1.5, label=words)
        return
    color, _, marker = hue(name)
    again = name.partition("/")[0] in {n.partition("/")[0] for n in best[: best.index(name)]}
    style: Style = {"marker": marker, "ms": 4.2, "mew": 1.0, "lw": 1.1 if again else 1.7}
    style["mfc"] = COLOR["paper"] if again else color
    axes.plot(epochs, course, color=color, label=spoken(name), **style)


def _courses(findings: Findings) -> dict[str, dict[str, np.ndarray]]:
    """Dataset -> configuration or baseline -> [epochs] mean accuracy in percent."""
    of = {c["name"]: c["dataset"] for c in findings.cells}
    whole = [{**c, "cell": c["name"], "configuration": ALL_ROWS} for c in findings.cells]
    found: dict[str, dict[str, Any]] = {dataset: {} for dataset in datasets(findings)}
    for r in (*findings.retrained, *whole):
        if len(series := r["history"].get("test_accuracy", ())):
            found[of[r["cell"]]].setdefault(r["configuration"], []).append(series)
    return {d: {n: 100 * _mean(s) for n, s in lines.items()} for d, lines in found.items() if lines}


def _mean(series: Sequence[Sequence[float]]) -> np.ndarray:
    longest = max(len(s) for s in series)
    padded = np.array([[*s, *[math.nan] * (longest - len(s))] for s in series])
    found: np.ndarray = np.nanmean(padded, axis=0)
    return found


def thinned(points: list[Row]) -> list[Row]:
    """So many points at most, drawn evenly: a study of thousands stays a small picture."""
    kept = np.random.default_rng(0).permutation(len(points))[:MOST_POINTS]
    return [points[k] for k in sorted(kept)]


def proxies(findings: Findings, rows: Tables, canvas: Canvas) -> bool | None:
    """Accuracy after filtering against NDR, AUC and the cancellation effect: one dot per trial."""
    points = thinned(rows.get("proxy_points", []))
    heads = {"ndr_pct": "NDR [%]", "auc": "noise curve, area", "c": "cancellation C (L1)"}
    known = {key: [p for p in points if math.isfinite(p[key])] for key in heads}
    kept = [key for key in heads if len(known[key]) >= 3]
    if not kept:
        return False
    canvas.set_figheight(3.3)
    drawn = canvas.subplots(1, len(kept), squeeze=False, sharey=True)[0]
    for axes, key in zip(drawn, kept, strict=True):
        for estimator in estimators(known[key]):
            mine = [p for p in known[key] if p["estimator"] == estimator]
            color, _, marker = hue(estimator)
            xy = [p[key] for p in mine], [p["accuracy_pct"] for p in mine]
            style: Style = {"ms": 4.0, "mew": 0, "alpha": 0.65, "color": color}
            axes.plot(*xy, marker, label=estimator, **style)
        if key == "c":
            log_axis(axes, "x", [p[key] for p in points])
        else:
            linear_axis(axes, "x")
        linear_axis(axes, "y")
        axes.locator_params(axis="y", nbins=5)
        axes.set_xlabel(heads[key])
    many = ", every dataset" if len(datasets(findings)) > 1 else ""
    title(drawn[0], f"test accuracy [%]{many}")
    legend(canvas, *drawn, columns=6)
    return None


def training(findings: Findings, _rows: Tables, canvas: Canvas) -> bool | None:
    """Loss by epoch of the training on all rows, mean over cells, and the epochs scored."""
    cells = [c for c in findings.cells if any(len(c["history"].get(s, ())) > 1 for s in SERIES)]
    if not cells:
        return False
    (axes,) = panels(canvas, 1, 1, 3.0)
    for key, (words, color) in SERIES.items():
        mine = [c["history"][key] for c in cells if len(c["history"].get(key, ()))]
        if mine:
            shortest = min(len(series) for series in mine)
            mean = _mean([series[:shortest] for series in mine])
            axes.plot(range(1, shortest + 1), mean, color=COLOR[color], label=words)
    scored = Counter(sorted(c["best"] for c in cells if c["best"] is not None))
    times = ", ".join(f"{best + 1} ({many}×)" for best, many in scored.items())
    label = f"epoch scored: {times}" if len(cells) > 1 else "epoch scored"
    style: Style = {"color": COLOR["helpful"], "ls": DASH["reference"], "lw": 1.2}
    for k, best in enumerate(scored):
        axes.axvline(best + 1, label=None if k else label, **style)
    linear_axis(axes, "x", integer=True)
    linear_axis(axes, "y")
    axes.set_xlabel("epoch")
    title(axes, "loss, mean over cells" if len(cells) > 1 else "loss")
    legend(canvas, axes, most=60)
    return None
