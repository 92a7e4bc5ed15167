"""The two-level bootstrap: its spread, what it leaves out, and pairs."""

import math

import numpy as np
import pytest

from distinf.numerics.bootstrap import (
    RESAMPLES,
    best_elsewhere,
    bootstrap_means,
    differences,
    estimate,
)


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
    assert math.isnan(estimate({(0, 0): 5.0}).low)
    assert math.isnan(estimate({}).mean)


def test_differences_pair_equal_target_and_seed():
    ours = {(0, 0): 5.0, (0, 1): 9.0, (1, 0): math.nan, (2, 0): 4.0}
    control = {(0, 0): 2.0, (0, 1): 10.0, (1, 0): 1.0, (3, 0): 8.0}
    assert differences(ours, control) == {(0, 0): 3.0, (0, 1): -1.0}


def test_the_best_method_is_chosen_by_the_other_draws():
    """Draw 0 alone makes `a` the best on the whole; for itself the others choose `b`."""
    a = {(0, 0): 30.0, (0, 1): 34.0, (1, 0): 0.0, (1, 1): 2.0, (2, 0): 1.0}
    b = {(0, 0): 2.0, (0, 1): 4.0, (1, 0): 5.0, (1, 1): 5.0, (2, 0): 6.0}
    chosen = best_elsewhere({"a": a, "b": b})
    assert chosen == {(0, 0): "b", (0, 1): "b", (1, 0): "a", (1, 1): "a", (2, 0): "a"}
    b[1, 1] = math.nan  # not to be compared: neither chosen for nor choosing
    assert best_elsewhere({"a": a, "b": b}).keys() == a.keys() - {(1, 1)}
    assert best_elsewhere({"b": b, "a": a})[2, 0] == "a"


def test_of_one_draw_the_other_trials_choose():
    a, b = {(7, 0): 9.0, (7, 1): 1.0, (7, 2): 1.0}, {(7, 0): 0.0, (7, 1): 2.0, (7, 2): 2.0}
    assert best_elsewhere({"a": a, "b": b}) == {(7, 0): "b", (7, 1): "a", (7, 2): "a"}
    assert best_elsewhere({"a": {(7, 0): 1.0}, "b": {(7, 0): 2.0}}) == {(7, 0): "a"}


def test_the_best_method_elsewhere_has_no_advantage_from_having_been_chosen():
    """Of two methods alike, the better mean of n draws is 1 / √(π n) too high; this one is not."""
    rng, draws, tries = np.random.default_rng(2), 4, 800
    highest, elsewhere = [], []
    for _ in range(tries):
        methods = {
            name: {(k, 0): float(v) for k, v in enumerate(rng.normal(size=draws))} for name in "ab"
        }
        chosen = best_elsewhere(methods)
        elsewhere.append(np.mean([methods[name][key] for key, name in chosen.items()]))
        highest.append(max(np.mean([*trials.values()]) for trials in methods.values()))
    error = 4 / math.sqrt(draws * tries)
    assert np.mean(highest) == pytest.approx(1 / math.sqrt(math.pi * draws), abs=error)
    assert np.mean(elsewhere) == pytest.approx(0, abs=error)
