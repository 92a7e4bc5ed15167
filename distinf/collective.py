"""What the ranks of a gang say to each other: a few verbs, here of a gang of one.

Work is cut into a fixed number of logical shards; a rank owns a contiguous range of them.
Shape legend: S logical shards owned by a rank, X any shape.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn


class Collective:
    """A gang of `size` ranks. Every rank calls the same methods in the same order. `share`: ids of
    the units that are this gang's, beside others; None: all.

    Of more than one rank it is a subclass with `all_reduce`, `all_gather`, `barrier` and `spread`
    of its own.
    """

    rank = 0
    size = 1
    share: Sequence[str] | None = None

    def owned(self, shards: int) -> range:
        """This rank's shards."""
        return range(shards * self.rank // self.size, shards * (self.rank + 1) // self.size)

    def ordered_sum(self, parts_SX: Tensor) -> Tensor:
        """fp64 [X]: all ranks' parts added in shard order, the same bits at any size."""
        gathered_SX = self.all_gather(parts_SX)
        total_X = torch.zeros(parts_SX.shape[1:], dtype=torch.float64, device=parts_SX.device)
        for part_X in gathered_SX:
            total_X += part_X
        return total_X

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over ranks in x's dtype; the order, hence the last bits, depends on the size."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """Concatenate along dim 0 in rank order; ranks may give different numbers of rows."""
        return x

    def barrier(self) -> None:
        """Wait for every rank."""

    def spread(
        self, whole: nn.Module, layers: Sequence[nn.Module], own: Collection[nn.Parameter],
        device: torch.device,
    ) -> None:  # fmt: skip
        """Keep this rank's part alone of the layers' parameters, on the device, but for `own`.

        A layer's are gathered while it runs, forwards and backwards, which every rank must do as
        often; none may be trained. `whole`: the module that runs the layers.
        """
