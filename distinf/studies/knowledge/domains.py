"""Domains of statements with words that are made up: read, checked, and drawn."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from distinf.errors import InputError
from distinf.numerics.randomness import generator

SYLLABLES = tuple(
    s + t for s, t in zip("bdfgjklmnprstvwyz" * 3, ("a", "im", "or", "el", "u", "ik", "os") * 8)
)
FEWEST, MOST = 2, 5  # syllables of a word


@dataclass(frozen=True)
class Domain:
    """items: texts by name, with {words} in them. contrasts: by name (after, right, wrong)."""

    name: str
    items: Mapping[str, tuple[str, ...]]
    contrasts: Mapping[str, tuple[str, str, str]]

    @property
    def words(self) -> list[str]:
        every = (name for texts in self.items.values() for text in texts for name in _names(text))
        return sorted(set(every))

    def drawn(self, seed: int, draw: int) -> dict[str, tuple[str, ...]]:
        """The items' texts with words of this draw, which differ from each other."""
        random, found = generator(seed, f"words {self.name} {draw}"), list[str]()
        while len(found) < len(self.words):
            made = word(random)
            found += [made] if made not in found else []
        named = dict(zip(self.words, found, strict=True))
        return {k: tuple(t.format(**named) for t in texts) for k, texts in self.items.items()}


def word(random: np.random.Generator) -> str:
    """Of 2 to 5 different syllables."""
    count = int(random.integers(FEWEST, MOST + 1))
    return "".join(random.permutation(SYLLABLES)[:count])


def domains(path: str, wanted: Sequence[str]) -> list[Domain]:
    """Of the file, "" for the published ones; all where none is wanted.

    InputError, one line, for a file that is not like domains.yaml, and a domain that it has not.
    """
    where = "settings.domains_file" + (f": {path}" if path else "")
    try:
        text = Path(path).read_text(encoding="utf-8") if path else _published()
        raw = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split()):.200}") from None
    if not isinstance(raw, Mapping) or not raw:
        raise InputError(f"{where}: holds no domains; see distinf/studies/knowledge/domains.yaml")
    missing = [name for name in wanted if name not in raw]
    if missing:
        raise InputError(
            f"settings.domains: no '{missing[0]}' among {', '.join(map(str, raw))}; name "
            "some of them"
        )
    return [_domain(str(name), raw[name], where) for name in wanted or raw]


def _published() -> str:
    return (files("distinf.studies.knowledge") / "domains.yaml").read_text(encoding="utf-8")


def _domain(name: str, raw: Any, where: str) -> Domain:
    try:
        items = {
            str(key): (texts,) if isinstance(texts, str) else tuple(map(str, texts))
            for key, texts in raw["items"].items()
        }
        contrasts = {str(k): tuple(map(str, v)) for k, v in (raw.get("contrasts") or {}).items()}
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{where}: '{name}' needs items, each a text or a list of texts") from None
    for key, texts in items.items():
        if not texts or not all(text.strip() for text in texts):
            raise InputError(f"{where}: {name}: '{key}' has an empty text")
        names = [word for text in texts for word in _names(text)]
        if not all(map(str.isidentifier, names)) or not all(fits(text, names) for text in texts):
            raise InputError(
                f"{where}: {name}: '{key}' has a place for a word without a name; write it as {{A}}"
            )
    for key, three in contrasts.items():
        if len(three) != 3 or not set(three) <= items.keys():
            raise InputError(
                f"{where}: {name}: contrast '{key}' must be [after, right, wrong], three of "
                f"{', '.join(items)}"
            )
    return Domain(name, items, contrasts)  # type: ignore[arg-type]


def fits(text: str, names: Sequence[str]) -> bool:
    """Whether texts of these names can be put into it."""
    try:
        text.format(**dict.fromkeys(names, "x"))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        return False
    return True


def _names(text: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError:
        return [""]  # a brace that is not closed
