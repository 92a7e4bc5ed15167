"""Tables as the page prints them: chosen columns, headed in words, every cell a string."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distinf.report.formats import SPACE, fixed, missing

Row = dict[str, Any]
Cell = Callable[[Row], str]


@dataclass(frozen=True)
class View:
    """`numeric[c]`: column c is right-aligned."""

    title: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    cells: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Column:
    heading: str
    cell: Cell
    numeric: bool = True


def view(title: str, rows: list[Row], columns: list[Column]) -> View | None:
    """The rows under those columns that say something; None without rows."""
    if not rows:
        return None
    cells = [[column.cell(row) for row in rows] for column in columns]
    kept = [(c, col) for c, col in zip(columns, cells, strict=True) if set(col) - {"", "n/a"}]
    return View(
        title,
        tuple(c.heading for c, _ in kept),
        tuple(c.numeric for c, _ in kept),
        tuple(zip(*(col for _, col in kept), strict=True)),
    )


def text(key: str) -> Cell:
    """The value as it is."""
    return lambda row: "" if row.get(key) is None else str(row[key])


def value(key: str, form: Callable[[Any], str]) -> Cell:
    """The value in a form that knows what to say of a missing one."""
    return lambda row: form(row.get(key))


def blank(key: str, form: Callable[[Any], str]) -> Cell:
    """The value in a form, nothing where it is missing."""
    return lambda row: "" if missing(row.get(key)) else form(row[key])


def plus_minus(prefix: str = "", form: Callable[[Any], str] = fixed) -> Cell:
    """Mean ± sd of the columns that start with `prefix`."""

    def cell(row: Row) -> str:
        mean, sd = row.get(f"{prefix}mean_pct"), row.get(f"{prefix}sd_pct")
        return form(mean) if missing(sd) else f"{form(mean)}{SPACE}±{SPACE}{form(sd)}"

    return cell


def span(low: str, high: str, form: Callable[[Any], str] = fixed) -> Cell:
    """An interval; nothing without one."""
    return lambda row: "" if missing(row.get(low)) else f"{form(row[low])} to {form(row[high])}"
