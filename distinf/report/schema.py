"""What a page is made of: sections of text, tables, figures. `render.html(page, files)` prints it.

A page module builds one `Page`; everything may be listed without an `if`: a table without rows, a
column that says nothing, a figure whose `draw` draws nothing and a section without items vanish.

    Page(title, task, answer=(verdict, what was gained, at what price), warnings=…, sections=[
        Section("effect", "Effect", [
            Figure("gap", f"Gap closed [{unit}]", f"{n} trials.", partial(gap, rows), "trials"),
            Table("By selection", rows["summary"], [
                stub("selection", "selection"),
                Column("trials", "trials", count),              # a key of the row, and its form
                spread("gap closed [%]"),                       # mean ± sd, its interval below
                difference("minus random [points]", "vs_"),     # signed, its interval below
                Column("won", lambda r: f"{r['wins']} of {r['pairs']}", group="trials"),
            ], file="summary"),
        ]),
        Section("reading", "How to read this", [Bullets([("Scores.", "Above 0: …")])]),
    ])

A column's cell is a key of the row or a function of the row that gives a text or an Entry. A key
that the row lacks, or None, is an empty cell; NaN is "n/a". `group` is a heading over neighbouring
columns. Stubs are the row's names: a name that repeats the one above it is shown once. A row named
"total" stays last when a reader sorts. `file` names the CSV and JSON that have the numbers: linked
where they are published. `draw(canvas)`, as of `def gap(rows, canvas)`, sets the canvas's height in
inches and draws with the colours of svg.py. Texts are escaped; the same page gives the same bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from distinf.report.formats import MISSING, SPACE, fixed, missing, number, signed
from distinf.report.rows import Row, grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Draw = Callable[["Canvas"], None]
LARGE = 200.0  # percent or points, from which decimals say nothing


@dataclass(frozen=True)
class Entry:
    """`detail`: a smaller second line. `value`: to sort by. `place`: 1 is bold, 2 italic."""

    text: str = ""
    detail: str = ""
    value: float | None = None
    place: int | None = None


@dataclass(frozen=True)
class Column:
    heading: str
    cell: str | Callable[[Row], str | Entry]
    form: Callable[[Any], str] = number
    group: str = ""
    kind: Literal["stub", "text", "number"] = "number"

    def of(self, row: Row) -> Entry:
        if callable(self.cell):
            made = self.cell(row)
            return made if isinstance(made, Entry) else Entry(made)
        found = row.get(self.cell)
        if found is None:
            return Entry()
        try:
            value = float(found) if isinstance(found, int | float) else None
            return Entry(MISSING if missing(found) else self.form(found), value=value)
        except OverflowError:  # a note of a task's own, beyond every float
            return Entry(str(found))


stub = partial(Column, form=str, kind="stub")  # a name of the row
text = partial(Column, form=str, kind="text")


def spread(
    heading: str,
    prefix: str = "",
    unit: str = "_pct",
    form: Callable[[Any], str] | None = None,
    group: str = "",
) -> Column:
    """`prefix`mean`unit` ± sd, and below it low to high, where the row has them."""
    form = form or shorter

    def cell(row: Row) -> Entry:
        mean, sd = row.get(f"{prefix}mean{unit}"), row.get(f"{prefix}sd{unit}")
        if mean is None:
            return Entry()
        told = form(mean) if missing(sd) else f"{form(mean)}{SPACE}±{SPACE}{form(sd)}"
        below = _span(row, f"{prefix}low{unit}", f"{prefix}high{unit}", form)
        return Entry(told, below, mean, row.get("place"))

    return Column(heading, cell, group=group)


def difference(
    heading: str, prefix: str = "vs_", unit: str = "points", group: str = "", mean: str = ""
) -> Column:
    """`prefix``mean``unit` with its sign, and below it low to high, where the row has them."""

    def cell(row: Row) -> Entry:
        value = row.get(f"{prefix}{mean}{unit}")
        if value is None or missing(value):
            return Entry()
        below = _span(row, f"{prefix}low_{unit}", f"{prefix}high_{unit}", _signed)
        return Entry(_signed(value), below, value)

    return Column(heading, cell, group=group)


def crossed(
    rows: Sequence[Row], by: Sequence[str], across: str, told: Callable[[Row], Entry]
) -> tuple[list[Row], list[Column]]:
    """A line for each of the values of `by`; a column for each value of `across`, which may be
    "group | heading", with what `told` says of the row that has both."""
    lines = [{**m[0], "of": {r[across]: r for r in m}} for m in grouped(rows, *by).values()]

    def cell(name: str, line: Row) -> Entry:
        return told(line["of"][name]) if name in line["of"] else Entry()

    columns = []
    for name in dict.fromkeys(row[across] for row in rows):
        group, _, heading = name.rpartition(" | ")
        columns.append(Column(heading, partial(cell, name), group=group))
    return lines, columns


def _span(row: Row, low: str, high: str, form: Callable[[Any], str]) -> str:
    return "" if missing(row.get(low)) else f"{form(row[low])} to {form(row[high])}"


def shorter(value: float | None) -> str:
    """One decimal, none for large numbers."""
    return fixed(value, 1 if value is None or not abs(value) >= LARGE else 0)


def _signed(value: float) -> str:
    return signed(value, 1 if abs(value) < LARGE else 0)


@dataclass(frozen=True)
class Table:
    """`folded`: behind its title. `note` stands under it."""

    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    file: str = ""
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """Left out where `draw(canvas)` draws nothing."""

    name: str
    title: str
    caption: str
    draw: Draw
    file: str = ""


@dataclass(frozen=True)
class Text:
    """`form`: "p", "note" (smaller) or "pre" (as it is). `folded`: what it is hidden behind."""

    text: str
    form: Literal["p", "note", "pre"] = "p"
    folded: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values; one without a value is left out."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Bullets:
    """Each a bold beginning, "" for none, and the rest."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the page, or of a section. `short` is its name in the list of sections."""

    anchor: str
    title: str
    items: Sequence["Item"]
    intro: str = ""
    short: str = ""
    folded: bool = False


Item = Table | Figure | Text | Facts | Bullets | Section


@dataclass(frozen=True)
class Card:
    """A number of the answer, large; `role` is a colour's."""

    label: str
    value: str
    unit: str
    detail: str
    role: str = "ink"


@dataclass(frozen=True)
class Page:
    """`answer`: the sentence that is large, then those beside it. `further`: (section's anchor,
    its name, what it found)."""

    title: str
    task: str
    answer: Sequence[str]
    question: str = ""
    verdict: str = ""
    cards: Sequence[Card] = ()
    warnings: Sequence[str] = ()
    further: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[Section] = ()
