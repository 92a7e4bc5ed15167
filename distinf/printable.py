"""Text that others wrote, as it may stand in ours: on a terminal, in a table, on a page.

A name, a note or a path may hold what moves the cursor, colours the screen or turns the direction
of what follows. Such letters are shown as Python writes them (\\x1b, \\u202e); all others, in
whatever script, stay.
"""

import contextlib
import re
from typing import TextIO

OBEYED = re.compile(
    "\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # controls, but for tabs and ends of lines
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f"  # of direction
    "\u2028\u2029\u200b\u2060-\u2065\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # unseen
    "\ud800-\udfff]"  # halves of a character
)


def printable(text: str) -> str:
    """With an escape for every letter that is obeyed instead of shown; lines stay lines."""
    return OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same, ends of lines among what is escaped."""
    return printable(text).replace("\r", "\\r").replace("\n", "\\n")


def shortened(text: str, most: int = 2_000) -> str:
    """The same, its middle left out where it is longer: both ends say what to do."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def show(line: str, file: TextIO | None = None) -> None:
    """One line of text, whatever names and paths are in it, if there is a terminal to read it."""
    with contextlib.suppress(OSError):
        print(one_line(line), file=file, flush=True)
