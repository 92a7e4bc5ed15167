"""The columns of one file: TSV, CSV, JSON lines or Parquet, gzipped or not, in UTF-8 or UTF-16.

CSV fields may be quoted; where the header has no comma, semicolons or tabs part them. TSV fields
are taken as they stand, as GLUE's are, unless the file shows that whoever wrote it quotes: see
`_unquoted`. Half a surrogate pair, left where a text was cut in the middle of a character, becomes
U+FFFD and is counted. Rows are numbered from 0, the header not counted, and lines from 1.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distinf.errors import InputError, install_command
from distinf.store.regular import read_given

Columns = dict[str, list[Any]]
Fields = list[list[str]]
WHOLE = re.compile(r'"((?:[^"]|"")*)"')  # a quoted field
SURROGATE = re.compile("[\ud800-\udfff]")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Content:
    """columns: by name, equally long. replaced: half characters that became U+FFFD."""

    columns: Columns
    replaced: int = 0


def read_columns(path: str, setting: str = "data.path") -> Content:
    """All columns of a file. InputError, with the row where it is one row's, for what is wrong."""
    file = Path(path)
    suffixes = [suffix.lower() for suffix in file.suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if gzipped else suffixes)[-1:]
    reader = READERS.get(kind[0] if kind else "")
    if reader is None:
        known = ", ".join(READERS)
        raise InputError(f"{setting}: {path}: unknown suffix; use one of {known} (with .gz or not)")
    try:
        content = read_given(file)
        content = gzip.decompress(content) if gzipped else content
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{setting}: {path}: {reason}; give a file that can be read") from None
    try:
        columns = reader(content)
    except _Bad as bad:
        raise InputError(f"{setting}: {path}: {bad}") from None
    if not columns or not len(next(iter(columns.values()))):
        raise InputError(f"{setting}: {path}: has no rows; give a header line and a row per sample")
    return _whole_characters(columns)


class _Bad(Exception):
    """What is wrong with the content, without the path."""


