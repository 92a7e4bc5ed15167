"""The order in which a job takes the rows of its pool."""

import numpy as np

from distinf.spectral.pools import Pool, _round

WEIGHTS = np.array([6.0, -3.0, 1.0])  # by size: a harmful row's score is negative
ROUNDS = 4000


def test_a_weighted_order_draws_rows_in_proportion_to_their_scores():
    """Without replacement: P(i first) = w_i / W, and P(j second | i) = w_j / (W - w_i)."""
    pool = Pool(np.array([7, 8, 9]), WEIGHTS, np.ones((1, 3), bool), np.arange(10))
    random = np.random.default_rng(0)
    rounds = np.stack([_round(pool, "weighted", random) for _ in range(ROUNDS)]) - 7
    assert (np.sort(rounds, axis=1) == np.arange(3)).all()
    found = np.zeros((3, 3))
    np.add.at(found, (rounds[:, 0], rounds[:, 1]), 1 / ROUNDS)
    weight = np.abs(WEIGHTS) / np.abs(WEIGHTS).sum()
    expected = weight[:, None] * weight / (1 - weight[:, None])
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found, expected, atol=4 * 0.5 / ROUNDS**0.5)
