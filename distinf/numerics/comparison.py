"""Methods compared over trials that they share: pairwise wins, Pareto fronts, paired tests.

As Vitel and Chhabra compare what filtering by each method leads to. A trial is one task and seed;
what a method lacks is nan. Shape legend: C methods, T trials.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from distinf.errors import InputError
from distinf.numerics.means import finite_mean
from distinf.numerics.metrics import spearman, spearman_matrix


class Correlated(NamedTuple):
    """Spearman's rho over `points` pairs and its two-sided p; nan with too few or a constant."""

    points: int
    rho: float
    p: float


class Quartiles(NamedTuple):
    trials: int
    mean: float
    q1: float
    median: float
    q3: float


def win_matrix(values_CT: np.ndarray) -> np.ndarray:
    """[C, C]: the share of shared trials in which the row is strictly higher than the column.

    Zero on the diagonal; nan where two methods share no trial.
    """
    values_CT = np.asarray(values_CT, dtype=np.float64)
    if values_CT.ndim != 2:
        raise InputError(f"values must be [methods, trials], not {values_CT.shape}")
    known_CT = np.isfinite(values_CT)
    shared_CC = known_CT.astype(np.int64) @ known_CT.T.astype(np.int64)
    wins_CC = np.array([(row > values_CT).sum(1) for row in values_CT], dtype=np.float64)
    wins_CC = wins_CC.reshape(shared_CC.shape)  # also where there is no method
    won_CC = np.where(shared_CC > 0, wins_CC / np.maximum(shared_CC, 1), math.nan)
    np.fill_diagonal(won_CC, 0.0)
    return won_CC


def win_rates(won_CC: np.ndarray) -> np.ndarray:
    """[C]: each row's mean, its own zero included, as in the tables of Vitel and Chhabra."""
    return np.nanmean(won_CC, axis=1) if len(won_CC) else np.zeros(0)


def pareto_ranks(won_CC: np.ndarray, threshold: float) -> np.ndarray:
    """[C] from 1: the front that each row is peeled with, entries up to `threshold` set to 0.

    A row beats another if it is nowhere lower and somewhere higher; a front is what none beats.
    """
    kept_CC = np.where(np.nan_to_num(won_CC) > threshold, np.nan_to_num(won_CC), 0.0)
    ranks_C = np.zeros(len(kept_CC), dtype=np.int64)
    left, front = np.arange(len(kept_CC)), 0
    while left.size:
        front += 1
        rows = kept_CC[left]
        above = (rows[:, None] >= rows[None]).all(2) & (rows[:, None] > rows[None]).any(2)
        first = ~above.any(0)
        ranks_C[left[first]] = front
        left = left[~first]
    return ranks_C


def wilcoxon(first_T: np.ndarray, second_T: np.ndarray) -> float:
    """Two-sided p of the signed-rank test over trials that both have; nan if none differ."""
    first, second = _paired(first_T, second_T)
    if not np.any(first - second):
        return math.nan
    from scipy import stats  # here, since only a study of several trials needs it

    return float(stats.wilcoxon(first - second).pvalue)


def relative_changes(base_T: np.ndarray, other_T: np.ndarray) -> np.ndarray:
    """[T] in % of `base`; nan where that is 0, or where either is missing."""
    base, other = (np.asarray(v, dtype=np.float64).ravel() for v in (base_T, other_T))
    return 100 * (other - base) / np.where(base == 0, math.nan, base)


def correlated(first_T: np.ndarray, second_T: np.ndarray) -> Correlated:
    """Spearman's correlation over trials that both have; p from Student's t, as usual."""
    first, second = _paired(first_T, second_T)
    if first.size < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Correlated(first.size, math.nan, math.nan)
    rho = spearman(torch.from_numpy(first), torch.from_numpy(second))
    from scipy import stats

    spare = 1 - rho * rho
    t = abs(rho) * math.sqrt((first.size - 2) / spare) if spare > 0 else math.inf
    return Correlated(first.size, rho, float(2 * stats.t.sf(t, first.size - 2)))


def quartiles(values_T: np.ndarray) -> Quartiles:
    """Mean, quartiles and median of the trials that there are."""
    known = np.asarray(values_T, dtype=np.float64).ravel()
    known = known[np.isfinite(known)]
    if not known.size:
        return Quartiles(0, math.nan, math.nan, math.nan, math.nan)
    q1, median, q3 = (float(q) for q in np.quantile(known, (0.25, 0.5, 0.75)))
    return Quartiles(known.size, float(known.mean()), q1, median, q3)


def _paired(first_T: np.ndarray, second_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.asarray(v, dtype=np.float64).ravel() for v in (first_T, second_T))
    if first.shape != second.shape:
        raise InputError(f"paired trials differ in number: {first.size} and {second.size}")
    both = np.isfinite(first) & np.isfinite(second)
    return first[both], second[both]


def mean_spearman(groups: Sequence[np.ndarray]) -> np.ndarray:
    """[M, M]: Spearman's correlations of the rows of each [M, N], by their finite columns, mean
    over the groups that have a number; nan where none has, as of fewer than two columns."""
    every_GMM = np.full((len(groups), *[len(groups[0])] * 2), np.nan)
    for group, values_MN in enumerate(groups):
        finite_MN = values_MN[:, np.isfinite(values_MN).all(0)]
        if finite_MN.shape[1] > 1:
            every_GMM[group] = spearman_matrix(torch.from_numpy(finite_MN)).numpy()
    return np.apply_along_axis(finite_mean, 0, every_GMM)
