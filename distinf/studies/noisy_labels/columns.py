"""Which columns of a file hold texts, labels, ids, splits and groups."""

import contextlib
import difflib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from distinf.errors import InputError
from distinf.studies.noisy_labels.settings import DataSettings

USUAL = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)
OF_TEXTS = (
    "text", "sentence", "body", "content", "message", "review", "comment", "description",
    "utterance", "document", "question", "title", "subject", "query", "tweet", "summary",
)  # fmt: skip
OF_LABELS = (
    "label", "labels", "class", "category", "target", "intent", "queue", "topic", "sentiment",
    "gold", "stars", "rating", "tag", "type", "y",
)  # fmt: skip
LISTED = 20  # columns that an error names
LOOKED_AT = 1_000  # rows, for a guess

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Chosen:
    """Names of columns; "" for none."""

    text: tuple[str, ...]
    label: str
    id: str
    split: str
    group: str


def choose_columns(settings: DataSettings, columns: Columns) -> Chosen:
    """As the settings say, or by usual names. InputError says all that is missing at once."""
    path, problems, tries = settings.path, [], dict[str, str]()
    for setting in ("label", "id", "split", "group"):
        name = getattr(settings, setting)
        if name and name not in columns:
            problems.append(f"data.{setting}: {path} has no column '{name}'")
            near = _near(name, columns)
            guess = near or (_guessed_label(columns, settings.text) if setting == "label" else "")
            tries |= {setting: guess} if guess else {}
    split = settings.split or ("split" if "split" in columns else "")
    named = (settings.label, settings.id, split, settings.group)
    guessed = {*named, *tries.values()}
    text = tuple(settings.text) or _usual_text(columns, guessed)
    absent = [name for name in settings.text if name not in columns]
    problems += [f"data.text: {path} has no column '{name}'" for name in absent]
    if not text:
        problems.append(f"data.text: which columns of {path} hold the text? name one or two")
    if absent or not text:
        guess = next(filter(None, (_near(name, columns) for name in absent)), "")
        guess = guess or _guessed_text(columns, guessed)
        tries |= {"text": guess} if guess else {}
    if problems:
        hint = "; did you mean " + " ".join(map(_set, tries, tries.values())) if tries else ""
        hint += "?" if hint else ""
        raise InputError(f"{'; '.join(problems)}; it has {_listed(list(columns))}{hint}")
    return Chosen(text, settings.label, settings.id, split, settings.group)


def _set(setting: str, name: str) -> str:
    """What a shell and YAML take for this name."""
    with contextlib.suppress(yaml.YAMLError, ValueError):
        if yaml.safe_load(name) == name:
            return f"--set {shlex.quote(f'data.{setting}={name}')}"
    return f"--set {shlex.quote(f'data.{setting}={json.dumps(name)}')}"


def _usual_text(columns: Columns, taken: set[str]) -> tuple[str, ...]:
    """The text columns where nobody names them; () where that is not plain."""
    free = [name for name in columns if name not in taken]
    for names in USUAL:
        if all(name in free for name in names):
            return names
    textual = _textual(columns, free)
    return (textual[0],) if len(textual) == 1 else ()


def _textual(columns: Columns, names: Sequence[str]) -> list[str]:
    return [name for name in names if isinstance(columns[name][0], str)]


def _near(name: str, columns: Columns) -> str:
    found = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    return found[0] if found else ""


def _by_name(columns: Columns, free: Sequence[str], usual: Sequence[str]) -> str:
    """The first of the usual names that a column has, whole or as a part such as `ticket_body`."""
    for word in usual:
        for name in free:
            if word == name.lower() or word in name.lower().replace("-", "_").split("_"):
                return name
    return ""


def _guessed_label(columns: Columns, text: Sequence[str]) -> str:
    """A usual name, or the column with the fewest different values, if some come again."""
    free = [name for name in columns if name not in text]
    counts = {name: len({str(v) for v in columns[name][:LOOKED_AT]}) for name in free}
    rows = min(len(next(iter(columns.values()))), LOOKED_AT)
    classes = {name: count for name, count in counts.items() if 2 <= count <= rows / 2}
    return _by_name(columns, free, OF_LABELS) or min(classes, key=classes.__getitem__, default="")


def _guessed_text(columns: Columns, taken: set[str]) -> str:
    """A usual name, or the column with the longest texts."""
    free = _textual(columns, [name for name in columns if name not in taken])
    letters = {name: sum(len(str(v)) for v in columns[name][:LOOKED_AT]) for name in free}
    return _by_name(columns, free, OF_TEXTS) or max(free, key=letters.__getitem__, default="")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
