"""A gang of threads that speak the Collective protocol, for testing rank-independence.

torch.func.jvp is not thread-safe: give threaded code dense matrices as operators.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from distinf.collective import Collective

Result = TypeVar("Result")
TIMEOUT_S = 60


class ThreadCollective(Collective):
    """One rank of a thread gang; exchanges go through a shared board between two barriers."""

    def __init__(self, rank: int, board: list[Any], fence: threading.Barrier) -> None:
        self.rank = rank
        self.size = len(board)
        self._board = board
        self._fence = fence

    def all_reduce(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._exchange(x))

    def barrier(self) -> None:
        self._fence.wait()

    def _exchange(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._fence.wait()
        everyone = list(self._board)
        self._fence.wait()
        return everyone


def run_ranks(size: int, function: Callable[[ThreadCollective], Result]) -> list[Result]:
    """The function's result on each of `size` ranks; the first failure is raised."""
    board: list[Any] = [None] * size
    fence = threading.Barrier(size, timeout=TIMEOUT_S)

    def body(rank: int) -> Result:
        try:
            return function(ThreadCollective(rank, board, fence))
        except BaseException:
            fence.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(body, rank) for rank in range(size)]
    errors = [f.exception() for f in futures if f.exception() is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
