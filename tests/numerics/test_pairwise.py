"""Measures of a matrix of influences, by closed forms and least squares."""

import numpy as np
import pytest
from scipy.stats import norm, rankdata, spearmanr

from distinf.numerics.pairwise import (
    MEASURES,
    antisymmetric_share,
    centred,
    centred_antisymmetric_share,
    column_share,
    gini,
    interaction_share,
    jackknife,
    own_share,
    rank_correlation,
    row_share,
)

RANDOM = np.random.default_rng(0)
OFF = ~np.eye(40, dtype=bool)


def noise(size=40):
    return RANDOM.normal(size=(size, size))


def test_symmetry_of_matrices_that_have_it_or_its_opposite():
    matrix = noise()
    assert antisymmetric_share(matrix + matrix.T) == pytest.approx(0.0, abs=1e-30)
    assert antisymmetric_share(matrix - matrix.T) == pytest.approx(1.0)
    assert np.mean([antisymmetric_share(noise()) for _ in range(50)]) == pytest.approx(
        0.5, abs=0.01
    )
    assert np.isnan(antisymmetric_share(np.eye(5)))  # the diagonal has no say


def test_bands_and_a_constant_are_no_relation_of_pairs():
    """What only rows and columns explain is taken out; what pairs have is left."""
    pairs = noise()
    banded = pairs + pairs.T + 3.0 * RANDOM.normal(size=40)[:, None] + 7.0
    assert antisymmetric_share(banded) > 0.01
    assert centred_antisymmetric_share(banded) == pytest.approx(0.0, abs=1e-25)


def test_the_additive_part_is_that_of_least_squares():
    matrix, size = noise(12), 12
    places = [(i, j) for i in range(size) for j in range(size) if i != j]
    design = np.zeros((len(places), 2 * size + 1))
    for k, (i, j) in enumerate(places):
        design[k, [0, 1 + i, 1 + size + j]] = 1.0
    values = np.array([matrix[p] for p in places])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    left = centred(matrix)
    np.testing.assert_allclose([left[p] for p in places], values - fitted, atol=1e-12)


def test_shares_of_variance():
    rows, columns = RANDOM.normal(size=(2, 40))
    banded = np.tile(rows[:, None], 40)
    assert row_share(banded) == pytest.approx(1.0)
    assert interaction_share(banded) == pytest.approx(0.0, abs=1e-12)
    assert column_share(banded.T) == pytest.approx(1.0)
    assert row_share(banded.T) < 0.1
    assert interaction_share(rows[:, None] + columns[None]) == pytest.approx(0.0, abs=1e-12)
    assert interaction_share(noise()) > 0.9
    assert np.isnan(row_share(np.ones((4, 4))))


def test_gini_of_equal_and_of_single_entries():
    assert gini(np.where(OFF, -2.0, 99.0)) == pytest.approx(0.0, abs=1e-12)
    single = np.zeros((40, 40))
    single[3, 7] = -1.0
    assert gini(single) == pytest.approx(1 - 1 / OFF.sum())
    assert np.isnan(gini(np.zeros((4, 4))))


def test_who_helps_itself_most():
    assert own_share(np.eye(6)) == 1.0
    assert own_share(np.roll(np.eye(6), 1, axis=1)) == 0.0


def test_the_jackknife_is_that_of_a_mean_and_covers():
    """Of a mean it is the standard error; of the antisymmetric share it covers the truth."""
    values = RANDOM.uniform(size=40)
    value, low, high = jackknife(np.diag(values), lambda m: float(np.diag(m).mean()))
    assert value == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.959964 * values.std(ddof=1) / 40**0.5)
    truth = 0.5 / (0.5 + 1.0)  # variances of A, and of S with half of a symmetric matrix added
    hits = 0
    for _ in range(100):
        one, two = noise(30), noise(30)
        mixed = one + np.sqrt(0.5) * (two + two.T) / np.sqrt(2)
        _, low, high = jackknife(mixed, antisymmetric_share)
        hits += low <= truth <= high
    assert 88 <= hits <= 100


def test_too_few_samples_have_no_interval():
    for statistic in MEASURES.values():
        _, low, high = jackknife(noise(3), statistic)
        assert np.isnan(low)
        assert np.isnan(high)


def related(size=9):
    """Two matrices of which the second is the first with noise, and ties."""
    first = noise(size)
    return first, np.round(first + 0.7 * noise(size), 1)


def test_rank_correlations_are_spearman_s_off_the_diagonal_and_within_columns():
    first, second = related()
    off = ~np.eye(9, dtype=bool)
    value, low, high = rank_correlation(first, second)
    assert value == pytest.approx(spearmanr(first[off], second[off]).statistic)
    ranks = np.zeros((2, 9, 9))
    ranks[:, off] = rankdata(first[off]), rankdata(second[off])
    kept = [off & (np.arange(9) != k) & (np.arange(9) != k)[:, None] for k in range(9)]
    each = np.array([np.corrcoef(*ranks[:, mask])[0, 1] for mask in kept])
    error = np.sqrt(8 / 9 * ((each - each.mean()) ** 2).sum())
    assert high - value == pytest.approx(norm.ppf(0.975) * error)
    assert value - low == pytest.approx(high - value)
    columns = [spearmanr(*(m[off[:, j], j] for m in (first, second))).statistic for j in range(9)]
    assert rank_correlation(first, second, within_columns=True)[0] == pytest.approx(
        np.mean(columns)
    )


def test_a_sample_is_left_out_of_every_column_and_with_its_own():
    first, second = related()
    ranks = np.stack([np.full((9, 9), np.nan)] * 2)
    for j in range(9):
        rows = np.arange(9) != j
        ranks[:, rows, j] = rankdata(first[rows, j]), rankdata(second[rows, j])
    each = []
    for k in range(9):
        rest = [(j, (np.arange(9) != j) & (np.arange(9) != k)) for j in range(9) if j != k]
        each.append(np.mean([np.corrcoef(*ranks[:, rows, j])[0, 1] for j, rows in rest]))
    value, low, _ = rank_correlation(first, second, within_columns=True)
    error = np.sqrt(8 / 9 * ((each - np.mean(each)) ** 2).sum())
    assert value - low == pytest.approx(norm.ppf(0.975) * error)


def test_what_has_no_order_has_no_correlation():
    first, second = related()
    assert np.isnan(rank_correlation(first, np.ones((9, 9)))).all()
    assert np.isnan(rank_correlation(first, np.full((9, 9), np.nan))).all()
    rows = np.tile(second[:, :1], 9)  # the same in every column
    rows[:, 2] = 1.0
    kept = [j for j in range(9) if j != 2]
    off = ~np.eye(9, dtype=bool)
    wanted = np.mean([spearmanr(first[off[:, j], j], rows[off[:, j], j]).statistic for j in kept])
    assert rank_correlation(first, rows, within_columns=True)[0] == pytest.approx(wanted)
    assert np.isnan(rank_correlation(first[:3, :3], second[:3, :3])).all()
