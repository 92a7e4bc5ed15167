"""Classes: what labels are called, which there are, and the number that each has in the model.

A label is a text, a number or a truth value. Its class is called as it stands, spaces around it
aside; a whole number by its digits (1.0 is "1"), a truth value true or false.
"""

import math
import numbers
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distinf.errors import InputError

PAIR = ("0", "1")  # of what has no file of its own to ask
WHOLE = re.compile(r"([+-]?\d+)\.0+", re.ASCII)
FEW = 10  # so many classes are never too many
ROWS_EACH = 4  # of more there must be so many rows on average, else they are ids or texts
MEASURED = 20  # more different numbers with a fraction are measurements
SHOWN = 5


def class_name(label: Any) -> str | None:
    """What a label's class is called; None for a label that is missing. TypeError for a list."""
    if label is None or (isinstance(label, float | np.floating) and math.isnan(label)):
        return None
    if isinstance(label, bool | np.bool_):
        return str(bool(label)).lower()
    if not isinstance(label, str) and not isinstance(label, numbers.Number):
        raise TypeError(type(label).__name__)
    text = str(label).strip()
    whole = WHOLE.fullmatch(text)
    text = whole[1] if whole else text
    return None if not text or text.lower() == "nan" else text


def class_names(labels: Iterable[Any], where: str) -> list[str]:
    """Of each row; InputError, with row numbers, for labels that are missing or are no label."""
    found: list[str] = []
    missing: list[int] = []
    for row, label in enumerate(labels):
        try:
            name = class_name(label)
        except (TypeError, ValueError) as error:  # ValueError: an integer of thousands of digits
            kind = str(error) if isinstance(error, TypeError) else "a number too long to read"
            raise InputError(
                f"{where}: the label in row {row} is {kind}; give each row one label: a text, a "
                "number or a truth value"
            ) from None
        missing += [row] if name is None else []
        found.append(name or "")
    if missing:
        raise InputError(
            f"{where}: {len(missing)} rows have no label, row {missing[0]} first; fill them in or "
            "leave those rows out"
        )
    return found


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once: by value where all are numbers, else by their letters (code points)."""
    once = sorted(set(names))
    try:
        return tuple(sorted(once, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(once)


def classes_among(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The classes of these rows, in order; InputError where they can hardly be classes."""
    found = ordered(names)
    _refuse_measurements(found, len(names), where)
    _refuse_alike(names, where)
    return found


TRUTH = {"true", "false"}


def class_numbers(names: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """int64 [rows]: each name's place among `classes`; InputError for one that is not there."""
    places = {name: number for number, name in enumerate(classes)}
    for row, name in enumerate(names):
        if name not in places:
            quoted = " (in YAML, quote yes, no, true and false)" if set(classes) & TRUTH else ""
            raise InputError(
                f"{where}: label {shown(name)} in row {row} is none of the classes "
                f"{', '.join(map(shown, classes[:SHOWN]))}{_more(classes)}; add it to "
                f"data.classes, recode it or leave the row out{quoted}"
            )
    return np.array([places[name] for name in names], dtype=np.int64)


def shown(name: str) -> str:
    """A class in a message: in quotes, on one line, not endless."""
    return repr(name if len(name) <= 40 else f"{name[:39]}…")


def _refuse_measurements(classes: Sequence[str], rows: int, where: str) -> None:
    fractions = len(classes) > MEASURED and any(not _is_whole(name) for name in classes)
    measured = fractions and all(_is_number(name) for name in classes)
    if measured or len(classes) > max(FEW, rows / ROWS_EACH):
        raise InputError(
            f"{where}: {len(classes)} different labels in {rows} rows, such as "
            f"{shown(classes[len(classes) // 2])}, are not classes but texts, ids or measurements; "
            "name the column of classes by data.label, or list the classes in data.classes"
        )


def _refuse_alike(names: Sequence[str], where: str) -> None:
    """Labels that differ by what is easily mistyped are most likely the same class."""
    counts = Counter(names)
    spelled: dict[str, str] = {}
    for name in counts:
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if plain in spelled:
            pair = [f"{shown(n)} ({counts[n]} rows)" for n in (spelled[plain], name)]
            raise InputError(
                f"{where}: {' and '.join(pair)} differ only in case or spaces; write them alike, "
                "or list both in data.classes if they are two classes"
            )
        spelled[plain] = name


def _is_number(name: str) -> bool:
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False


def _is_whole(name: str) -> bool:
    return name.lstrip("+-").isdecimal()


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
