"""Rank correlation and bootstrap intervals.

Shape legend: N samples, G groups (targets), S most seeds within a group, B resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.randomness import generator


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


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap percentile interval."""

    mean: float
    low: float
    high: float


def bootstrap_interval(
    groups: Sequence[Sequence[float]],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over groups of each group's mean over its seeds.

    A resample draws groups (targets) with replacement, then seeds within each drawn group; groups
    may differ in size. The same seed gives the same interval.
    """
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    if not values or any(len(v) == 0 or not np.isfinite(v).all() for v in values):
        raise InputError("bootstrap needs at least one group, each with finite values")
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"level={level} must lie in (0, 1), and resamples={resamples} be >= 1")
    sizes_G = np.array([len(v) for v in values])
    padded_GS = np.zeros((len(values), sizes_G.max()))
    for row_S, group in zip(padded_GS, values, strict=True):
        row_S[: len(group)] = group
    real_GS = np.arange(sizes_G.max()) < sizes_G[:, None]
    draw = generator(seed, "bootstrap")
    means_B = np.empty(resamples)
    for index in range(resamples):
        chosen_G = draw.integers(len(values), size=len(values))
        seeds_GS = (draw.random(padded_GS.shape) * sizes_G[chosen_G, None]).astype(np.int64)
        drawn_GS = padded_GS[chosen_G[:, None], seeds_GS] * real_GS[chosen_G]
        means_B[index] = np.mean(drawn_GS.sum(1) / sizes_G[chosen_G])
    low, high = np.quantile(means_B, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean([v.mean() for v in values])), float(low), float(high))
