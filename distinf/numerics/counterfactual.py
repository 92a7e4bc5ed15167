"""What scores foretell of training without some rows, held against trainings without them.

Sign: a score above 0 means that training on the row lowers the query's loss.
Shape legend: Q queries, N training rows, M subsets, K trainings of each subset.
"""

import math
from collections.abc import Callable
from dataclasses import astuple, dataclass

import numpy as np

from distinf.errors import InputError

FEWEST = 10  # subsets: of fewer no interval means anything
NORMAL_95 = 1.96
LEAST_CEILING = 0.1  # below it the same subsets trained twice agree so little that nothing is seen


@dataclass(frozen=True)
class Measure:
    """A value and its 95 % interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


def datamodeling(scores_QN: np.ndarray, kept_MN: np.ndarray, losses_MQ: np.ndarray) -> Measure:
    """Linear datamodeling score (Park et al. 2023, TRAK, section 4.1): the mean over queries of
    Spearman's correlation between a subset's summed scores and minus the loss after training on it.

    kept_MN: bool. InputError for fewer than FEWEST subsets, of which there would be no interval.
    """
    if len(kept_MN) < FEWEST:
        raise InputError(f"{len(kept_MN)} subsets give no interval; take at least {FEWEST}")
    return agreement(kept_MN.astype(np.float64) @ finite_or_0(scores_QN).T, -losses_MQ)


def finite_or_0(scores_QN: np.ndarray) -> np.ndarray:
    """fp64: a row without a finite score foretells nothing."""
    scores_QN = np.asarray(scores_QN, dtype=np.float64)
    return np.where(np.isfinite(scores_QN), scores_QN, 0.0)


def agreement(foretold_MQ: np.ndarray, found_MQ: np.ndarray) -> Measure:
    """The mean over queries of Spearman's correlation over subsets; its interval ends at -1 and 1
    as correlations do."""
    found = _over_subsets(lambda m: rank_correlations(foretold_MQ[m], found_MQ[m]), found_MQ)
    return Measure(*(float(np.clip(value, -1.0, 1.0)) for value in astuple(found)))


def ceiling(losses_KMQ: np.ndarray) -> Measure:
    """The most that `datamodeling` of these trainings' mean loss can be: √r, where r is how far the
    mean of K trainings of each subset, which differ by their seed alone, would agree with the mean
    of K others: Spearman's correlation of two single ones, corrected by Spearman and Brown.

    K of 1 says nothing: NaN. Where the seed changes nothing it is 1.
    """
    count = len(losses_KMQ)
    if count < 2:
        return Measure(math.nan)
    pairs = [(a, b) for a in range(count) for b in range(a)]

    def of_pairs(m: np.ndarray) -> np.ndarray:
        each = [rank_correlations(losses_KMQ[a][m], losses_KMQ[b][m]) for a, b in pairs]
        return np.mean(each, axis=0)  # type: ignore[no-any-return]

    found = _over_subsets(of_pairs, losses_KMQ[0])
    return Measure(*(_of_mean(value, count) for value in (found.value, found.low, found.high)))


def _of_mean(r: float, count: int) -> float:
    """√ of the Spearman-Brown reliability of a mean of `count`, 0 where r is below it."""
    if math.isnan(r):
        return r
    r = min(max(r, 0.0), 1.0)
    return math.sqrt(count * r / (1 + (count - 1) * r))


def slope(scores_QN: np.ndarray, rows_M: np.ndarray, changes_MQ: np.ndarray) -> Measure:
    """What a score of 1 means, in loss: least squares of what leaving a row out did to the loss.

    changes_MQ: the query's loss after training without row rows_M[m], minus that with it. A query
    of which one is not finite is left out.
    """
    usable_Q = np.isfinite(changes_MQ).all(0)
    known_MQ, changes_MQ = finite_or_0(scores_QN[usable_Q][:, rows_M]).T, changes_MQ[:, usable_Q]

    def fit(m: np.ndarray) -> np.ndarray:
        total = float(np.square(known_MQ[m]).sum())
        return np.array([float((known_MQ[m] * changes_MQ[m]).sum()) / total if total else math.nan])

    return _over_subsets(fit, changes_MQ)


def wrong_labels_auc(scores_QN: np.ndarray, wrong_N: np.ndarray) -> Measure:
    """The chance that a row with a wrong label has a lower mean score than one with a right label
    (half for equal ones), with Hanley and McNeil's standard error (1982); NaN where all are of a
    kind.

    Queries without any finite score are left out, and then rows without a score of every query.
    """
    scored_Q = np.isfinite(scores_QN).any(1)
    scores_N = scores_QN[scored_Q].sum(0)
    known = np.isfinite(scores_N) & scored_Q.any()
    scores, wrong = scores_N[known], np.asarray(wrong_N, dtype=bool)[known]
    bad, good = int(wrong.sum()), int((~wrong).sum())
    if not bad or not good:
        return Measure(math.nan)
    from scipy.stats import rankdata  # here, as it takes a second of every worker's start

    above = rankdata(-scores)[wrong].sum() - bad * (bad + 1) / 2
    auc = float(above) / (bad * good)
    both_bad, both_good = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (bad - 1) * (both_bad - auc**2) + (good - 1) * (both_good - auc**2)
    half = NORMAL_95 * math.sqrt(max(0.0, variance) / (bad * good))
    return Measure(auc, max(0.0, auc - half), min(1.0, auc + half))


def mean_over(values_M: np.ndarray) -> Measure:
    """A mean, and the interval of its standard error where there are two or more."""
    mean = float(np.mean(values_M)) if len(values_M) else math.nan
    if len(values_M) < 2:
        return Measure(mean)
    half = NORMAL_95 * float(np.std(values_M, ddof=1)) / math.sqrt(len(values_M))
    return Measure(mean, mean - half, mean + half)


def rank_correlations(first_MQ: np.ndarray, second_MQ: np.ndarray) -> np.ndarray:
    """fp64 [Q]: Spearman's correlation of each column; NaN where one side is constant or NaN."""
    from scipy.stats import rankdata

    found = []
    for values_MQ in (first_MQ, second_MQ):
        ranks_MQ = rankdata(values_MQ, axis=0)
        ranks_MQ[:, ~np.isfinite(values_MQ).all(0)] = np.nan
        ranks_MQ = ranks_MQ - ranks_MQ.mean(0)
        norms_Q = np.sqrt(np.square(ranks_MQ).sum(0))
        found.append(np.divide(ranks_MQ, norms_Q, out=np.full_like(ranks_MQ, np.nan),
                               where=norms_Q > 0))  # fmt: skip
    return (found[0] * found[1]).sum(0)  # type: ignore[no-any-return]


def _over_subsets(
    statistic_Q: Callable[[np.ndarray], np.ndarray], values_MQ: np.ndarray
) -> Measure:
    """The mean of statistic_Q(subsets) over queries, with the variance that subsets and queries
    give it: a jackknife over subsets, and the queries' standard error."""
    every = np.arange(len(values_MQ))
    by_query = statistic_Q(every)
    by_query = by_query[np.isfinite(by_query)]
    if not len(by_query):
        return Measure(math.nan)
    without = np.array([np.nanmean(statistic_Q(np.delete(every, m))) for m in every])
    variance = (len(every) - 1) * float(np.var(without))
    if len(by_query) > 1:
        variance += float(np.var(by_query, ddof=1)) / len(by_query)
    mean, half = float(by_query.mean()), NORMAL_95 * math.sqrt(variance)
    return Measure(mean, mean - half, mean + half)
