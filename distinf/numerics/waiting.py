"""A line on stderr for whoever waits for long work: how far it is, and how long it may take."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from distinf.numerics.batches import rows

TERMINAL_S, PLAIN_S = 3.0, 30.0  # before the first line; elsewhere a line each so often


def told(parts: Sequence[Any], total: int, progress: bool | None) -> Iterator[Any]:
    """The parts of a batch of `total` rows, one by one.

    progress: True from 3 s on, False never, None in a terminal from 3 s on and elsewhere from 30 s.
    """
    live = sys.stderr is not None and sys.stderr.isatty()
    every = TERMINAL_S if live or progress else PLAIN_S
    began = last = time.monotonic()
    done, shown = 0, False
    for part in parts:
        yield part
        done += rows(part)
        now = time.monotonic()
        if progress is False or sys.stderr is None or done >= total or now - last < every:
            continue
        left = (total - done) * (now - began) / done
        line = f"per-sample gradients: {done} of {total} rows, about {left:.0f} s left"
        print(f"\r{line:<70}" if live else line, end="" if live else "\n", file=sys.stderr,
              flush=True)  # fmt: skip
        last, shown = (now - every + 0.5 if live else now), live
    if shown:
        print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)
