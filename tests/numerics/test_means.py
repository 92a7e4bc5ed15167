"""Means, gaps and shares, by hand."""

import math

import numpy as np
import pytest

from distinf.numerics.means import (
    binned_means,
    change_pct,
    concentration_pct,
    finite_mean,
    gap_reduction,
    highest,
    mean_sd,
    running_mean,
)


def test_what_is_not_finite_is_left_out_of_means():
    assert finite_mean(np.array([1.0, np.nan, 3.0, np.inf])) == 2.0
    assert math.isnan(finite_mean(np.array([np.nan])))
    assert mean_sd([1.0, None, 3.0, math.nan]) == (2.0, pytest.approx(math.sqrt(2)), 2)
    mean, sd, known = mean_sd([5.0])
    assert (mean, known) == (5.0, 1)
    assert math.isnan(sd)
    smooth = running_mean(np.array([np.nan, 2.0, 4.0, np.nan, np.nan, 8.0]), 2)
    np.testing.assert_allclose(smooth, [np.nan, 2, 3, 4, np.nan, 8])


def test_bins_hold_every_value_once_and_empty_ones_are_left_out():
    x = np.array([0.0, 0.5, 9.0, 10.0])
    centres, counts, means = binned_means(x, {"a": np.array([1.0, 3.0, 5.0, 7.0])}, 5)
    assert counts == [2, 2]
    assert centres == pytest.approx([1.0, 9.0])
    assert means == {"a": [2.0, 6.0]}
    assert binned_means(x, {"x": x}, 1)[2] == {"x": [x.mean()]}


def test_gaps_and_changes():
    assert gap_reduction(0.5, 0.2, 0.1) == pytest.approx(75.0)
    assert gap_reduction(0.5, 0.7, 0.1) == pytest.approx(-50.0)
    assert math.isnan(gap_reduction(0.1, 0.05, 0.1))
    assert change_pct(3.0, 2.0) == pytest.approx(50.0)
    assert change_pct(3.0, 0.0) is None
    assert change_pct(math.nan, 2.0) is None


def test_the_largest_tenth_and_the_highest():
    assert concentration_pct(np.array([-9.0, *[1.0] * 9, np.nan])) == pytest.approx(50.0)
    assert concentration_pct(np.full(20, 2.0)) == pytest.approx(10.0)
    assert math.isnan(concentration_pct(np.zeros(3)))
    assert highest(np.array([1.0, np.inf, 3.0, np.nan, 2.0]), 2) == {2, 4}
