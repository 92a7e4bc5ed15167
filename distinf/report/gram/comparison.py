"""Which configurations filter better: the pairwise comparison of retrained models of
Vitel and Chhabra.

A trial is one task and seed; accuracies are nan where a configuration was not retrained.
Shape legend: C configurations, T trials.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from distinf.errors import InputError
from distinf.numerics import metrics

PARETO_METHODS = 0.75  # Vitel and Chhabra, Tables 4 to 6
PARETO_LAYERS = 0.5  # and Table 3
MARK_P, MARK_CHANGE_PCT = 0.1, 1.0  # Figure 3: what is drawn in full colour
NOT_SIGNIFICANT_P = 0.05  # Table 2: marked with a star above it


@dataclass(frozen=True)
class Placed:
    """One configuration's place: front 1 is beaten by no other; `sd` is over its opponents."""

    name: str
    rank: int
    win_rate: float
    sd: float


@dataclass(frozen=True)
class Change:
    """Paired accuracies of one way against another: mean relative change and Wilcoxon's p."""

    pairs: int
    change_pct: float
    p: float

    @property
    def marked(self) -> bool:
        """As Vitel and Chhabra mark it: p < 0.1 and a mean change of more than 1 %."""
        return self.p < MARK_P and abs(self.change_pct) > MARK_CHANGE_PCT


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation over `points`; nan with too few or with a constant side."""

    points: int
    rho: float
    p: float

    @property
    def significant(self) -> bool:
        return self.p <= NOT_SIGNIFICANT_P


@dataclass(frozen=True)
class Quartiles:
    trials: int
    mean: float
    q1: float
    median: float
    q3: float


def win_matrix(accuracy_CT: np.ndarray) -> np.ndarray:
    """[C, C]: share of trials in which row strictly beats column, of those that both have.

    The diagonal is 0, and nan stands where two configurations share no trial.
    """
    accuracy_CT = np.asarray(accuracy_CT, dtype=np.float64)
    if accuracy_CT.ndim != 2:
        raise InputError(f"accuracies must be [configurations, trials], not {accuracy_CT.shape}")
    known_CT = np.isfinite(accuracy_CT)
    shared_CC = known_CT.astype(np.int64) @ known_CT.T.astype(np.int64)
    wins_CC = np.array([(row > accuracy_CT).sum(1) for row in accuracy_CT], dtype=np.float64)
    wins_CC = wins_CC.reshape(shared_CC.shape)  # also where there is no configuration
    won_CC = np.where(shared_CC > 0, wins_CC / np.maximum(shared_CC, 1), math.nan)
    np.fill_diagonal(won_CC, 0.0)
    return won_CC


def win_rates(won_CC: np.ndarray) -> np.ndarray:
    """[C]: each row's mean, its own zero included, as in their tables."""
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


def ranking(names: Sequence[str], accuracy_CT: np.ndarray, threshold: float) -> list[Placed]:
    """Every configuration by front, then win rate, then name."""
    won_CC = win_matrix(accuracy_CT)
    if len(names) != len(won_CC):
        raise InputError(f"{len(names)} names for {len(won_CC)} configurations")
    rates_C, ranks_C = win_rates(won_CC), pareto_ranks(won_CC, threshold)
    placed = [
        Placed(name, int(ranks_C[c]), float(rates_C[c]), float(np.nanstd(won_CC[c])))
        for c, name in enumerate(names)
    ]
    return sorted(placed, key=lambda found: (found.rank, -found.win_rate, found.name))


def wilcoxon(first_T: np.ndarray, second_T: np.ndarray) -> float:
    """Two-sided p of the signed-rank test over trials that both have; nan if none differ."""
    differences = _paired(first_T, second_T)
    difference_T = differences[0] - differences[1]
    if not np.any(difference_T):
        return math.nan
    from scipy import stats  # here, since only a study of several trials needs it

    return float(stats.wilcoxon(difference_T).pvalue)


def relative_changes(base_T: np.ndarray, other_T: np.ndarray) -> np.ndarray:
    """[T] in % of `base`; nan where that is 0, or where either is missing."""
    base, other = (np.asarray(v, dtype=np.float64).ravel() for v in (base_T, other_T))
    return 100 * (other - base) / np.where(base == 0, math.nan, base)


def change(base_T: np.ndarray, other_T: np.ndarray) -> Change:
    """How `other` changes accuracy against `base`, in % of `base`, over trials that both have."""
    base, other = _paired(base_T, other_T)
    if not base.size:
        return Change(0, math.nan, math.nan)
    relative = relative_changes(base, other)
    mean = float(np.nanmean(relative)) if np.isfinite(relative).any() else math.nan
    return Change(base.size, mean, wilcoxon(other, base))


def agreement(proxy_T: np.ndarray, accuracy_T: np.ndarray) -> Agreement:
    """Spearman's correlation of a proxy with accuracy, pooled; p from Student's t, as usual."""
    proxy, accuracy = _paired(proxy_T, accuracy_T)
    if proxy.size < 3 or np.ptp(proxy) == 0 or np.ptp(accuracy) == 0:
        return Agreement(proxy.size, math.nan, math.nan)
    rho = metrics.spearman(torch.from_numpy(proxy), torch.from_numpy(accuracy))
    from scipy import stats

    spare = 1 - rho * rho
    t = abs(rho) * math.sqrt((proxy.size - 2) / spare) if spare > 0 else math.inf
    return Agreement(proxy.size, rho, float(2 * stats.t.sf(t, proxy.size - 2)))


def quartiles(accuracy_T: np.ndarray) -> Quartiles:
    """Mean, quartiles and median over the trials that there are (Vitel and Chhabra, Figure 2)."""
    known = np.asarray(accuracy_T, dtype=np.float64).ravel()
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
