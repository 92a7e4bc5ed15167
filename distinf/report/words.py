"""A page's fixed words: words.yaml has titles and captions by name, with {numbers} to fill in.

A table there is its title, or its title and its columns, each `heading: form key`, or where the
heading is the key `heading: form`; "group | heading" puts it under a heading of several. Forms are
stub, text, brief (a long text's beginning), those of FORMS, `starred key p` (a correlation, with a
star where it is not significant), and three of two lines: `spread prefix unit form`, `difference
prefix unit mean` (see schema; "-": none) and `over key below word`, which is a number and under it
another one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from string import Formatter
from typing import Any

import yaml

from distinf.report import formats
from distinf.report.formats import count, fixed, missing, number, shortened
from distinf.report.schema import Column, Draw, Entry, Figure, Row, Table, difference, spread

PLAIN = ("count", "duration", "fixed", "identifier", "number", "size")
FORMS: dict[str, Any] = {name: getattr(formats, name) for name in PLAIN}
FORMS |= {"general": "{:g}".format, "some": lambda many: count(many) if many else ""}
FORMS |= {"mark": lambda true: "✓" if true else "", "share": lambda part: fixed(100 * part)}
FORMS |= {"two": lambda value: fixed(value, 2), "three": lambda value: fixed(value, 3)}
FORMS |= {"brief": lambda text: shortened(str(text), MOST_LETTERS)}
FORMS |= {"unbounded": lambda value: "∞" if value == math.inf else number(value)}
TEXTS = {"stub": str, "text": str, "brief": FORMS["brief"]}
NOT_SIGNIFICANT_P = 0.05  # Table 2 of Vitel and Chhabra: marked with a star above it
MOST_LETTERS = 400  # of a text; the CSV has all of it
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
    form, *keys = ("" if word == "-" else word for word in told.split())
    if form == "spread":
        made: dict[str, Any] = dict(
            zip(("prefix", "unit", "form"), [*keys[:2], *(FORMS[k] for k in keys[2:])])
        )
        return spread(name, group=group, **made)
    if form == "difference":
        return difference(name, group=group, **dict(zip(("prefix", "unit", "mean"), keys)))
    of: Any = {"over": _over, "starred": _starred, "unbounded": _unbounded}.get(form)
    if of is not None:
        return Column(name, lambda row: of(row, *(keys or [name])), group=group)
    key = keys[0] if keys else name
    if form in TEXTS:
        return Column(name, key, TEXTS[form], group, "stub" if form == "stub" else "text")
    return Column(name, key, FORMS[form], group)


def _starred(row: Row, rho: str, p: str) -> Entry:
    if missing(row.get(rho)):
        return Entry()
    return Entry(fixed(row[rho], 2) + "*" * (row[p] > NOT_SIGNIFICANT_P), value=row[rho])


def _unbounded(row: Row, key: str) -> Entry:
    value = row.get(key)
    return Entry() if value is None else Entry(FORMS["unbounded"](value), value=value)


def _over(row: Row, key: str, below: str, *word: str) -> Entry:
    told, lower = Column("", key).of(row), row.get(below)
    detail = "" if missing(lower) else " ".join([*word, number(lower)])
    return Entry(told.text, detail, told.value)
