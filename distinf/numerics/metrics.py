"""Rank correlation.

Shape legend: N samples.
"""

import torch
from torch import Tensor

from distinf.errors import InputError


def spearman(first_N: Tensor, second_N: Tensor) -> float:
    """Spearman's rank correlation, ties at their mean rank; nan if either side is constant."""
    if first_N.shape != second_N.shape or first_N.ndim != 1 or len(first_N) < 2:
        raise InputError(
            f"spearman compares two vectors of the same length >= 2, not {tuple(first_N.shape)} "
            f"and {tuple(second_N.shape)}"
        )
    first, second = _mean_ranks(first_N), _mean_ranks(second_N)
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / (first.norm() * second.norm()))


def _mean_ranks(values_N: Tensor) -> Tensor:
    values_N = values_N.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(values_N).all()):
        raise InputError("spearman needs finite values; drop the samples without a score first")
    ordered_N, _ = values_N.sort()
    below = torch.searchsorted(ordered_N, values_N, right=False)
    through = torch.searchsorted(ordered_N, values_N, right=True)
    return (below + through).double() / 2
