"""Two-sided random projection of matrices: P(G) = left G right, of which dot products survive.

The entries of left [p, O] and right [I, p] are independent, +1/sqrt(p) or -1/sqrt(p), so that
E[left^T left] and E[right right^T] are identities and E<P(A), P(B)> = <A, B>. A sum of outer
products is projected by its factors, without the matrix itself.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod, sqrt
from typing import Literal

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.randomness import signs


@dataclass(frozen=True)
class TwoSided:
    """Projections to [rank, rank], one per matrix name, all from `seed`."""

    seed: int
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"projection rank {self.rank} must be at least 1")

    def shrinks(self, shape: tuple[int, ...], least: int = 0) -> bool:
        """Whether a weight is projected: a matrix of more than max(least, rank^2) entries."""
        return len(shape) == 2 and prod(shape) > max(least, self.rank**2)

    def factors(
        self,
        name: str,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """(left [p, O], right [I, p]) for the matrix [O, I] called `name`; do not change them.

        Row o of left^T and row i of right depend on (seed, name, rank, o or i) alone, not on the
        shape, the device or who asks.
        """
        place = (torch.device(device), dtype)
        left = _factor(self.seed, self.rank, name, "left", shape[0], *place)
        return left.T, _factor(self.seed, self.rank, name, "right", shape[1], *place)


@lru_cache(maxsize=1024)  # the same for every batch
def _factor(
    seed: int,
    rank: int,
    name: str,
    side: Literal["left", "right"],
    size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """[size, rank], rows from a counter (Philox): a smaller size has the first of these rows."""
    drawn = signs(seed, f"two-sided {side} of {name}", size * rank) / sqrt(rank)
    return drawn.view(size, rank).to(dtype).to(device)
