"""What a name may be that a user gives and that becomes a file, an array or a column of a table.

Variations, losses, cells, groups, experiments, parameters, and columns of a task's arrays.
"""

import unicodedata
from collections.abc import Iterable
from typing import Any

from distinf.errors import InputError

CONFIG = "config.yaml"  # in a run's folder: its resolved configuration
MOST_BYTES = 180  # of 255 that file systems take: ours has a prefix, a suffix and a draft beside it


def refuse_names(what: str, names: Iterable[Any], cased: bool = False) -> None:
    """InputError for the first of `names` that cannot be a file's and an array's on any system.

    Taken is a text of at most 180 bytes in UTF-8, of printable letters without slashes, that
    begins and ends with no space and begins with neither a dot nor two underscores (hidden files;
    Zarr keeps those for itself). Two must differ in more than upper and lower case.

    what   whose they are, for the message: "variations"
    cased  two may differ in that alone, as parameters W and w do
    """
    seen: dict[str, str] = {}
    for name in names:
        wrong = _wrong(name)
        if wrong:
            raise InputError(
                f"{what}: the name {shown(name)} {wrong}; it becomes a file's or an array's name, "
                "so use letters, digits, '-', '_' and '.' inside"
            )
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen and not cased:
            raise InputError(
                f"{what}: {shown(seen[key])} and {shown(name)} are one name where upper and lower "
                "case are one; call one of them otherwise"
            )
        seen[key] = name


def _wrong(name: Any) -> str:
    """What keeps it from being a name; "" where nothing does."""
    if not isinstance(name, str):
        return f"is no text but a {type(name).__name__}"
    if not name.strip():
        return "is empty"
    if name != name.strip():
        return "begins or ends with a space"
    if "/" in name or "\\" in name:
        return "has a slash"
    if not name.isprintable():
        return "has a letter that cannot be printed"
    if name.startswith((".", "__")):
        return "begins with a dot or two underscores"
    if len(name.encode()) > MOST_BYTES:
        return f"is longer than {MOST_BYTES} bytes"
    return ""


def shown(name: Any, most: int = 60) -> str:
    """As Python writes it, escapes and all, not too long."""
    text = ascii(name) if isinstance(name, str) and not name.isprintable() else repr(name)
    return text if len(text) <= most else f"{text[:most]}…"
