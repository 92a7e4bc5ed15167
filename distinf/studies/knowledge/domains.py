"""Domains of statements with words that are made up: read, checked, and drawn."""

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import numpy as np
import yaml

from distinf.config_file import parsed
from distinf.errors import InputError
from distinf.numerics.randomness import generator
from distinf.store.regular import read_given

SYLLABLES = tuple(
    s + t for s, t in zip("bdfgjklmnprstvwyz" * 3, ("a", "im", "or", "el", "u", "ik", "os") * 8)
)
FEWEST, MOST = 2, 5  # syllables of a word


@dataclass(frozen=True)
class Domain:
    """items: texts by name, with {words} in them. contrasts: by name (after, right, wrong), or with
    what `after` is held against. implied: (item, another) -> 1 that follows, -1 that is denied.
    wordings: what takes the place of which phrase. pool: what words are drawn from, else
    syllables."""

    name: str
    items: Mapping[str, tuple[str, ...]]
    contrasts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    implied: Mapping[tuple[str, str], int] = field(default_factory=dict)
    wordings: tuple[Mapping[str, str], ...] = ()
    pool: tuple[str, ...] = ()
    drawn_as: str = ""

    @property
    def words(self) -> list[str]:
        every = (name for texts in self.items.values() for text in texts for name in _names(text))
        return sorted(set(every))

    def drawn(self, seed: int, draw: int) -> dict[str, tuple[str, ...]]:
        """The items' texts with words of this draw, which differ from each other."""
        random = generator(seed, f"words {self.drawn_as or self.name} {draw}")
        found: list[str] = [str(w) for w in random.permutation(self.pool)[: len(self.words)]]
        while len(found) < len(self.words):
            made = word(random)
            found += [made] if made not in found else []
        named = dict(zip(self.words, found, strict=True))
        return {k: tuple(t.format(**named) for t in texts) for k, texts in self.items.items()}

    def worded(self, count: int) -> Iterator["Domain"]:
        """The same in as many wordings, its own first; each draws the same words."""
        if count > 1 + len(self.wordings):
            raise InputError(
                f"settings.wordings: {self.name} has {1 + len(self.wordings)}, its own among them; "
                "ask for no more, or add some to its wordings in a domains_file"
            )
        for k, phrases in enumerate(({}, *self.wordings)[:count]):
            name = self.name if k == 0 else f"{self.name}, wording {k + 1}"
            items = {key: tuple(_said(t, phrases) for t in its) for key, its in self.items.items()}
            yield replace(self, name=name, items=items, drawn_as=self.name)


def _said(text: str, phrases: Mapping[str, str]) -> str:
    for phrase, other in phrases.items():
        text = text.replace(phrase, other)
    return text


def word(random: np.random.Generator) -> str:
    """Of 2 to 5 different syllables."""
    count = int(random.integers(FEWEST, MOST + 1))
    return "".join(random.permutation(SYLLABLES)[:count])


CLAIMS = {"random_claim": 10, "random_claim_100": 100}  # items


def _claims(path: str) -> list[Domain]:
    """Of the first sentences of abstracts, one abstract a line; others are drawn each time."""
    try:
        lines = read_given(path).decode().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"settings.abstracts: {error}") from None
    first = [re.split(r"(?<=[.!?])\s", line.strip())[0] for line in lines]
    pool = tuple(dict.fromkeys(sentence for sentence in first if sentence))
    return [
        Domain(name, {f"claim {k}": (f"{{c{k}}}",) for k in range(1, count + 1)}, pool=pool)
        for name, count in CLAIMS.items()
        if count <= len(pool)
    ]


def domains(path: str, wanted: Sequence[str], abstracts: str = "") -> list[Domain]:
    """Of the file, "" for the published ones; all where none is wanted. With `abstracts`, a file,
    also those of CLAIMS for which it has enough.

    InputError, one line, for a file that is not like domains.yaml, and a domain that it has not.
    """
    claims = {domain.name: domain for domain in (_claims(abstracts) if abstracts else ())}
    if abstracts and not claims:
        raise InputError(
            f"settings.abstracts: {abstracts} has fewer than 10 different ones, a line each"
        )
    where = "settings.domains_file" + (f": {path}" if path else "")
    try:
        text = read_given(path).decode() if path else _published()
        raw = parsed(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split()):.200}") from None
    if not isinstance(raw, Mapping) or not raw:
        raise InputError(f"{where}: holds no domains; see distinf/studies/knowledge/domains.yaml")
    every = [*raw, *claims]
    missing = [name for name in wanted if name not in every]
    if missing:
        more = ", or give more settings.abstracts" if missing[0] in CLAIMS else ""
        raise InputError(
            f"settings.domains: no '{missing[0]}' among {', '.join(map(str, every))}; name "
            f"some of them{more}"
        )
    return [claims.get(n) or _domain(str(n), raw[n], where) for n in wanted or every]


def _published() -> str:
    return (files("distinf.studies.knowledge") / "domains.yaml").read_text(encoding="utf-8")


def _domain(name: str, raw: Any, where: str) -> Domain:
    try:
        items = {
            str(key): (texts,) if isinstance(texts, str) else tuple(map(str, texts))
            for key, texts in raw["items"].items()
        }
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{where}: '{name}' needs items, each a text or a list of texts") from None
    try:
        contrasts = {str(k): tuple(map(str, v)) for k, v in (raw.get("contrasts") or {}).items()}
        implied = {
            (str(item), str(other)): sign
            for key, sign in (("follows", 1), ("contradicts", -1))
            for item, others in (raw.get(key) or {}).items()
            for other in others
        }
        wordings = tuple({str(k): str(v) for k, v in w.items()} for w in raw.get("wordings") or ())
    except (TypeError, AttributeError):
        raise InputError(
            f"{where}: {name}: contrasts, follows, contradicts and wordings are as in "
            "distinf/studies/knowledge/domains.yaml"
        ) from None
    for key, texts in items.items():
        if not texts or not all(text.strip() for text in texts):
            raise InputError(f"{where}: {name}: '{key}' has an empty text")
        names = [word for text in texts for word in _names(text)]
        if not all(map(str.isidentifier, names)) or not all(fits(text, names) for text in texts):
            raise InputError(
                f"{where}: {name}: '{key}' has a place for a word without a name; write it as {{A}}"
            )
    for key, three in contrasts.items():
        if len(three) not in (3, 4) or not set(three) <= items.keys():
            raise InputError(
                f"{where}: {name}: contrast '{key}' must be [after, right, wrong], and perhaps a "
                f"fourth that `after` is held against, of {', '.join(items)}"
            )
    unknown = {item for pair in implied for item in pair} - items.keys()
    if unknown:
        raise InputError(
            f"{where}: {name}: '{min(unknown)}' follows or contradicts, but is no item of it; take "
            f"some of {', '.join(items)}"
        )
    for phrases in wordings:
        said = [_said(text, phrases) for texts in items.values() for text in texts]
        if not all(fits(text, _names(text)) for text in said):
            raise InputError(f"{where}: {name}: a wording leaves a brace that is not one of {{A}}")
        for phrase in phrases:
            if not any(phrase in text for texts in items.values() for text in texts):
                raise InputError(f"{where}: {name}: no text has the phrase '{phrase}' of a wording")
    return Domain(name, items, contrasts, implied, wordings)


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
