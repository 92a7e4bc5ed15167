"""The page's pictures. Each draws on the canvas; False where there is nothing to draw."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure as Canvas

from distinf.empirical.matrix import Matrix, finite
from distinf.empirical.measures import ANY, OWN, SAME, drawn, level_name
from distinf.empirical.task import CLEAN
from distinf.report import maps, svg
from distinf.report.plots import Dot, Panel, rows_of_dots
from distinf.report.rows import Row

SHOWN = 300  # samples of a picture's matrix, at most: more are averaged
STRONG = 99.0  # percentile of the influences' sizes that has the full colour


def _scaled(values: np.ndarray) -> float:
    """The influence that has the full colour."""
    sizes = np.abs(svg.finite(values))
    return float(np.percentile(sizes, STRONG)) if sizes.size and sizes.any() else 1.0


def _small(square: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows and columns, by the means of neighbours."""
    each = -(-len(square) // most)
    if each == 1:
        return square
    edges = np.arange(0, len(square), each)
    summed = np.add.reduceat(np.add.reduceat(square, edges, 0), edges, 1)
    lengths = np.diff([*edges, len(square)])
    return np.asarray(summed / (lengths[:, None] * lengths[None]))


def domains(runs: Mapping[str, Matrix], canvas: Canvas) -> bool | None:
    """Of each matrix with names of its own the mean over draws, a picture for each run."""
    made = []
    for matrix_name, name in _named_matrices(runs):
        kept = finite(runs[name])
        its = drawn(runs[name])[matrix_name]
        samples = max((kept.samples(place) for place in its), key=len)
        whole = [place for place in its if kept.samples(place) == samples]
        if len(samples) >= 2:
            names = kept.groups(whole[0]).tolist()
            mean = np.mean([kept.block(CLEAN, CLEAN, place) for place in whole], axis=0)
            share = 100 * mean / (np.abs(mean).max() or 1.0)
            made.append((f"{matrix_name}: {name or 'this run'}", names, names, share))
    return maps.several(canvas, made, 2, 1.2, lambda values: values / 100)


def _named_matrices(runs: Mapping[str, Matrix]) -> list[tuple[str, str]]:
    """(matrix, run), the runs of a matrix side by side; none of tasks without names or draws."""
    places = {name: [] if m.places == [("", 0)] else drawn(m) for name, m in runs.items()}
    every = dict.fromkeys(matrix for its in places.values() for matrix in its)
    return [(matrix, name) for matrix in every for name in runs if matrix in places[name]]


def conclusions(rows: Sequence[Row], canvas: Canvas) -> bool | None:
    """A panel for each run."""
    panels = []
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        labels = [f"{row['matrix']}: {row['contrast']}" for row in mine]
        dots = [Dot(k, row["mean"], row["low"], row["high"]) for k, row in enumerate(mine)]
        panels.append(Panel(name or "this run", labels, dots))
    if not panels:
        return False
    return rows_of_dots(canvas, 0.9 + 0.3 * max(len(p.labels) for p in panels), *panels)


def pairwise(matrix: Matrix, canvas: Canvas) -> bool | None:
    if matrix.places != [("", 0)]:
        return False
    square = matrix.block(CLEAN, CLEAN)
    if not len(square):
        square, groups = matrix.influence_NE, np.array([])
    else:
        groups = matrix.groups()
    canvas.set_figheight(7.6 if square.shape[0] == square.shape[1] else 4.5)
    axes = canvas.subplots()
    small = _small(square, SHOWN) if len(square) == square.shape[1] else square[:SHOWN, :SHOWN]
    maps.show(axes, small / _scaled(square))
    names = list(dict.fromkeys(groups.tolist()))
    if 1 < len(names) <= 30:
        scale = len(small) / len(square)
        middles = [float(np.flatnonzero(groups == name).mean() * scale) for name in names]
        for ticks in (axes.set_xticks, axes.set_yticks):
            ticks(middles, names)
    svg.title(axes, "tuned on (down), evaluated (across)")
    return None


def blocks(matrix: Matrix, canvas: Canvas) -> bool | None:
    levels = matrix.levels
    if len(levels) < 2 or not len(matrix.block(CLEAN, CLEAN)):
        return False
    strength = _scaled(matrix.block(CLEAN, CLEAN))
    canvas.set_figheight(2.7 * len(levels) + 0.4)
    panels = canvas.subplots(len(levels), len(levels), squeeze=False)
    for i, trained in enumerate(levels):
        for j, evaluated in enumerate(levels):
            axes = panels[i][j]
            square = matrix.block(trained, evaluated)
            if square.size:
                maps.show(axes, _small(square, SHOWN // 3) / strength)
            axes.set_xticks([])
            axes.set_yticks([])
            svg.title(axes, f"{level_name(trained)} → {level_name(evaluated)}")
    return None


def sizes(runs: Mapping[str, Matrix], canvas: Canvas) -> bool | None:
    ends: list[float] = []
    canvas.set_figheight(3.6)
    axes, hues = canvas.subplots(), ("accent", "helpful", "harmful", "reference")
    for (name, matrix), hue in zip(runs.items(), hues):
        squares = [finite(matrix).block(CLEAN, CLEAN, place) for place in matrix.places]
        off = [square[~np.eye(len(square), dtype=bool)] for square in squares]
        values = np.abs(np.concatenate(off))
        values = np.sort(values[values > 0])
        if values.size:
            places = np.unique(np.linspace(0, values.size - 1, 400).astype(int))
            share = 1 - places / values.size
            svg.line(axes, values[places], share, hue, label=name or "this run")
            ends += [float(values[0]), float(values[-1])]
    if not ends:
        return False
    svg.log_axis(axes, "x", ends)
    svg.title(axes, "share of pairs with at least this |influence|")
    svg.legend(canvas, axes)
    return None


def contrasts(rows: Sequence[Row], canvas: Canvas) -> bool | None:
    mine = [row for row in rows if not row["run"] and row["relation"] in (SAME, ANY, OWN)]
    if not mine:
        return False
    names = [f"{row['contrast']}, {row['level']}, {row['relation']}" for row in mine]
    dots = [Dot(k, row["mean"], row["low"], row["high"]) for k, row in enumerate(mine)]
    return rows_of_dots(canvas, 0.9 + 0.3 * len(mine), Panel("influence", names, dots))
