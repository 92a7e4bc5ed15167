"""Labelled texts from one file: TSV, CSV, JSON lines or Parquet, gzipped or not.

TSV fields are taken as they stand, as GLUE's are; CSV fields may be quoted.
"""

import csv
import difflib
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distinf.errors import InputError
from distinf.studies.noisy_labels.settings import DataSettings

CLASSES = 2
SPLITS = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}
USUAL = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence",),
    ("text",),
)

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Table:
    """Rows in the file's order.

    texts   one or two strings per row
    labels  int64 [rows], 0 or 1
    rows    int64 [rows], the number of each row in its source, from 0
    ids     its own id of each row, or the row's number
    splits  of each row: train, validation or test; None where the source has none
    """

    texts: Sequence[tuple[str, ...]]
    labels: np.ndarray
    rows: np.ndarray
    ids: Sequence[str]
    splits: np.ndarray | None = None


def read_table(settings: DataSettings) -> Table:
    """The rows of `settings.path`. InputError, in one line, for whatever is wrong with it."""
    path = settings.path
    columns = read_columns(path)
    names = list(columns)
    for setting in ("label", "id", "split"):
        if getattr(settings, setting):
            _check_column(f"data.{setting}", getattr(settings, setting), path, names)
    split = settings.split or ("split" if "split" in columns else "")
    taken = {settings.label, settings.id, split}
    text = settings.text or _usual_text(path, columns, taken)
    for name in text:
        _check_column("data.text", name, path, names)
    labels = whole_labels(columns[settings.label], f"{path}: column '{settings.label}'")
    return Table(
        texts=_texts(path, columns, text),
        labels=labels,
        rows=np.arange(len(labels)),
        ids=_ids(path, columns, settings.id, len(labels)),
        splits=_splits(path, columns[split], split) if split else None,
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


def whole_labels(values: Iterable[Any], where: str) -> np.ndarray:
    """int64 [rows]; InputError for a label that is no class of the head."""
    found = []
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if number not in range(CLASSES):
            raise InputError(
                f"{where}: label {value!r} in row {row} must be a whole number from 0 to "
                f"{CLASSES - 1}; leave such rows out or recode them"
            )
        found.append(int(number))
    return np.array(found, dtype=np.int64)


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
        raise InputError(f"data.path: {path}: Parquet needs distinf[llm]; install it") from None
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


def _check_column(setting: str, name: str, path: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"
        raise InputError(f"{setting}: {path} has no column '{name}'; {hint}")


def _usual_text(path: str, columns: Columns, taken: set[str]) -> tuple[str, ...]:
    """The text columns where nobody names them."""
    free = [name for name in columns if name not in taken]
    for names in USUAL:
        if all(name in free for name in names):
            return names
    textual = [name for name in free if isinstance(columns[name][0], str)]
    if len(textual) != 1:
        raise InputError(
            f"data.text: which columns of {path} hold the text? name one or two of "
            f"{', '.join(textual or free) or 'its columns (there are none left)'}"
        )
    return (textual[0],)


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
