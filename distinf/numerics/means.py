"""What trials and rows add up to: means that say what they leave out, gaps, shares.

NaN stands for what is not known; no function warns of it.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np


def finite_mean(values: np.ndarray) -> float:
    """Mean of the finite values; NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def mean_sd(values: Iterable[float | None]) -> tuple[float, float, int]:
    """Mean, sample sd and number of the finite values; NaN where there are too few."""
    finite = [float(v) for v in values if v is not None and math.isfinite(v)]
    mean = float(np.mean(finite)) if finite else math.nan
    sd = float(np.std(finite, ddof=1)) if len(finite) > 1 else math.nan
    return mean, sd, len(finite)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the finite values among the last `window`; NaN where there is none."""
    known = np.isfinite(values)
    sums, counts = np.cumsum(np.where(known, values, 0.0)), np.cumsum(known)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.divide(sums, counts, out=np.full(values.size, np.nan), where=counts > 0)  # type: ignore[no-any-return]


def binned_means(
    x: np.ndarray, values: Mapping[str, np.ndarray], bins: int
) -> tuple[list[float], list[int], dict[str, list[float]]]:
    """Centres of `bins` equal bins over x, those that are not empty; how many lie in each; and the
    mean of each of `values` there."""
    edges = np.linspace(x.min(), np.nextafter(x.max(), np.inf), bins + 1)
    place = np.clip(np.digitize(x, edges) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    used = counts > 0
    sums = {k: np.bincount(place, weights=v, minlength=bins) for k, v in values.items()}
    means = {k: (total[used] / counts[used]).tolist() for k, total in sums.items()}
    return ((edges[:-1] + edges[1:]) / 2)[used].tolist(), counts[used].tolist(), means


def gap_reduction(before: float, after: float, reference: float) -> float:
    """Percent of the gap that is gone (Tuononen et al., Eq. 10); NaN without a gap."""
    gap = before - reference
    return 100.0 * (before - after) / gap if gap > 0 else math.nan


def change_pct(after: float, before: float) -> float | None:
    """Percent change; None where there is nothing to compare with, or no number."""
    if not before > 0 or not np.isfinite(after):
        return None
    return 100.0 * (after / before - 1.0)


def concentration_pct(parts: np.ndarray) -> float:
    """Percent of the sum of absolute parts that the largest tenth of them holds; NaN of nothing."""
    sizes = np.sort(np.abs(parts[np.isfinite(parts)]))[::-1]
    total = float(sizes.sum())
    tenth = float(sizes[: math.ceil(sizes.size / 10)].sum())
    return 100 * tenth / total if total > 0 else math.nan


def highest(values: np.ndarray, count: int | None) -> frozenset[int]:
    """Places of the `count` highest values; those that are not finite come last."""
    known = np.where(np.isfinite(values), values, -np.inf)
    return frozenset(np.argsort(-known, kind="stable")[:count].tolist())
