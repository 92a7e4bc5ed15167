"""Labelled texts from one file: TSV, CSV, JSON lines or Parquet, gzipped or not.

TSV fields are taken as they stand, as GLUE's are; CSV fields may be quoted.
"""

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distinf.errors import InputError, install_command
from distinf.studies.noisy_labels.classes import PAIR, class_names, class_numbers, classes_among
from distinf.studies.noisy_labels.columns import choose_columns
from distinf.studies.noisy_labels.settings import DataSettings

SPLITS = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}
Columns = dict[str, list[Any]]


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
    """

    texts: Sequence[tuple[str, ...]]
    labels: np.ndarray
    rows: np.ndarray
    ids: Sequence[str]
    splits: np.ndarray | None = None
    classes: tuple[str, ...] = PAIR
    groups: np.ndarray | None = None


def read_table(settings: DataSettings) -> Table:
    """The rows of `settings.path`. InputError, in one line, for whatever is wrong with it."""
    path = settings.path
    columns = read_columns(path)
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
    )


def read_columns(path: str) -> Columns:
    """All columns by name; equally long."""
    file = Path(path)
    suffixes = [suffix.lower() for suffix in file.suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if gzipped else suffixes)[-1:]
    reader = READERS.get(kind[0] if kind else "")
    if reader is None:
        known = ", ".join(READERS)
        raise InputError(f"data.path: {path}: unknown suffix; use one of {known} (with .gz or not)")
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if gzipped else content
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"data.path: {path}: {reason}; give a file that can be read") from None
    try:
        columns = reader(path, content)
    except UnicodeDecodeError as error:
        raise InputError(
            f"data.path: {path}: is not UTF-8 at byte {error.start}; save it as UTF-8"
        ) from None
    if not columns or not len(next(iter(columns.values()))):
        raise InputError(f"data.path: {path}: has no rows; give a header line and a row per sample")
    return columns


def _read_tsv(path: str, content: bytes) -> Columns:
    lines = content.decode("utf-8-sig").split("\n")
    rows = [line.rstrip("\r").split("\t") for line in lines if line.strip("\r")]
    return _by_column(path, rows)


def _read_csv(path: str, content: bytes) -> Columns:
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"data.path: {path}: is not CSV ({error})") from None
    return _by_column(path, [row for row in rows if row])


def _by_column(path: str, rows: Sequence[Sequence[str]]) -> Columns:
    if not rows:
        return {}
    header, *body = rows
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"data.path: {path}: two columns are called {twice[0]!r}; rename one")
    for row, fields in enumerate(body):
        if len(fields) != len(header):
            raise InputError(
                f"data.path: {path}: row {row} has {len(fields)} fields where the header has "
                f"{len(header)}; mend that row"
            )
    return {name: list(column) for name, column in zip(header, zip(*body))}


def _read_jsonl(path: str, content: bytes) -> Columns:
    lines = [line for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    columns: Columns = {}
    for row, line in enumerate(lines):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"data.path: {path}: row {row} is not JSON ({error.msg})") from None
        columns = columns or {name: [] for name in values} if isinstance(values, dict) else {}
        if not columns or values.keys() != columns.keys():
            raise InputError(
                f"data.path: {path}: row {row} must be an object with the keys of the first row"
            )
        for name, value in values.items():
            columns[name].append(value)
    return columns


def _read_parquet(path: str, content: bytes) -> Columns:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError:
        raise InputError(
            f"data.path: {path}: reading Parquet needs pyarrow: {install_command('llm')}"
        ) from None
    try:
        return parquet.read_table(io.BytesIO(content)).to_pydict()
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"data.path: {path}: is not Parquet ({reason})") from None


READERS: Mapping[str, Callable[[str, bytes], Columns]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


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
                f"data.split: row {row} of column '{name}' of {path} says {value!r}; use train, "
                "validation or test"
            )
    return np.array([SPLITS[value] for value in values])


def _groups(values: Sequence[Any]) -> np.ndarray:
    """Equal values are one group; rows without a value are each one of their own."""
    places: dict[Any, int] = {}
    keys = [("row", row) if v in (None, "") else str(v) for row, v in enumerate(values)]
    return np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