def _text(content: bytes) -> str:
    """UTF-8, with or without its mark, or UTF-16 with its mark."""
    utf_16 = content.startswith(UTF_16)
    try:
        text = content.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        name = "UTF-16" if utf_16 else "UTF-8"
        line = content[: error.start].count(b"\n") + 1
        raise _Bad(f"is not {name} at byte {error.start} (line {line}); save it as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise _Bad(f"holds a zero byte in line {line}, so is no plain text; save it as UTF-8")
    return text


def _lines(text: str) -> list[str]:
    """Without their ends: LF, CR LF, or CR where there is no other."""
    if "\n" not in text:
        return text.split("\r")
    return [line.rstrip("\r") for line in text.split("\n")]


# -- separated -----------------------------------------------------------------------------


def _read_tsv(content: bytes) -> Columns:
    text = _text(content)
    numbered = [(n, line.split("\t")) for n, line in enumerate(_lines(text), 1) if line]
    numbers, rows = [n for n, _ in numbered], [fields for _, fields in numbered]
    if rows and len(rows[0]) == 1 and re.search("[,;]", rows[0][0]):
        raise _Bad(f"has no tab in its header {rows[0][0]!r}; if it is CSV, name it .csv")
    ragged = any(len(fields) != len(rows[0]) for fields in rows)
    if not ragged:
        return _by_column(_unquoted(rows), numbers)
    try:
        return _by_column(*_separated(text, "\t"))  # fields with tabs or line breaks, quoted
    except _Bad:
        return _by_column(rows, numbers)


def _unquoted(rows: Fields) -> Fields:
    """The fields without their quotation marks, if they are the writer's and not the text's.

    They are where every field that begins with one is a whole quoted field, and a name in the
    header is quoted or a field has a doubled mark inside.
    """
    begun = [field for fields in rows for field in fields if field.startswith('"')]
    inside = [WHOLE.fullmatch(field) for field in begun]
    named = any(name.startswith('"') for name in rows[0]) if rows else False
    if not all(inside) or not (named or any('""' in found[1] for found in inside if found)):
        return rows
    return [
        [field[1:-1].replace('""', '"') if field.startswith('"') else field for field in fields]
        for fields in rows
    ]


def _read_csv(content: bytes) -> Columns:
    text = _text(content)
    header = next((line for line in _lines(text) if line), "")
    delimiter = "," if "," in header else ";" if ";" in header else "\t"
    return _by_column(*_separated(text, delimiter))


def _separated(text: str, delimiter: str) -> tuple[Fields, list[int]]:
    """Rows with quoted fields, and the line on which each ends; blank lines are left out."""
    rows: Fields = []
    numbers: list[int] = []
    with _fields_of_any_length(len(text)):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            for fields in reader:
                if fields:
                    rows.append(fields)
                    numbers.append(reader.line_num)
        except csv.Error as error:
            where = f"row {len(rows) - 1}" if rows else "the header"
            raise _Bad(
                f"is not CSV: {where} (line {reader.line_num}): {error}; double quotation marks "
                "inside a quoted field, and end it with one"
            ) from None
    return rows, numbers


@contextmanager
def _fields_of_any_length(most: int) -> Iterator[None]:
    """The limit is the process's, so it is as before afterwards."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, most))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _by_column(rows: Sequence[Sequence[str]], lines: Sequence[int]) -> Columns:
    if not rows:
        return {}
    header, body = [name.strip() for name in rows[0]], rows[1:]  # "text, label" is usual
    _refuse_twice(header)
    for row, fields in enumerate(body):
        if len(fields) != len(header):
            raise _Bad(
                f"row {row} (line {lines[row + 1]}) has {len(fields)} fields where the header has "
                f"{len(header)}; mend that row"
            )
    return {name: list(column) for name, column in zip(header, zip(*body))}


def _refuse_twice(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise _Bad(f"two columns are called {twice[0]!r}; rename one")


# -- JSON lines and Parquet ----------------------------------------------------------------


def _read_jsonl(content: bytes) -> Columns:
    lines = [(n, line) for n, line in enumerate(_lines(_text(content)), 1) if line.strip()]
    columns: Columns = {}
    for row, (number, line) in enumerate(lines):
        values = _object(f"row {row} (line {number})", line)
        if not row:
            columns = {name: [] for name in values}
        if not columns or values.keys() != columns.keys():
            raise _Bad(
                f"row {row} (line {number}) must be an object with the keys of the first row"
            )
        for name, value in values.items():
            columns[name].append(value)
    return columns


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        values = json.loads(line, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        reason = getattr(error, "msg", str(error).partition(";")[0])
        raise _Bad(f"{where} is not JSON ({reason})") from None
    if not isinstance(values, _Pairs):
        raise _Bad(f"{where} must be an object with the keys of the first row")
    if values.twice:
        raise _Bad(f"{where} has the key {values.twice[0]!r} twice; leave one out")
    return dict(values)


class _Pairs(dict[str, Any]):
    """An object that knows which of its keys come twice."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs)
        self.twice = [name for name, count in counts.items() if count > 1]


def _read_parquet(content: bytes) -> Columns:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise _Bad(f"reading Parquet needs pyarrow: {install_command('llm')}") from None
    try:
        table = parquet.read_table(io.BytesIO(content))
        _refuse_twice(table.column_names)
        found: Columns = table.to_pydict()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise _Bad(f"is not Parquet ({reason})") from None
    return found


READERS: Mapping[str, Callable[[bytes], Columns]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _whole_characters(columns: Columns) -> Content:
    """The same with U+FFFD for each half character in texts and names."""
    counts = [0]

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(inner) for inner in value]
        if isinstance(value, dict):
            return {name: whole(inner) for name, inner in value.items()}
        if not isinstance(value, str) or value.isascii():
            return value
        replaced, count = SURROGATE.subn("\N{REPLACEMENT CHARACTER}", value)
        counts[0] += count
        return replaced

    found = {name: [whole(value) for value in values] for name, values in columns.items()}
    if not counts[0]:
        return Content(columns)
    return Content(found, counts[0])
