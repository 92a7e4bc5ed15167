"""Labels of a figure that would run into each other: titles are broken, ticks thinned, names moved.

Widths are those of DejaVu Sans, wider than most fonts that a page is shown in.
"""

from collections.abc import Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Bbox

APART = 8.0  # least distance of two titles or tick labels, in points
MOST_LINES = 3
SIDES: Any = (  # offset in points, alignments
    ((8, 0), "left", "center"), ((-8, 0), "right", "center"),
    ((0, 7), "center", "bottom"), ((0, -7), "center", "top"),
)  # fmt: skip


def lay_out(figure: Figure) -> None:
    """Find the places of what is drawn so far."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)


def fit(figure: Figure) -> bool:
    """Break titles that are wider than their room, and leave out ticks whose labels overlap.

    -> whether all fitted as it was laid out.
    """
    lay_out(figure)
    fitted = not _break_titles(figure)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            while axes.get_visible() and _crowded(axis, figure.dpi):
                _halve(axis)
                fitted = False
    return fitted


def _break_titles(figure: Figure) -> bool:
    """A title may reach to the next one on its right, or to the picture's edge -> any broken?"""
    broken = False
    apart = APART * figure.dpi / 72
    boxes = {
        part: part.get_window_extent()
        for axes in (a for a in figure.axes if a.get_visible())
        for part in axes.get_children()
        if isinstance(part, Text) and part.get_text() == axes.get_title(loc="left") != ""
    }
    for text, box in boxes.items():
        beside = [b.x0 for b in boxes.values() if b.x0 > box.x0 and b.y0 < box.y1 and b.y1 > box.y0]
        room = min([figure.bbox.x1, *beside]) - box.x0 - apart
        if box.width > room:
            letters = max(4, int(len(text.get_text()) * 0.95 * room / box.width))
            lines = wrap(text.get_text(), letters, max_lines=MOST_LINES, placeholder="…")
            text.set_text("\n".join(lines))
            broken = True
    return broken


def _crowded(axis: Any, dpi: float) -> bool:
    labels = [t for t in axis.get_majorticklabels() if t.get_visible() and t.get_text()]
    if len(labels) < 3 or any(t.get_rotation() for t in labels):
        return False
    boxes = [t.get_window_extent() for t in labels]
    if axis.axis_name == "x":
        boxes = [Bbox.from_extents(b.x0 - APART * dpi / 144, b.y0, b.x1, b.y1) for b in boxes]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


def _halve(axis: Any) -> None:
    """Every second tick, with zero where it is one of them; the outer two, were it alone."""
    low, high = sorted(axis.get_view_interval())
    ticks = [t for t in axis.get_majorticklocs() if low <= t <= high]
    kept = ticks[ticks.index(0.0) % 2 if 0.0 in ticks else 0 :: 2]
    axis.set_major_locator(FixedLocator(kept if kept[1:] else ticks[:: max(len(ticks) - 1, 1)]))


def name_points(
    figure: Figure, axes: Axes, names: Sequence[str], places: Sequence[tuple[float, float]]
) -> None:
    """Each point's name on the first side where it touches no point and no name, if there is one.

    To be called when all else is drawn.
    """
    lay_out(figure)
    around = 6.0 * figure.dpi / 72
    taken = [Bbox([at, at]).padded(around) for at in axes.transData.transform(places)]
    left, low, right, high = axes.bbox.extents  # beyond them are the ticks' labels
    inside = Bbox.from_extents(left, low, right, high + around)
    for name, at in zip(names, places, strict=True):
        for offset, across, up in SIDES:
            made = axes.annotate(
                name, at, offset, textcoords="offset points", ha=across, va=up, in_layout=False
            )
            box = made.get_window_extent()
            within = inside.containsx(box.x0) and inside.containsx(box.x1)
            within = within and inside.containsy(box.y0) and inside.containsy(box.y1)
            if within and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            made.remove()
