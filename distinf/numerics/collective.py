"""What numerics need from other ranks, as a protocol, and the one-rank implementation.

Shape legend: S logical shards owned by a rank, X any vector length.
"""

from typing import Protocol

import torch
from torch import Tensor


class Collective(Protocol):
    """A gang of `size` ranks. Every rank calls the same methods in the same order.

    Work is cut into a fixed number of logical shards; a rank owns a contiguous range of them.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def owned(self, shards: int) -> range:
        """This rank's shards: `range(shards * rank // size, shards * (rank + 1) // size)`."""
        ...

    def ordered_sum(self, parts_SX: Tensor) -> Tensor:
        """Sum all ranks' parts in fp64 and in shard order: fp64 [X], the same at any size."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks in x's dtype; the order, hence the last bits, depends on the size."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate along dim 0 in rank order; ranks may give different numbers of rows."""
        ...

    def barrier(self) -> None:
        """Wait for every rank."""
        ...


class Alone:
    """The collective of one rank."""

    rank = 0
    size = 1

    def owned(self, shards: int) -> range:
        """All shards."""
        return range(shards)

    def ordered_sum(self, parts_SX: Tensor) -> Tensor:
        """fp64 sum over dim 0, one shard after the other."""
        return sum_in_order(parts_SX)

    def all_reduce(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def barrier(self) -> None:
        """Return at once."""


def sum_in_order(parts_SX: Tensor) -> Tensor:
    """fp64 [X]: rows added one after the other, so the bits depend on their order only."""
    total_X = torch.zeros(parts_SX.shape[1:], dtype=torch.float64, device=parts_SX.device)
    for part_X in parts_SX:
        total_X += part_X
    return total_X
