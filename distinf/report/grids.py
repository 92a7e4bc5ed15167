"""Tables with several stub columns, grouped headings and a second line in a cell."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from distinf.report.columns import Cell as Printed
from distinf.report.columns import Row, blank, plus_minus, span
from distinf.report.formats import fixed, number, signed

LARGE = 200.0  # percent or points, from which decimals say nothing


@dataclass(frozen=True)
class Entry:
    """`detail` is a second, smaller line; `place` 1 and 2 are the largest means of a column."""

    text: str = ""
    detail: str = ""
    place: int | None = None


@dataclass(frozen=True)
class Grid:
    """`groups`: a heading over so many columns each; empty where no column has one.

    `rows`: the stubs, the entries, and whether another first stub begins a part with the row.
    `headed`: the first stub stands on a line of its own, above its part.
    """

    title: str
    stubs: tuple[str, ...]
    groups: tuple[tuple[str, int], ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Entry, ...], bool], ...]
    headed: bool = False


@dataclass(frozen=True)
class GridColumn:
    group: str
    heading: str
    entry: Callable[[Row], Entry]


def grid(
    title: str,
    rows: Sequence[Row],
    stubs: Sequence[tuple[str, Printed]],
    columns: Sequence[GridColumn],
    headed: bool = False,
) -> Grid | None:
    """The rows under the columns that say something; None without rows.

    A first stub that repeats the one above it is left out.
    """
    if not rows:
        return None
    entries = [[column.entry(row) for row in rows] for column in columns]
    kept = [k for k, column in enumerate(entries) if any(e.text for e in column)]
    told = [tuple(cell(row) for _, cell in stubs) for row in rows]
    shown = [k for k in range(len(stubs)) if any(t[k] for t in told)]
    groups = [(name, len(list(same))) for name, same in groupby(columns[k].group for k in kept)]
    stretches = len([k for k, _ in groupby(line[0] for line in told)])
    parted = len(shown) > 1 and stretches < len(told)
    lines = []
    for place, line in enumerate(told):
        again = bool(place) and line[0] == told[place - 1][0] and len(shown) > 1
        names = tuple("" if again and k == 0 else line[k] for k in shown)
        part = parted and bool(place) and not again
        lines.append((names, tuple(entries[k][place] for k in kept), part))
    return Grid(
        title,
        tuple(stubs[k][0] for k in shown),
        tuple(groups) if any(name for name, _ in groups) else (),
        tuple(columns[k].heading for k in kept),
        tuple(lines),
        headed and len(shown) > 1,
    )


def entry(cell: Printed) -> Callable[[Row], Entry]:
    """A plain cell."""
    return lambda row: Entry(cell(row))


def with_interval(prefix: str = "") -> Callable[[Row], Entry]:
    """Mean ± sd of `prefix`mean_pct, and below it the interval; nothing without a mean."""

    def found(row: Row) -> Entry:
        if f"{prefix}mean_pct" not in row:
            return Entry()
        low_high = span(f"{prefix}low_pct", f"{prefix}high_pct", shorter)(row)
        return Entry(plus_minus(prefix, shorter)(row), low_high, row.get("place"))

    return found


def points(prefix: str) -> Callable[[Row], Entry]:
    """A difference in points, and below it the interval."""

    def form(value: float) -> str:
        return signed(value, 1 if abs(value) < LARGE else 0)

    return lambda row: Entry(
        blank(f"{prefix}points", form)(row),
        span(f"{prefix}low_points", f"{prefix}high_points", form)(row),
    )


def shorter(value: float | None) -> str:
    """One decimal, none for large numbers."""
    return fixed(value, 1 if value is None or not abs(value) >= LARGE else 0)


def metric(key: str) -> Callable[[Row], Entry]:
    """A metric to three digits."""
    return entry(blank(key, number))
