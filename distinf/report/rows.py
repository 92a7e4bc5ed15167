"""Rows of numbers as strict CSV and JSON."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

from distinf.printable import printable

Row = dict[str, Any]
T = TypeVar("T")
K = TypeVar("K")
FORMULA = re.compile("[\t\r\n ]*[-=+@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")  # of a spreadsheet
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def gathered(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by their keys, in the order that they come in."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """The rows by their values under these names."""
    return gathered(rows, lambda row: tuple(row[name] for name in names))


def combined(
    rows: Iterable[Row],
    names: Sequence[str],
    of: Callable[[list[Row]], Row],
    order: Callable[[tuple], Any] | None = None,
) -> list[Row]:
    """A row for each of the names' values: them, and what `of` makes of their rows."""
    found = grouped(rows, *names)
    keys = found if order is None else sorted(found, key=order)
    return [dict(zip(names, key, strict=True)) | of(found[key]) for key in keys]


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV with the union of their columns; missing and non-finite values are empty.

    Texts are shown, not obeyed: what begins like a formula has an apostrophe before it, and what
    turns the direction or moves the cursor is escaped. JSON has them as they are.
    """
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(name) for name in names])
    for row in rows:
        values = plain(row)
        writer.writerow([_cell(values.get(name)) for name in names])
    return out.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str | list | dict):
        return value
    text = printable(str(value))
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text.strip()) else text


def json_text(rows: Sequence[Row]) -> str:
    """Rows as strict JSON; non-finite values are null."""
    return json.dumps(plain(rows), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """`value` as strict JSON: NaN and infinities become None; an array becomes its summary."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return array_summary(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def array_summary(array: np.ndarray) -> dict[str, float | int | None]:
    """Count, non-finite count, mean, sd and five quantiles of the finite entries."""
    finite = np.asarray(array, dtype=np.float64).ravel()
    total = int(finite.size)
    finite = finite[np.isfinite(finite)]
    summary: dict[str, float | int | None] = {"count": total, "nonfinite": total - finite.size}
    names = ("min", "q25", "median", "q75", "max")
    if finite.size == 0:
        return summary | dict.fromkeys(("mean", "sd", *names))
    quantiles = np.quantile(finite, (0, 0.25, 0.5, 0.75, 1))
    summary |= {"mean": float(finite.mean()), "sd": float(finite.std())}
    return summary | {n: float(q) for n, q in zip(names, quantiles, strict=True)}
