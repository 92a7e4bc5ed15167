"""Labelled texts from one file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distinf.errors import InputError
from distinf.studies.language.parsing import Columns, read_columns
from distinf.studies.noisy_labels.classes import PAIR, class_names, class_numbers, classes_among
from distinf.studies.noisy_labels.columns import choose_columns
from distinf.studies.noisy_labels.settings import DataSettings

SPLITS = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}


@dataclass(frozen=True)
class Table:
    """Rows in the file's order.

    texts   one or two strings per row
    labels  int64 [rows], the place of each row's class among `classes`
    rows    int64 [rows], the number of each row in its source, from 0
    ids     its own id of each row, or the row's number
    splits  of each row: train, validation or test; None where the source has none
    classes their names
    groups  int64 [rows]: rows of one number stay in one split; None where each is free
    replaced  half characters that are U+FFFD now (parsing.py)
    """

    texts: Sequence[tuple[str, ...]]
    labels: np.ndarray
    rows: np.ndarray
    ids: Sequence[str]
    splits: np.ndarray | None = None
    classes: tuple[str, ...] = PAIR
    groups: np.ndarray | None = None
    replaced: int = 0


def read_table(settings: DataSettings) -> Table:
    """The rows of `settings.path`. InputError, in one line, for whatever is wrong with it."""
    path = settings.path
    content = read_columns(path)
    columns = content.columns
    chosen = choose_columns(settings, columns)
    where = f"data.label: {path}: column '{chosen.label}'"
    names = class_names(columns[chosen.label], where)
    classes = settings.named_classes or classes_among(names, where)
    return Table(
        texts=_texts(path, columns, chosen.text),
        labels=class_numbers(names, classes, where),
        rows=np.arange(len(names)),
        ids=_ids(path, columns, chosen.id, len(names)),
        splits=_splits(path, columns[chosen.split], chosen.split) if chosen.split else None,
        classes=classes,
        groups=_groups(columns[chosen.group]) if chosen.group else None,
        replaced=content.replaced,
    )


def _texts(path: str, columns: Columns, names: Sequence[str]) -> list[tuple[str, ...]]:
    for name in names:
        for row, value in enumerate(columns[name]):
            if not isinstance(value, str):
                kind = type(value).__name__
                raise InputError(
                    f"data.text: row {row} of column '{name}' of {path} is {kind}, not text"
                )
    return list(zip(*(columns[name] for name in names)))


def _ids(path: str, columns: Columns, name: str, rows: int) -> list[str]:
    if not name:
        return [str(row) for row in range(rows)]
    ids = [str(value) for value in columns[name]]
    twice = [value for value, count in Counter(ids).items() if count > 1]
    if twice:
        raise InputError(
            f"data.id: {len(twice)} ids of column '{name}' of {path} come twice or more, "
            f"{twice[0]!r} first; make them unique, or leave data.id empty to number the rows"
        )
    return ids


def _splits(path: str, values: Sequence[Any], name: str) -> np.ndarray:
    for row, value in enumerate(values):
        if not isinstance(value, str) or value not in SPLITS:
            raise InputError(
                f"data.split: row {row} of column '{name}' of {path} says {value!r:.60}; use "
                "train, validation or test"
            )
    return np.array([SPLITS[value] for value in values])


def _groups(values: Sequence[Any]) -> np.ndarray:
    """Equal values are one group; rows without a value are each one of their own."""
    places: dict[Any, int] = {}
    keys = [("row", row) if v in (None, "") else str(v) for row, v in enumerate(values)]
    return np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
