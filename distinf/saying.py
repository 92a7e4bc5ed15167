"""What a command says until its stages have progress of their own, and that it is still at it."""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from distinf.printable import show

AGAIN_S = 10.0


class Voice:
    """Says what is being done, and every ten seconds that it still is, until it says otherwise.

    Plain lines on standard error. `rest()` ends the repeating for good: what follows has a
    progress line of its own.
    """

    def __init__(self) -> None:
        self._out = own_stderr()
        self._over = threading.Event()
        self._rests = False

    def say(self, line: str, again: bool = True) -> None:
        self._over.set()
        show(line, self._out)
        if again and not self._rests:
            self._over = threading.Event()
            thread = threading.Thread(target=self._repeat, args=(line, self._over), daemon=True)
            thread.start()

    def rest(self) -> None:
        self._rests = True
        self._over.set()

    def _repeat(self, line: str, over: threading.Event) -> None:
        began = time.monotonic()
        while not over.wait(AGAIN_S):
            seconds = time.monotonic() - began
            show(f"     {line}: after {seconds:.0f} s", self._out)


@contextlib.contextmanager
def alongside(show: Callable[[threading.Event], None]) -> Iterator[None]:
    """`show` in a thread of its own; its event is set when the block ends, which waits for it."""
    over = threading.Event()
    thread = threading.Thread(target=show, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def own_stderr() -> TextIO:
    """Standard error, also while the start of Ray holds back what is written to it, and once
    nobody reads it any more."""
    try:
        copy = os.dup(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # it is no file
        return sys.stderr
    raw, kind = os.fdopen(copy, "wb"), sys.stderr.encoding
    return _Unheard(raw, encoding=kind, errors="replace", line_buffering=True)


class _Unheard(io.TextIOWrapper):
    """What cannot be written is dropped: a terminal that is gone, a closed pipe, a full disk."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()
