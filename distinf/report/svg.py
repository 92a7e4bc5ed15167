"""Matplotlib figures as inline SVG that takes its colours and font from the page.

Everything is drawn in placeholder colours, one per role, which become CSS variables: one
picture is right in light, in dark and on paper. The same figure gives the same bytes.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from distinf.printable import printable
from distinf.report.fitting import fit
from distinf.report.formats import fixed, power, shortened

ROLES = ("ink", "muted", "grid", "paper", "helpful", "random", "harmful", "reference", "baseline",
         "before", "accent", "other", "soft")  # fmt: skip
COLOR = {role: f"#{index:02x}{index:02x}fe" for index, role in enumerate(ROLES, 1)}
MARKER = {"helpful": "o", "random": "s", "harmful": "v", "baseline": "D", "reference": "^"}
UPDATE_DASH = {"first-order": "-", "second-order": (0, (4, 1.6)), "ascent": (0, (1.2, 1.2))}
DASH = {"reference": (0, (5, 2)), "baseline": (0, (1, 1.6)), "before": (0, (3, 1.5, 1, 1.5))}
WIDTH_IN, HEIGHT_IN = 9.0, 3.5
LEGEND_WIDTH = 0.96  # of the figure's, at most: it stands a little in from the left
SHORT_DECADES, NARROW_DECADES = 0.6, 0.3

STYLE = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlecolor": COLOR["muted"],
    "axes.labelcolor": COLOR["muted"],
    "axes.edgecolor": COLOR["muted"],
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.unicode_minus": True,
    "grid.color": COLOR["grid"],
    "grid.linewidth": 0.7,
    "text.color": COLOR["ink"],
    "xtick.color": COLOR["muted"],
    "ytick.color": COLOR["muted"],
    "xtick.major.size": 3,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.6,
}


def role(name: str) -> str:
    return name if name in COLOR else "other"


def picture(name: str, title: str, draw: Callable[[Figure], None]) -> str | None:
    """What `draw` draws into a figure, as `export` gives it; None where it draws nothing.

    Text in it is never markup.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        draw(figure)
        return export(figure, name, title) if figure.axes else None


def export(figure: Figure, name: str, title: str) -> str:
    """The figure as an <svg> element with an accessible title; ids start with `name`."""
    if fit(figure):  # its places are found, and need not be found again
        figure.set_layout_engine("none")
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    head, body = re.match(r".*?<svg([^>]*)>(.*)", text, flags=re.S).groups()  # type: ignore[union-attr]
    view = re.search(r'viewBox="[^"]*"', head).group()  # type: ignore[union-attr]
    hashed = dict.fromkeys(re.findall(r'\bid="([a-z][0-9a-f]{10})"', body))  # of unrounded places
    for k, made in enumerate(hashed):
        body = body.replace(made, f"d{k}")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', body)
    body = body.replace("url(#", f"url(#{name}-")
    for key, color in COLOR.items():
        body = body.replace(color, f"var(--{key})")
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = re.sub(r"font: (.*?)([\d.]+px) [^;\"]*", _font, body)
    label = f'<title id="{name}-title">{escape(title)}</title>'
    opening = f'<svg class="plot" {view} role="img" aria-labelledby="{name}-title">'
    return printable(opening + label + re.sub(r"\n\s*", "\n", body).strip())


def _font(match: re.Match[str]) -> str:
    """The shorthand of older matplotlib, as size, weight and the page's own family."""
    weight = "; font-weight: bold" if re.search(r"\b(bold|[6-9]00)\b", match[1]) else ""
    return f"font-size: {match[2]}{weight}; font-family: inherit"


def title(axes: Axes, text: str, strong: bool = False) -> None:
    """What the y axis shows, upright at its top left instead of turned at its side."""
    style: Any = {"color": COLOR["ink"], "fontweight": "bold"} if strong else {}
    axes.set_title(shortened(text, 110), **style)


def log_axis(axes: Axes, which: str, values: list[float]) -> None:
    """Log scale labelled in powers of ten, with more between them on a short range."""
    getattr(axes, f"set_{which}scale")("log")
    target = getattr(axes, f"{which}axis")
    positive = [v for v in values if math.isfinite(v) and v > 0]
    decades = math.log10(max(positive) / min(positive)) if positive else 3.0
    if decades < NARROW_DECADES:  # log and linear look alike, and powers of ten are too far apart
        linear_axis(axes, which)
        target.set_minor_locator(NullLocator())
        return
    between = (1.0, 2.0, 5.0) if decades > SHORT_DECADES else (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    target.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else between))
    target.set_major_formatter(FuncFormatter(_log_label))
    target.set_minor_locator(NullLocator())
    target.set_minor_formatter(NullFormatter())


