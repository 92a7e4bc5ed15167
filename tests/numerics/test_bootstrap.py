"""The two-level bootstrap: its spread, what it leaves out, and pairs."""

import math

import numpy as np
import pytest

from distinf.numerics.bootstrap import RESAMPLES, bootstrap_means, differences, estimate


def test_bootstrap_spread_is_between_targets_plus_within():
    rng = np.random.default_rng(3)
    groups = [rng.normal(mean, 2.0, size=8) for mean in (0.0, 5.0, 9.0, 20.0, 21.0)]
    between = np.var([g.mean() for g in groups]) / 5
    within = np.mean([g.var() for g in groups]) / (5 * 8)
    means = bootstrap_means(groups, seed=0)
    assert means.size == RESAMPLES
    assert means.var() == pytest.approx(between + within, rel=0.05)
    assert means.mean() == pytest.approx(np.mean(groups), abs=0.15)


def test_bootstrap_of_unequal_targets_draws_only_real_trials():
    groups = [np.full(n, 7.0) for n in (1, 4, 9)]
    np.testing.assert_allclose(bootstrap_means(groups, seed=0), 7.0)


def test_interval_covers_the_mean_and_ignores_order():
    rng = np.random.default_rng(0)
    trials = {(t, s): float(rng.normal(10, 4)) for t in range(4) for s in range(6)}
    e = estimate(trials)
    assert e.low < e.mean < e.high
    assert (e.trials, e.targets, e.failed) == (24, 4, 0)
    assert e.sd == pytest.approx(np.std(list(trials.values()), ddof=1))
    assert estimate(dict(reversed(trials.items()))) == e


def test_non_finite_trials_are_counted_never_averaged():
    e = estimate({(0, 0): 1.0, (0, 1): math.nan, (1, 0): 3.0, (1, 1): math.inf})
    assert (e.mean, e.trials, e.failed) == (2.0, 2, 2)


def test_one_trial_has_no_interval():
    assert not estimate({(0, 0): 5.0}).has_interval
    assert math.isnan(estimate({}).mean)


def test_differences_pair_equal_target_and_seed():
    ours = {(0, 0): 5.0, (0, 1): 9.0, (1, 0): math.nan, (2, 0): 4.0}
    control = {(0, 0): 2.0, (0, 1): 10.0, (1, 0): 1.0, (3, 0): 8.0}
    assert differences(ours, control) == {(0, 0): 3.0, (0, 1): -1.0}
