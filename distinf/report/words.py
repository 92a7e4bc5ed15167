"""A page's fixed words: words.yaml has titles and captions by name, with {numbers} to fill in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from string import Formatter
from typing import Any

import yaml

from distinf.report.schema import Column, Draw, Figure, Row, Table


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
        return str(self.of(*keys)).format(**(dict(self.numbers) | more))

    def clauses(self, *keys: str) -> str:
        """The texts under the keys in a row, without those that hold a number that is not known;
        "" where the first does."""
        texts = [text for text in self.of(*keys) if self._known(text)]
        first, *_ = self.of(*keys)
        return "".join(texts).format(**self.numbers) if first in texts else ""

    def _known(self, text: str) -> bool:
        return all(name in self.numbers for _, name, _, _ in Formatter().parse(text) if name)

    def figure(self, words: str, draw: Draw, name: str = "", **more: Any) -> Figure:
        """figures: name: title, caption, the table that it is drawn from."""
        told = (text.format(**(dict(self.numbers) | more)) for text in self.of("figures", words))
        title, caption, file = told
        return Figure(name or words, title[:1].upper() + title[1:], caption, draw, file)

    def table(
        self,
        words: str,
        rows: Sequence[Row],
        columns: Sequence[Column],
        file: str = "",
        note: str = "",
        folded: bool = False,
        **more: Any,
    ) -> Table:
        """tables: name: title; `file`: the name, where nothing else is given."""
        title = self.say("tables", words, **more)
        return Table(title[:1].upper() + title[1:], rows, columns, file or words, note, folded)
