"""A page as one HTML file that needs nothing else."""

import base64
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files as resources
from itertools import count, groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from distinf.printable import printable
from distinf.report import svg
from distinf.report.formats import MISSING
from distinf.report.schema import Bullets, Column, Entry, Facts, Figure, Page, Section, Table, Text

WIDE = 8  # columns, from which a table's letters are smaller


@dataclass(frozen=True)
class Line:
    """A table's row; `again[c]`: the stub is that of the line above; `part`: another first stub."""

    cells: tuple[Entry, ...]
    again: tuple[bool, ...]
    part: bool


@dataclass(frozen=True)
class Printed:
    """A table's columns that say something; `groups`: a heading over so many columns each."""

    table: Table
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, int], ...]
    lines: tuple[Line, ...]

    @property
    def wide(self) -> bool:
        return len(self.columns) > WIDE

    @property
    def parts(self) -> Iterator[tuple[str, list[Line]]]:
        """The rows to sort, then the total."""
        total = [line for line in self.lines if line.cells[0].text == "total"]
        yield "tbody", [line for line in self.lines if line not in total]
        yield "tfoot", total


def html(page: Page, files: Collection[str] = ()) -> str:
    """The same page gives the same bytes, for one version of matplotlib.

    files: names of the tables that lie beside it as CSV and JSON. Texts are escaped, and what in
    them would be obeyed is shown. The one script sorts tables; no other can run.
    """
    environment = Environment(
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader("distinf.report", ""),
    )
    beside = (resources("distinf.report") / name for name in ("sort.js", "style.css"))
    script, style = (file.read_text(encoding="utf-8") for file in beside)
    template = environment.get_template("page.html.jinja")
    return template.render(
        page=replace(page, sections=_Maker(files).kept(page.sections)),
        style=Markup(style),
        script=Markup(script),
        allowed=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        files=files,
    )


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@dataclass(frozen=True)
class _Maker:
    """Items as the template takes them: (kind, what it prints); figures are numbered."""

    files: Collection[str]
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def kept(self, items: Any) -> list[Any]:
        return [made for item in items if (made := self.made(item)) is not None]

    def made(self, item: Any) -> Any:
        """None for what has nothing to say."""
        if isinstance(item, Section):
            kept = self.kept(item.items)
            return ("section", replace(item, items=kept)) if kept else None
        if isinstance(item, Table):
            table = printed(item)
            return ("table", table) if table is not None else None
        if isinstance(item, Figure):
            drawn = svg.picture(item.name, item.title, item.draw)
            return ("figure", item, next(self.numbers), Markup(drawn)) if drawn else None
        if isinstance(item, Facts):
            pairs = [(name, value) for name, value in item.pairs if value not in ("", MISSING)]
            return ("facts", pairs) if pairs else None
        if isinstance(item, Bullets):
            return ("bullets", item.items) if item.items else None
        assert isinstance(item, Text)
        return ("text", item) if item.text else None


def printed(table: Table) -> Printed | None:
    """None without rows."""
    if not table.rows:
        return None
    made = [(column, [column.of(row) for row in table.rows]) for column in table.columns]
    made = [(c, cells) for c, cells in made if {cell.text for cell in cells} - {"", MISSING}]
    columns = tuple(c for c, _ in made)
    groups = tuple((name, len(list(same))) for name, same in groupby(c.group for c in columns))
    stubs = [k for k, c in enumerate(columns) if c.kind == "stub"]
    rows = list(zip(*(cells for _, cells in made), strict=True))
    firsts = [[row[k].text for k in stubs] for row in rows]
    lines = []
    for place, row in enumerate(rows):
        above = firsts[place - 1] if place else None
        same = len(stubs) > 1 and above is not None and above[0] == firsts[place][0]
        again = tuple(same and k == stubs[0] for k in range(len(columns)))
        lines.append(Line(row, again, above is not None and not same and len(stubs) > 1))
    if not any(any(line.again) for line in lines):
        lines = [replace(line, part=False) for line in lines]
    return Printed(table, columns, groups if any(n for n, _ in groups) else (), tuple(lines))
