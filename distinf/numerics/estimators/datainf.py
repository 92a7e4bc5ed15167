"""DataInf: the mean of per-sample damped inverses in place of the inverse of the mean.

Linear in the number of training samples: with weights W [Q, N] and training gradients T [N, P], a
first pass adds up U = W T over shards and a second forms U T^T; no N x N matrix is needed.

Shape legend: Q queries, N training samples (of `count` in all), P stored entries of a block.
"""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.estimators.register import Estimator, Products


@dataclass(frozen=True)
class DataInfSettings:
    """damping: lambda itself, > 0; None takes the mean squared gradient entry over 10."""

    damping: float | None = None

    def __post_init__(self) -> None:
        if self.damping is not None and not (isfinite(self.damping) and self.damping > 0):
            raise ValueError(f"damping={self.damping} must be a finite number > 0, or null")


def default_damping(sqnorm_sum: float, count: int, entries: int) -> float:
    """lambda = sum_i |g_i|^2 / (10 n d); d = `entries` of the unprojected block."""
    if count < 1 or entries < 1:
        raise InputError(f"DataInf needs samples and entries, not {count} and {entries}")
    return sqnorm_sum / (10.0 * count * entries)


def weights(cross_QN: Tensor, train_sqnorm_N: Tensor, damping: float) -> Tensor:
    """W [Q, N] = g_q . g_i / (lambda + |g_i|^2)."""
    return cross_QN / (damping + train_sqnorm_N)


def scores(cross_QN: Tensor, correction_QN: Tensor, damping: float, count: int) -> Tensor:
    """[Q, N]: (Q T^T - (W T) T^T / n) / lambda, with correction_QN = (W T) T^T.

    Raises InputError if lambda is not positive (all gradients of the block are zero).
    """
    if not damping > 0:
        raise InputError(
            f"DataInf damping is {damping}: this block's gradients are all zero; leave the block "
            "out, or set a damping > 0"
        )
    return (cross_QN - correction_QN / count) / damping


def of_products(found: Products, settings: DataInfSettings) -> Tensor:
    """fp64 [Q, N] of a block."""
    sqnorm_N, damping = found.train_sqnorm_N, settings.damping
    if damping is None:
        if found.entries is None:
            raise InputError(
                f"{found.block}: DataInf's default damping needs the embedding's size; set the "
                "vocabulary of these SparseRows, or damping"
            )
        damping = default_damping(float(sqnorm_N.sum()), len(sqnorm_N), found.entries)
    if damping == 0.0:  # every training gradient is zero, so no sample moves any query
        return torch.zeros_like(found.cross_QN)
    correction_QN = found.through(weights(found.cross_QN, sqnorm_N, damping))
    return scores(found.cross_QN, correction_QN, damping, len(sqnorm_N))


ESTIMATOR = Estimator("datainf", DataInfSettings, of_products)
