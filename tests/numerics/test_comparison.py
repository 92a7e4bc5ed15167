"""Pairwise wins, fronts, paired tests and chance against loops, scipy and cases by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distinf.errors import InputError
from distinf.numerics import comparison, metrics

accuracies = st.tuples(st.integers(2, 6), st.integers(1, 7), st.integers(0, 999), st.booleans())


def drawn(case) -> np.ndarray:
    """[C, T] accuracies on a coarse grid, so that there are ties; some missing if asked."""
    configurations, trials, seed, gaps = case
    rng = np.random.default_rng(seed)
    found_CT = rng.integers(70, 76, (configurations, trials)).astype(float)
    if gaps:
        found_CT[rng.random(found_CT.shape) < 0.2] = math.nan
    return found_CT


def beats(first, second) -> bool:
    """Pareto: nowhere lower and somewhere higher."""
    return all(a >= b for a, b in zip(first, second)) and any(a > b for a, b in zip(first, second))


@given(accuracies, st.sampled_from([0.0, 0.5, 0.75]))
@settings(max_examples=120, deadline=None)
def test_wins_rates_and_fronts_equal_loops(case, threshold):
    found_CT = drawn(case)
    won_CC = comparison.win_matrix(found_CT)
    for i, ours in enumerate(found_CT):
        for j, other in enumerate(found_CT):
            both = [(a, b) for a, b in zip(ours, other) if not math.isnan(a + b)]
            if i == j:
                assert won_CC[i, j] == 0
            elif not both:
                assert math.isnan(won_CC[i, j])
            else:
                assert won_CC[i, j] == sum(a > b for a, b in both) / len(both)
    known = [[w for w in row if not math.isnan(w)] for row in won_CC]
    rates = [sum(row) / len(row) for row in known]
    assert comparison.win_rates(won_CC) == pytest.approx(rates)
    cut = [[w if w > threshold else 0.0 for w in row] for row in won_CC]
    left, ranks, front = set(range(len(cut))), {}, 0
    while left:
        front += 1
        peeled = {i for i in left if not any(beats(cut[j], cut[i]) for j in left)}
        ranks |= dict.fromkeys(peeled, front)
        left -= peeled
    assert comparison.pareto_ranks(won_CC, threshold).tolist() == [
        ranks[i] for i in range(len(cut))
    ]


def test_a_ranking_worked_out_by_hand():
    """a beats both always; b beats c in 2 of 4, which a threshold of .5 does not count."""
    won_CC = comparison.win_matrix(np.array([[9.0, 9, 9, 9], [5, 6, 5, 5], [5, 5, 6, 5]]))
    assert won_CC[1:, 1:].tolist() == [[0, 0.25], [0.25, 0]]
    assert comparison.pareto_ranks(won_CC, 0.5).tolist() == [1, 2, 2]
    assert comparison.pareto_ranks(won_CC, 0.2).tolist() == [1, 2, 2]  # each beats the other
    # the zero of the diagonal counts
    assert comparison.win_rates(won_CC) == pytest.approx([2 / 3, 0.25 / 3, 0.25 / 3])


def test_what_is_no_matrix_is_refused_and_no_method_has_no_wins():
    with pytest.raises(InputError, match=r"\[methods, trials\]"):
        comparison.win_matrix(np.ones(3))
    won_CC = comparison.win_matrix(np.ones((0, 4)))
    assert (comparison.win_rates(won_CC).size, comparison.pareto_ranks(won_CC, 0.5).size) == (0, 0)


def test_wilcoxon_is_scipys_and_exact_for_ten_seeds():
    rng = np.random.default_rng(1)
    first, second = rng.normal(80, 2, 10), rng.normal(82, 2, 10)
    expected = stats.wilcoxon(first, second, method="exact").pvalue
    assert comparison.wilcoxon(first, second) == pytest.approx(expected)
    assert comparison.wilcoxon(second - 9, second) == pytest.approx(2 / 2**10)
    holes = np.append(first, [math.nan, 80]), np.append(second, [80, math.nan])
    assert comparison.wilcoxon(*holes) == pytest.approx(expected)
    assert math.isnan(comparison.wilcoxon(first, first))
    with pytest.raises(InputError, match="differ in number"):
        comparison.wilcoxon(first, second[1:])


def test_relative_changes_are_of_the_base_and_unknown_without_one():
    base = np.array([50.0, 80.0, 0.0, math.nan])
    found = comparison.relative_changes(base, np.array([51.0, 78.0, 1.0, 1.0]))
    assert found[:2] == pytest.approx([2.0, -2.5])
    assert np.isnan(found[2:]).all()


@given(st.integers(3, 40), st.integers(0, 99), st.floats(-1, 1))
@settings(max_examples=60, deadline=None)
def test_correlated_is_scipys_spearman(points, seed, mix):
    rng = np.random.default_rng(seed)
    proxy = rng.integers(0, 9, points).astype(float)
    accuracy = np.round(mix * proxy + rng.normal(0, 2, points), 1)
    found = comparison.correlated(
        np.append(proxy, math.inf), np.append(accuracy, 1.0)  # an infinite C is left out
    )  # fmt: skip
    assert found.points == points
    if np.ptp(proxy) and np.ptp(accuracy):
        rho, p = stats.spearmanr(proxy, accuracy)
        assert found.rho == pytest.approx(rho, abs=1e-12)
        assert found.p == pytest.approx(p, rel=1e-6, abs=1e-7)
    else:
        assert math.isnan(found.rho)


def test_quartiles_of_what_there_is():
    found = comparison.quartiles(np.array([4.0, 1, 2, math.nan, 3]))
    assert (found.trials, found.mean, found.q1, found.median, found.q3) == (4, 2.5, 1.75, 2.5, 3.25)
    assert comparison.quartiles(np.array([math.nan])).trials == 0


def test_chance_is_where_random_rankings_fall():
    rng = np.random.default_rng(0)
    drawn = rng.hypergeometric(900, 3_600, 1_350, (4_000, 6)).mean(1) / 900
    found = metrics.ndr_by_chance([(4_500, 900)] * 6, 0.3)
    assert found == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.0015)
    areas = [
        metrics.ndr_auc(torch.from_numpy(rng.permutation(300)), torch.arange(300) < 60)
        for _ in range(400)
    ]
    assert metrics.auc_by_chance(300, 60) == pytest.approx(np.mean(areas), abs=0.005)


def test_mean_spearman_is_scipys_over_finite_columns_and_the_groups_that_have_a_number():
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(2, 3, 40))
    first[1, 7] = math.nan  # a column that is left out
    second[2] = 1.0  # a constant has no correlation
    found = comparison.mean_spearman([first, second])
    kept = np.delete(first, 7, axis=1)
    one, two = (stats.spearmanr(values, axis=1).statistic for values in (kept, second[:2]))
    assert found[0, 1] == pytest.approx((one[0, 1] + two) / 2)
    assert found[0, 2] == pytest.approx(one[0, 2])
    assert np.isnan(comparison.mean_spearman([second])[0, 2])


def test_fewer_than_two_finite_columns_have_no_correlation():
    first = np.array([[1.0, np.nan], [2.0, 3.0]])
    assert np.isnan(comparison.mean_spearman([first])).all()
    second = np.array([[1.0, 2.0, 4.0], [1.0, 3.0, 5.0]])
    np.testing.assert_allclose(comparison.mean_spearman([first, second]), 1.0)


def test_chance_of_data_that_are_all_flipped_is_certain():
    """A single sample too; one of which none is flipped has no rate."""
    assert metrics.ndr_by_chance([(1, 1)], 0.3) == (0.3, 0.3)
    assert metrics.ndr_by_chance([(5, 5)], 0.3) == (0.3, 0.3)
    for counts in ([], [(10, 0)]):
        with pytest.raises(InputError, match="at least one flipped sample each"):
            metrics.ndr_by_chance(counts, 0.3)
