"""A page's fixed words: words.yaml has titles and captions by name, with {numbers} to fill in.

A table there is its title, or its title and its columns, each `heading: form key`, or where the
heading is the key `heading: form`; "group | heading" puts it under a heading of several. Forms are
stub, text, those of FORMS, and three of two lines: `spread prefix`, `difference prefix unit mean`
(see schema) and `over key below word`, which is a number and under it another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from string import Formatter
from typing import Any

import yaml

from distinf.report import formats
from distinf.report.formats import count, duration, fixed, identifier, missing, number, size
from distinf.report.schema import (
    Column,
    Draw,
    Entry,
    Figure,
    Row,
    Table,
    difference,
    spread,
)

FORMS = {f.__name__: f for f in (count, duration, fixed, identifier, number, size)}
FORMS |= {"general": "{:g}".format, "some": lambda many: count(many) if many else ""}
FORMS |= {"mark": lambda true: "✓" if true else "", "share": lambda part: fixed(100 * part)}
TWO_LINES: Mapping[str, Any] = {"spread": spread, "difference": difference}
REST = "..."  # where the columns that are not in words.yaml stand; without it they come last


class Filling(Formatter):
    """`{name:form}` by a function of formats.py, as "rounded", or by any other format."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        form = getattr(formats, format_spec or "none", None)
        return super().format_field(value, format_spec) if form is None else form(value)


FILLING = Filling()


@lru_cache
def _read(package: str) -> Any:
    return yaml.safe_load((files(package) / "words.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Words:
    """`numbers`: what any text of the package may hold."""

    package: str
    numbers: Mapping[str, Any]

    def of(self, *keys: str) -> Any:
        """What stands under the keys, as it is."""
        found = _read(self.package)
        for key in keys:
            found = found[key]
        return found

    def say(self, *keys: str, **more: Any) -> str:
        return FILLING.vformat(str(self.of(*keys)), (), {**self.numbers, **more})

    def clauses(self, texts: Sequence[str]) -> str:
        """The texts in a row, without those that hold a number that is not known; "" where the
        first does."""
        kept = [text for text in texts if self._known(text)]
        return FILLING.vformat("".join(kept), (), self.numbers) if texts[0] in kept else ""

    def _known(self, text: str) -> bool:
        names = [name for _, name, _, _ in FILLING.parse(text) if name]
        return not any(formats.missing(self.numbers.get(name)) for name in names)

    def figure(self, words: str, draw: Draw, name: str = "", **more: Any) -> Figure:
        """figures: name: title, caption, the table that it is drawn from."""
        numbers, texts = {**self.numbers, **more}, self.of("figures", words)
        title, caption, file = (FILLING.vformat(text, (), numbers) for text in texts)
        return Figure(name or words, title[:1].upper() + title[1:], caption, draw, file)

    def table(
        self,
        words: str,
        rows: Sequence[Row],
        columns: Sequence[Column] = (),
        file: str = "",
        note: str = "",
        folded: bool = False,
        **more: Any,
    ) -> Table:
        """tables: name: title, or title and columns; `file`: the name, where no other is given."""
        found, numbers = self.of("tables", words), dict(self.numbers) | more
        title, given = (found, {}) if isinstance(found, str) else found
        title, every = title.format(**numbers), list[Column]()
        for heading, form in ({**given} if REST in given else {**given, REST: ""}).items():
            made = [column(*(t.format(**numbers) for t in (heading, form)))] if form else columns
            every += made
        return Table(title[:1].upper() + title[1:], rows, every, file or words, note, folded)


def column(heading: str, told: str) -> Column:
    """As a table in words.yaml has it."""
    group, _, name = heading.rpartition(" | ")
    form, *keys = told.split()
    named: Mapping[str, Any] = dict(zip(("prefix", "unit", "mean"), keys))
    if form in TWO_LINES:
        return TWO_LINES[form](name, group=group, **named)
    if form == "over":
        return Column(name, lambda row: _over(row, *keys), group=group)
    key = keys[0] if keys else name
    if form in ("stub", "text"):
        return Column(name, key, str, group, form)  # type: ignore[arg-type]
    return Column(name, key, FORMS[form], group)


def _over(row: Row, key: str, below: str, *word: str) -> Entry:
    told, lower = Column("", key).of(row), row.get(below)
    detail = "" if missing(lower) else " ".join([*word, number(lower)])
    return Entry(told.text, detail, told.value)
