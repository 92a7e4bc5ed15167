"""Two-level bootstrap: independent draws are resampled first, then each one's trials.

A draw is a target, or all targets that were measured under the same conditions.
Shapes: R resamples, T draws, S trials (padded to the draw with the most).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
CHUNK = 500
CACHED = 4_096  # estimates: a page tells the same ones in tables, pictures and words


@dataclass(frozen=True)
class Estimate:
    """A mean over trials; `low` and `high` are NaN where fewer than two trials give no interval."""

    mean: float
    sd: float
    low: float
    high: float
    trials: int
    failed: int  # non-finite trials, left out of the mean
    targets: int  # independent draws


Trials = Mapping[tuple[int, Any], float]  # (draw, trial), a trial being (target, seed), say


def estimate(trials: Trials, seed: int = 0) -> Estimate:
    """Mean, sample sd and percentile interval of (draw, trial) -> value.

    With one draw only its trials are resampled, so the interval says nothing of other draws.
    """
    return _estimate(tuple(sorted(trials.items())), seed)


@lru_cache(maxsize=CACHED)
def _estimate(trials: tuple[tuple[tuple[int, Any], float], ...], seed: int) -> Estimate:
    finite = {key: value for key, value in trials if math.isfinite(value)}
    failed = len(trials) - len(finite)
    groups = _by_draw(finite.items())
    values = np.array(list(finite.values()))
    if not finite:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0, failed, 0)
    if values.size < 2:
        return Estimate(float(values[0]), math.nan, math.nan, math.nan, 1, failed, 1)
    means_R = bootstrap_means(groups, seed)
    low, high = np.quantile(means_R, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    return Estimate(mean, sd, float(low), float(high), values.size, failed, len(groups))


def bootstrap_means(groups: list[np.ndarray], seed: int) -> np.ndarray:
    """[R] means over resampled draws and, within each, resampled trials."""
    rng = np.random.default_rng(seed)
    counts_T = np.array([g.size for g in groups])
    padded_TS = np.zeros((len(groups), counts_T.max()))
    for row, group in zip(padded_TS, groups, strict=True):
        row[: group.size] = group
    columns_S = np.arange(padded_TS.shape[1])
    means = []
    for start in range(0, RESAMPLES, CHUNK):
        size = min(CHUNK, RESAMPLES - start)
        picked_RT = rng.integers(len(groups), size=(size, len(groups)))
        counts_RT = counts_T[picked_RT]
        uniform_RTS = rng.random((size, len(groups), columns_S.size))
        seeds_RTS = (uniform_RTS * counts_RT[..., None]).astype(np.int64)
        drawn_RTS = padded_TS[picked_RT[..., None], seeds_RTS]
        drawn_RTS *= columns_S < counts_RT[..., None]
        means.append(drawn_RTS.sum((1, 2)) / counts_RT.sum(1))
    return np.concatenate(means)


def differences(ours: Trials, control: Trials) -> dict[tuple[int, Any], float]:
    """ours - control for the trials that both have with finite values."""
    both = (key for key in sorted(ours) if key in control)
    paired = {key: ours[key] - control[key] for key in both}
    return {key: value for key, value in paired.items() if math.isfinite(value)}


def best_elsewhere(methods: Mapping[str, Trials]) -> dict[tuple[int, Any], str]:
    """(draw, trial) -> the method whose mean over the trials of all other draws is highest.

    No trial chooses what it is held against (cross-fitting); of one draw, its other trials choose.
    Over the trials that all methods have with finite values; of equal means the first method.
    """
    every = [*methods.values()]
    shared = [k for k in sorted(every[0]) if all(math.isfinite(m.get(k, math.nan)) for m in every)]
    several = len({draw for draw, _ in shared}) > 1
    own = [key[0] if several else key for key in shared]
    values_MN = np.array([[m[key] for key in shared] for m in every])
    chosen = {}
    for one in dict.fromkeys(own):
        others_N = np.array([other != one for other in own])
        place = int(values_MN[:, others_N].mean(1).argmax()) if others_N.any() else 0
        chosen[one] = [*methods][place]
    return {key: chosen[one] for key, one in zip(shared, own, strict=True)}


def _by_draw(items: Iterable[tuple[tuple[int, Any], float]]) -> list[np.ndarray]:
    groups: dict[int, list[float]] = {}
    for (draw, _), value in items:
        groups.setdefault(draw, []).append(value)
    return [np.array(g) for g in groups.values()]
