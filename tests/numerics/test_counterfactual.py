"""Measures of scores against retraining: against scipy, closed forms and simulations."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from distinf.errors import InputError
from distinf.numerics.counterfactual import (
    ceiling,
    datamodeling,
    mean_over,
    slope,
    wrong_labels_auc,
)

RNG = np.random.default_rng(0)
Q, N, M = 5, 40, 30
SCORES = RNG.normal(size=(Q, N))
KEPT = RNG.random((M, N)) < 0.5


def losses(noise: float, seed: int = 1) -> np.ndarray:
    """What additive scores foretell, and noise of its own."""
    own = np.random.default_rng(seed).normal(size=(M, Q))
    return -(KEPT.astype(float) @ SCORES.T) + noise * own


def test_a_datamodeling_score_is_the_mean_of_scipys_rank_correlations():
    found = losses(4.0)
    expected = [spearmanr(KEPT @ SCORES[q], -found[:, q]).statistic for q in range(Q)]
    assert datamodeling(SCORES, KEPT, found).value == pytest.approx(np.mean(expected), abs=1e-12)


def test_scores_that_foretell_all_have_1_and_their_negative_minus_1():
    exact = losses(0.0)
    assert datamodeling(SCORES, KEPT, exact).value == pytest.approx(1.0)
    assert datamodeling(-SCORES, KEPT, exact).value == pytest.approx(-1.0)


def test_rows_without_a_score_foretell_nothing():
    holed = SCORES.copy()
    holed[:, 3] = np.nan
    without = np.where(np.isnan(holed), 0.0, holed)
    assert datamodeling(holed, KEPT, losses(1.0)) == datamodeling(without, KEPT, losses(1.0))


def test_a_query_whose_loss_never_changes_is_left_out():
    found = losses(4.0)
    found[:, 2] = 0.5
    others = [0, 1, 3, 4]
    expected = datamodeling(SCORES[others], KEPT, found[:, others])
    assert datamodeling(SCORES, KEPT, found).value == pytest.approx(expected.value, abs=1e-12)


@pytest.mark.slow
def test_the_interval_holds_the_value_of_many_subsets_in_about_95_of_100():
    """Coverage, with subsets drawn anew each time and the queries as they are."""
    rng = np.random.default_rng(3)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        kept = rng.random((count, N)) < 0.5
        return kept, -(kept.astype(float) @ SCORES.T) + 4.0 * rng.normal(size=(count, Q))

    truth = datamodeling(SCORES, *drawn(3_000)).value
    found = [datamodeling(SCORES, *drawn(M)) for _ in range(200)]
    inside = np.mean([f.low <= truth <= f.high for f in found])
    assert inside >= 0.93  # the queries' own spread widens it


def test_fewer_than_ten_subsets_are_refused():
    with pytest.raises(InputError, match="9 subsets give no interval"):
        datamodeling(SCORES, KEPT[:9], losses(1.0)[:9])


@pytest.mark.parametrize("count", [2, 4])
def test_the_ceiling_is_what_a_perfect_score_has(count):
    """The noiseless loss, as a score of subsets, against the mean of `count` noisy trainings."""
    many, noise = 4_000, 6.0
    rng = np.random.default_rng(5)
    kept = rng.random((many, N)) < 0.5
    clean = -(kept.astype(float) @ SCORES.T)
    trained = np.stack([clean + noise * rng.normal(size=clean.shape) for _ in range(count)])
    by_query = [spearmanr(clean[:, q], trained.mean(0)[:, q]).statistic for q in range(Q)]
    assert top(trained) == pytest.approx(np.mean(by_query), abs=0.02)


def top(losses_KMQ: np.ndarray) -> float:
    from distinf.numerics.counterfactual import _of_mean, rank_correlations

    pairs = [rank_correlations(a, b) for k, a in enumerate(losses_KMQ) for b in losses_KMQ[:k]]
    few = ceiling(losses_KMQ[:, :400])
    assert few.low <= few.value <= few.high
    whole = _of_mean(float(np.mean(pairs)), len(losses_KMQ))
    assert few.value == pytest.approx(whole, abs=0.1)
    return whole


def test_the_ceiling_is_1_where_the_seed_changes_nothing_and_unknown_of_one_training():
    assert ceiling(np.stack([losses(0.0)] * 2)).value == pytest.approx(1.0)
    assert math.isnan(ceiling(losses(0.0)[None]).value)


def test_trainings_that_disagree_have_a_ceiling_of_0():
    assert ceiling(np.stack([losses(0.0), -losses(0.0)])).value == 0.0


def test_a_slope_is_the_least_squares_factor():
    rows = np.arange(20)
    changes = 0.25 * SCORES[:, rows].T
    found = slope(SCORES, rows, changes)
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(found.high)
    noisy = slope(SCORES, rows, changes + RNG.normal(size=changes.shape))
    assert noisy.low < 0.25 < noisy.high


def test_a_mean_of_one_value_has_no_interval():
    assert mean_over(np.array([2.0])).value == 2.0
    assert math.isnan(mean_over(np.array([2.0])).low)
    assert mean_over(np.array([1.0, 3.0])).value == 2.0


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(8)
    scores, wrong = rng.integers(0, 6, size=50).astype(float), rng.random(50) < 0.3
    pairs = [(a < b) + 0.5 * (a == b) for a in scores[wrong] for b in scores[~wrong]]
    found = wrong_labels_auc(scores[None], wrong)
    assert found.value == pytest.approx(np.mean(pairs), abs=1e-12)
    assert found.low < found.value < found.high
    holed = np.append(scores, np.nan)
    assert wrong_labels_auc(holed[None], np.append(wrong, True)) == found
    parts = np.stack([0.25 * scores, np.full(50, np.nan), 0.75 * scores])  # a query without any
    assert wrong_labels_auc(parts, wrong) == found
    assert math.isnan(wrong_labels_auc(parts[1:2], wrong).value)
    assert math.isnan(wrong_labels_auc(scores[None], np.zeros(50, dtype=bool)).value)


def test_the_aucs_interval_holds_the_truth_in_about_95_of_100():
    rng, shift = np.random.default_rng(4), 1.0
    truth = 0.5 * (1 + math.erf(shift / 2))  # of two normal scores, this far apart
    inside = []
    for _ in range(300):
        wrong = np.arange(120) < 30
        found = wrong_labels_auc(rng.normal(size=(1, 120)) - shift * wrong, wrong)
        inside.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_the_interval_of_a_correlation_ends_where_correlations_do():
    found = datamodeling(SCORES[:3], KEPT[:10], losses(0.5)[:10, :3])
    assert 0.8 < found.value < 1.0
    assert found.high == 1.0
    low = datamodeling(-SCORES[:3], KEPT[:10], losses(0.5)[:10, :3])
    assert (low.low, low.high) == (-1.0, -found.low)


def test_a_query_or_row_that_is_not_finite_leaves_the_others_measures_as_they_are():
    found = losses(4.0)
    rows = np.arange(M)
    holed, bad = np.vstack([SCORES, SCORES[0]]), np.column_stack([found, np.full(M, np.inf)])
    assert datamodeling(holed, KEPT, bad).value == datamodeling(SCORES, KEPT, found).value
    assert slope(holed, rows, bad).value == pytest.approx(slope(SCORES, rows, found).value)
    none, endless = SCORES.copy(), SCORES.copy()
    none[:, 3], endless[:, 3] = np.nan, np.inf
    assert datamodeling(endless, KEPT, found) == datamodeling(none, KEPT, found)
    assert slope(endless, rows, found) == slope(none, rows, found)
