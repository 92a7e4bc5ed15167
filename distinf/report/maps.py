"""Heat maps as small images in an SVG: two hues that fade to the page's own colour at zero.

A map is right on a light page and on a dark one, since its middle is transparent. Values are in
[-1, 1]: above 0 in the helpful hue, below 0 in the harmful one; NaN is grey.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distinf.report.formats import fixed, shortened
from distinf.report.svg import COLOR, grid_of, title

ABOVE, BELOW, MISSING = (0, 140, 105), (214, 84, 20), (127, 127, 127)
MISSING_ALPHA = 0.42
ROW_IN = 0.27
STRENGTH = 0.72  # of a map's deepest colour, so that its numbers can be read
MOST_NUMBERED, MOST_NUMBERED_PAIRS = 16, 8  # columns of a map whose cells carry numbers
MOST_BESIDE = 26  # columns of all maps of one line, from which each gets a line of its own
Shades = Callable[[np.ndarray], np.ndarray]  # values to [-1, 1]
Map = tuple[str, Sequence[str], Sequence[str], np.ndarray]  # heading, rows, columns, values


def tinted(values: np.ndarray) -> np.ndarray:
    """[..., 4] uint8: the colours of `values`, clipped to [-1, 1]."""
    known = np.isfinite(values)
    size = np.clip(np.abs(np.where(known, values, 0.0)), 0, 1)
    made = np.empty((*values.shape, 4), dtype=np.uint8)
    made[..., :3] = np.where((values < 0)[..., None], BELOW, ABOVE)
    made[..., 3] = np.round(255 * size)
    made[~known] = (*MISSING, round(255 * MISSING_ALPHA))
    return made


def show(axes: Axes, values: np.ndarray) -> None:
    """Draw `values` [rows, columns], a cell around every whole number; the first row at the top."""
    axes.imshow(tinted(values), interpolation="none", aspect="auto")
    axes.grid(False)
    axes.spines[:].set(visible=True, color=COLOR["grid"])


def scale_bar(axes: Axes, places: Sequence[float], labels: Sequence[str], heading: str) -> None:
    """A horizontal bar of the colours from -1 to 1, labelled at `places`."""
    show(axes, np.linspace(-1, 1, 255)[None])
    axes.set_yticks([])
    axes.set_xticks([127 + 127 * p for p in places], labels)
    title(axes, heading)


def several(
    figure: Figure, made: Sequence[Map], across: int, each_in: float, shades: Shades, **more: Any
) -> None:
    """Side by side where there is room, with their numbers, of so many digits, where there is;
    strong: a heading."""
    if not made:
        return
    highest, widest = (max(len(each[side]) for each in made) for side in (1, 2))
    across = 1 if across * widest > MOST_BESIDE else min(across, len(made))
    drawn = grid_of(figure, len(made), across, each_in + ROW_IN * max(3, highest))
    digits, strong = more.get("digits", 0), more.get("strong")
    most = MOST_NUMBERED_PAIRS if digits else MOST_NUMBERED
    style = {"ha": "center", "va": "center_baseline", "color": COLOR["ink"], "fontsize": 8.5}
    for axes, (heading, rows, columns, values) in zip(drawn, made, strict=True):
        show(axes, STRENGTH * shades(values))
        axes.set_yticks(range(len(rows)), [shortened(name, 20) for name in rows])
        axes.tick_params(axis="y", labelcolor=COLOR["ink"], labelsize=8.5)
        step = max(1, len(columns) // 8) if columns[0].isdigit() else 1
        slanted = step == 1 and max(map(len, columns)) > 2
        axes.set_xticks(*zip(*list(enumerate(shortened(c, 20) for c in columns))[::step]))
        axes.tick_params(axis="x", length=0, labelsize=8.5, rotation=40 if slanted else 0)
        for label in axes.get_xticklabels() if slanted else ():
            label.set(horizontalalignment="right", rotation_mode="anchor")
        title(axes, shortened(heading, 58), strong=heading == strong)
        for (i, j), value in np.ndenumerate(values) if len(columns) <= most else ():
            if math.isfinite(value):
                axes.text(j, i, fixed(float(value), digits), **style)
