"""Heat maps as small images in an SVG: two hues that fade to the page's own colour at zero.

A map is right on a light page and on a dark one, since its middle is transparent. Values are in
[-1, 1]: above 0 in the helpful hue, below 0 in the harmful one; NaN is grey.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from distinf.report.svg import COLOR, title

ABOVE, BELOW, MISSING = (0, 140, 105), (214, 84, 20), (127, 127, 127)
MISSING_ALPHA = 0.42


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
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(True)
        axes.spines[side].set_color(COLOR["grid"])


def scale_bar(axes: Axes, places: Sequence[float], labels: Sequence[str], heading: str) -> None:
    """A horizontal bar of the colours from -1 to 1, labelled at `places`."""
    show(axes, np.linspace(-1, 1, 255)[None])
    axes.set_yticks([])
    axes.set_xticks([127 + 127 * p for p in places], labels)
    title(axes, heading)
