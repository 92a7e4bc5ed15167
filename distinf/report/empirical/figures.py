"""The page's pictures. Each draws on the canvas, where there is something to draw."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from distinf.empirical.matrix import Matrix, finite
from distinf.empirical.measures import drawn, level_name
from distinf.empirical.task import CLEAN
from distinf.report import maps, svg
from distinf.report.formats import number
from distinf.report.plots import Dot, Panel, rows_of_dots
from distinf.report.rows import Row

SHOWN = 300  # samples of a picture's matrix, at most: more are averaged
STRONG = 99.0  # percentile of the influences' sizes that has the full colour
NAMED = 30  # classes at the edges of a picture, at most
HUES = ("accent", "helpful", "harmful", "reference")


def pairwise(shown: Mapping[str, Matrix], canvas: Canvas) -> None:
    """Side by side, by what each is called; of tasks with draws, several by `domains`."""
    first = next(iter(shown.values()), None)
    if first is None or first.places != [("", 0)]:
        if len(shown) > 1:
            domains(shown, canvas)
        return
    clean = first.block(CLEAN, CLEAN)
    if not len(clean) and len(shown) > 1:
        return
    whole = clean if len(clean) else first.influence_NE
    height = (7.6 if whole.shape[0] == whole.shape[1] else 4.5) / len(shown) + 0.4
    every = svg.panels(canvas, height, 1, len(shown))[0]
    for axes, (name, matrix) in zip(every, shown.items(), strict=True):
        square = matrix.block(CLEAN, CLEAN) if len(clean) else whole
        groups = matrix.groups().tolist() if len(clean) else []
        _show(axes, square, _scaled(whole), SHOWN // len(shown), groups)
        svg.title(axes, name)


def blocks(matrix: Matrix, canvas: Canvas) -> None:
    levels = matrix.levels
    if len(levels) < 2 or not len(matrix.block(CLEAN, CLEAN)):
        return
    panels = svg.panels(canvas, 2.7 * len(levels) + 0.4, len(levels), len(levels))
    for (i, j), axes in np.ndenumerate(panels):
        square = matrix.block(levels[i], levels[j])
        title = f"{level_name(levels[i])} → {level_name(levels[j])}"
        if square.size:
            full = _scaled(square)
            _show(axes, square, full, SHOWN // 3)
            title += f", full at {number(full)}"
        axes.set(xticks=[], yticks=[])
        svg.title(axes, title)


def _show(
    axes: Axes, square: np.ndarray, full: float, most: int, groups: Sequence[str] = ()
) -> None:
    """At most so many rows and columns, `full` in full colour, the groups named at the edges."""
    small = _small(square, most) if len(square) == square.shape[1] else square[:most, :most]
    maps.show(axes, small / full)
    names = dict.fromkeys(groups)
    if 1 < len(names) <= NAMED:
        scale, of = len(small) / len(square), np.asarray(groups)
        middles = [float(np.flatnonzero(of == name).mean() * scale) for name in names]
        axes.set_xticks(middles, [*names])
        axes.set_yticks(middles, [*names])


def _scaled(values: np.ndarray) -> float:
    """The influence that has the full colour."""
    sizes = np.abs(svg.finite(values))
    return float(np.percentile(sizes, STRONG)) if sizes.size and sizes.any() else 1.0


def _small(square: np.ndarray, most: int) -> np.ndarray:
    """At most so many rows and columns, by the means of neighbours."""
    each = -(-len(square) // most)
    edges = np.arange(0, len(square), each)
    summed = np.add.reduceat(np.add.reduceat(square, edges, 0), edges, 1)
    lengths = np.diff([*edges, len(square)])
    return np.asarray(summed / (lengths[:, None] * lengths[None]))


def domains(runs: Mapping[str, Matrix], canvas: Canvas) -> None:
    """Of each matrix with names of its own the mean over draws, the runs of it side by side; none
    of tasks without names or draws."""
    named = {name: drawn(m) for name, m in runs.items() if m.places != [("", 0)]}
    made = []
    for matrix in dict.fromkeys(matrix for its in named.values() for matrix in its):
        for name in (name for name, its in named.items() if matrix in its):
            kept, its = finite(runs[name]), named[name][matrix]
            samples = max((kept.samples(place) for place in its), key=len)
            whole = [place for place in its if kept.samples(place) == samples]
            if len(samples) >= 2:
                names = kept.groups(whole[0]).tolist()
                mean = np.mean([kept.block(CLEAN, CLEAN, place) for place in whole], axis=0)
                share = 100 * mean / (np.abs(mean).max() or 1.0)
                made.append((f"{matrix}: {name or 'this run'}", names, names, share))
    maps.several(canvas, made, 2, 1.2, lambda values: values / 100)


def sizes(runs: Mapping[str, Matrix], canvas: Canvas) -> None:
    found: dict[str, np.ndarray] = {}
    for name, matrix in list(runs.items())[: len(HUES)]:
        squares = [finite(matrix).block(CLEAN, CLEAN, place) for place in matrix.places]
        off = [square[~np.eye(len(square), dtype=bool)] for square in squares]
        values = np.sort(np.abs(np.concatenate(off)))
        found[name] = values[values > 0]
    ends = [float(values[k]) for values in found.values() if values.size for k in (0, -1)]
    if not ends:
        return
    (axes,) = svg.grid_of(canvas, 1, 1, 3.6)
    for (name, values), hue in zip(found.items(), HUES):
        if values.size:
            places = np.unique(np.linspace(0, values.size - 1, 400).astype(int))
            share = 1 - places / values.size
            svg.line(axes, values[places], share, hue, label=name or "this run")
    svg.log_axis(axes, "x", ends)
    svg.title(axes, "share of pairs with at least this |influence|")
    svg.legend(canvas, axes)


def dots(rows: Sequence[Row], label: str, canvas: Canvas) -> None:
    """Means with intervals, a panel for each run, a line for each label."""
    rows = [row for row in rows if np.isfinite(row["mean"])]
    names = [" ".join(label.format_map(row).split()) for row in rows]
    places = {name: k for k, name in enumerate(dict.fromkeys(names))}
    panels: dict[str, list[Dot]] = {row["run"]: [] for row in rows}
    for name, row in zip(names, rows, strict=True):
        hollow = row.get("hollow", False)
        dot = Dot(places[name], row["mean"], row["low"], row["high"], hollow=hollow)
        panels[row["run"]].append(dot)
    made = [Panel(run or "this run", [*places], its) for run, its in panels.items()]
    rows_of_dots(canvas, 0.9 + 0.3 * len(places), *made)