def linear_axis(axes: Axes, which: str, integer: bool = False) -> None:
    target = getattr(axes, f"{which}axis")
    target.set_major_locator(MaxNLocator(6, integer=integer, steps=[1, 2, 2.5, 5, 10]))
    target.set_major_formatter(FuncFormatter(lambda v, _: _linear_label(v)))


def frame(
    axes: Axes, heading: str, below: str = "", whole: bool = False, strong: bool = False
) -> None:
    """Linear axes and what they show: `heading` the y axis (`title`), `below` the x axis, whose
    numbers may be `whole`."""
    linear_axis(axes, "x", integer=whole)
    linear_axis(axes, "y")
    axes.set_xlabel(below)
    title(axes, heading, strong)


def axis(axes: Axes, which: str, values: list[float], log: bool) -> None:
    log_axis(axes, which, values) if log else linear_axis(axes, which)


def line(axes: Axes, x: Any, y: Any, color: str, form: str = "", **style: Any) -> None:
    """Lines or markers in the role's colour; `mark`: the role of its markers' face, if another."""
    if "mark" in style:
        style["mfc"] = COLOR.get(style.pop("mark"), "none")
    axes.plot(x, y, *([form] if form else []), color=COLOR[color], **style)


def level(axes: Axes, at: float, color: str, upright: bool = True, **style: Any) -> None:
    """A line across the panel."""
    (axes.axvline if upright else axes.axhline)(at, color=COLOR[color], **style)


def panels(figure: Figure, height_in: float, rows: int, columns: int, **shape: Any) -> Any:
    """[rows, columns] panels in a figure of that height."""
    figure.set_figheight(height_in)
    return figure.subplots(rows, columns, squeeze=False, **shape)


def grid_of(figure: Figure, many: int, across: int, each_in: float, more_in: float = 0.0) -> Any:
    """So many panels, some beside each other, each so high."""
    down = math.ceil(many / across)
    every = panels(figure, more_in + each_in * down, down, across).ravel()
    for spare in every[many:]:
        spare.set_visible(False)
    return every[:many]


def note(axes: Axes, text: str, at: tuple[float, float], dx: float, **style: Any) -> None:
    """Text so many points beside a place: at its right, or at its left below 0."""
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "left" if dx > 0 else "right"}
    axes.annotate(text, at, (dx, 0), **(place | {"va": "center"} | style))


def finite(values: Any) -> np.ndarray:
    """The finite ones among them, flat."""
    made = np.asarray(values, dtype=np.float64)
    return made[np.isfinite(made)]


def row_axis(axes: Axes, labels: Sequence[str], from_zero: bool = True) -> None:
    """A row for each label, the first at the top, and a line at x = 0."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.tick_params(axis="y", labelcolor=COLOR["ink"])
    axes.grid(False)
    axes.grid(True, axis="x")
    if from_zero:
        axes.axvline(0, color=COLOR["muted"], lw=0.9, zorder=1)
    linear_axis(axes, "x")


def legend(figure: Figure, *panels: Axes, columns: int = 5, most: int = 28) -> None:
    """Above the panels, what is named in any of them, once, in as many columns as fit."""
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(shortened(label, most), handle)
    if named:
        place = {"loc": "outside upper left", "handlelength": 2.4, "borderpad": 0.2}
        for many in range(columns, 0, -1):
            made = figure.legend(list(named.values()), list(named), ncols=many, **place)
            if many == 1 or made.get_window_extent().width <= LEGEND_WIDTH * figure.bbox.width:
                break
            made.remove()


def _log_label(value: float, _: int = 0) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    lead = round(value / 10.0**exponent)
    if -3 <= exponent <= 3:
        return fixed(value, max(0, -exponent))
    return power(exponent) if lead == 1 else f"{lead}·{power(exponent)}"


def _linear_label(value: float) -> str:
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10.0**exponent:g}".replace("-", "−") + "·" + power(exponent)
    return f"{round(value, 9):,g}".replace("-", "−")
