"""How many rows a worker computes at once: a batch of a setting's size, or less where memory ran
out.

A batch that does not fit is halved, down to a single row, and this process remembers it: its next
batches by the same setting start from there. What was lowered is in the commit record of every
unit that was computed so (`Session.commit`), for `status` and the report.

Cut otherwise, the same rows go through matrix products of other sizes, so that a result is the
same but for rounding: scores within 1e-5 of the largest in float32, and bit for bit where a row's
numbers do not go through such products (tests/test_microbatch.py).
"""

import errno
import gc
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch

WORDS = re.compile(
    r"out of memory|(can't|cannot) allocate memory|not enough memory|bad_alloc|ALLOC_FAILED", re.I
)
Found = TypeVar("Found")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Of the host or of a device, whoever says it; or an error that has such a one as its cause."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and WORDS.search(str(error)):
            return True
        error = error.__cause__
    return False


class Microbatches:
    """What one process has learned of its memory."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Before the work of another run."""
        self._halvings: dict[str, int] = {}  # by setting
        self._taken: dict[str, int] = {}  # the most rows at once since `tried` began
        self._least = 0
        self.begin()

    def begin(self, halvings: int = 0) -> None:
        """Before a unit that was tried on `halvings` workers which were killed for memory."""
        self._least = max(self._least, halvings)
        self._taken.clear()
        self.lowered: dict[str, tuple[int, int]] = {}  # in this unit: rows asked for, and taken
        self.alone = ""  # the setting by which not even one row fits

    @property
    def less_may_fit(self) -> bool:
        """Whether more than one row was taken at once since `begin`."""
        return not self.alone and any(rows > 1 for rows in self._taken.values())

    def rows(self, setting: str, count: int) -> int:
        """Of a batch of `count` rows, how many at once."""
        halvings = max(self._halvings.get(setting, 0), self._least)
        rows = max(1, -(-count // 2**halvings))
        self._taken[setting] = max(self._taken.get(setting, 0), rows)
        if rows < count >= self.lowered.get(setting, (0, 0))[0]:
            self.lowered[setting] = count, rows
        return rows

    def tried(self, setting: str, compute: Callable[[], Found], rows: int = 0) -> tuple[bool, Any]:
        """(True, what `compute` returns), or False where memory ran out and less may fit.

        rows  how many it takes at once; 0: as it asks for
        """
        self._taken[setting] = rows
        try:
            return True, compute()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._taken[setting] <= 1:
                self.alone = setting
                raise
        # Outside of the clause: until here the error's frames hold what did not fit.
        self._halvings[setting] = 1 + max(self._halvings.get(setting, 0), self._least)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return False, None


MICROBATCHES = Microbatches()  # of this process


def each_part(
    rows: Any, compute: Callable[[Any], Found], setting: str, most: int | None = None
) -> Iterator[tuple[Any, Found]]:
    """(part, compute(part)) of consecutive parts of a sequence: of `most` each, or one of all, as
    long as memory suffices.

    setting  that the size of a part goes by
    """
    for start in range(0, len(rows), most or max(len(rows), 1)):
        batch, done = rows[start : None if most is None else start + most], 0
        while done < len(batch):
            part = batch[done : done + MICROBATCHES.rows(setting, len(batch))]
            is_done, found = MICROBATCHES.tried(setting, partial(compute, part), len(part))
            if is_done:
                yield part, found
                done += len(part)


def from_the_start(compute: Callable[[], Found], setting: str) -> Found:
    """compute() of what is summed over batches, begun again with half where memory ran out.

    It asks `rows_at_once(setting, count)` of each batch of `count` rows how many to take.
    """
    while True:
        is_done, found = MICROBATCHES.tried(setting, compute)
        if is_done:
            return found


def rows_at_once(setting: str, count: int) -> int:
    return MICROBATCHES.rows(setting, count)
