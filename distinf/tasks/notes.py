"""Notes on rows, as people give them (pandas, numpy, tensors, lists), made plain by place."""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from distinf.errors import InputError

SURROGATE = re.compile("[\ud800-\udfff]")
MOST_DIGITS_BITS = 10_000  # Python refuses to write an integer of more than 4,300 digits


def placed(name: str, values: Any) -> Sequence[Any]:
    """The values of a column, so that [i] is row i's: a pandas index plays no part.

    InputError for what has no length, no order, or no row: a generator, a set, a text, a table.
    """
    kind = type(values).__name__
    if isinstance(values, str | bytes | Mapping | set | frozenset) or hasattr(values, "columns"):
        raise InputError(f"task: '{name}' is a {kind}; give one value for each training row")
    if isinstance(values, Tensor | np.ndarray):
        if values.ndim == 0:
            raise InputError(f"task: '{name}' is a single number; give one for each training row")
        return values  # type: ignore[return-value]
    if not isinstance(values, Sized):
        raise InputError(f"task: '{name}' is a {kind}, which can be read once; make it a list")
    return values if isinstance(values, list | tuple) else list(values)  # type: ignore[call-overload]


def plain_value(value: Any) -> Any:
    """As JSON has it: None for what is missing (NaN, NaT, NA), numbers, texts, lists of these.

    Half a surrogate pair becomes U+FFFD; what is none of these (a date, a path) becomes its text.
    """
    if isinstance(value, Tensor | np.ndarray):
        return plain_value(value.tolist())
    if isinstance(value, np.timedelta64):  # numpy counts it among the integers
        return None if np.isnat(value) else str(value)
    if isinstance(value, str):
        return SURROGATE.sub("\N{REPLACEMENT CHARACTER}", str(value))
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value) if int(value).bit_length() < MOST_DIGITS_BITS else hex(int(value))
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    if isinstance(value, Mapping):
        return {str(plain_value(key)): plain_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inner) for inner in value]
    return _in_words(value)


def _in_words(value: Any) -> Any:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, np.datetime64) and np.isnat(value):
        return None
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return plain_value(str(value))


def with_notes(
    own: Mapping[str, Any], notes: Mapping[Any, Any], kept: Collection[str] = ()
) -> dict[str, Any]:
    """Own columns and notes; a note that is called like one of ours is called note_<name>.

    kept  names of ours, too, that are not there this time
    InputError for a note without a name.
    """
    found = dict(own)
    for key, value in notes.items():
        name = str(plain_value(key))
        if not name.strip():
            raise InputError("task: a note has an empty name; give it one, as in {'text': texts}")
        while name in found or name in kept:
            name = f"note_{name}"
        found[name] = plain_value(value)
    return found


def described(
    describe: Callable[[np.ndarray], Sequence[Mapping[str, Any]]], rows: np.ndarray
) -> list[dict[str, Any]]:
    """What a task says of these rows, plain, with "row" a number in each.

    A row whose own number is no whole number keeps it as a note. InputError for another shape.
    """
    told = list(describe(rows))
    if len(told) != len(rows) or not all(isinstance(one, Mapping) for one in told):
        raise InputError(
            f"task: describe() gave {len(told)} answers for {len(rows)} rows, or one that is no "
            "mapping; return a dict for each row"
        )
    return [_numbered(int(row), one) for row, one in zip(rows, told)]


def _numbered(row: int, told: Mapping[str, Any]) -> dict[str, Any]:
    number = told.get("row")
    if isinstance(number, Integral) and not isinstance(number, bool):
        return with_notes({"row": int(number)}, {k: v for k, v in told.items() if k != "row"})
    return with_notes({"row": row}, {k: v for k, v in told.items() if k != "row" or v is not None})


def truth(name: str, values: Any) -> np.ndarray:
    """bool [N] of truth values or of zeros and ones; InputError for anything else."""
    found = [plain_value(value) for value in placed(name, values)]
    odd = [value for value in found if not isinstance(value, Real) or value not in (0, 1)]
    if odd:
        raise InputError(
            f"task: '{name}' holds {odd[0]!r:.60}; give true or false for each training row"
        )
    return np.array(found, dtype=bool)
