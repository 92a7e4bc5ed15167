"""What explains influences: partial effects and components of variance, by other ways to them."""

import numpy as np
import pytest

from distinf.numerics.effects import partial_effects, variance_shares

SIZE = 7
OFF = ~np.eye(SIZE, dtype=bool)


def squares(seed, count):
    return np.random.default_rng(seed).normal(size=(count, SIZE, SIZE))


def r2(matrix, regressors):
    """With a column for each row and each column of the matrix, by least squares."""
    i, j = np.nonzero(OFF)
    design = [np.ones(len(i)), *(i == k for k in range(SIZE)), *(j == k for k in range(SIZE))]
    x = np.stack([*design, *(each[OFF] for each in regressors)], 1).astype(float)
    found = np.linalg.lstsq(x, matrix[OFF], rcond=None)[0]
    return found[2 * SIZE + 1 :], float(((matrix[OFF] - x @ found) ** 2).sum())


def test_partial_effects_are_those_of_one_regression_with_rows_and_columns():
    matrix, *xs = squares(0, 4)
    xs[1] = xs[1] + 0.8 * xs[0]
    matrix = matrix + 2 * xs[0] - xs[1]
    found = partial_effects(matrix, dict(zip("abc", xs, strict=True)))
    slopes, left = r2(matrix, xs)
    _, bands = r2(matrix, [])
    for k, name in enumerate("abc"):
        _, of_regressor = r2(xs[k], [])
        _, without = r2(matrix, [x for j, x in enumerate(xs) if j != k])
        effect, share = found[name]
        assert effect == pytest.approx(slopes[k] * np.sqrt(of_regressor / bands))
        assert share == pytest.approx((without - left) / bands)
    assert found["a"][0] > 0.3
    assert found["b"][0] < -0.2


def test_what_the_others_tell_has_no_effect_of_its_own():
    matrix, one, other = squares(1, 3)
    banded = np.arange(SIZE)[:, None] + np.zeros((SIZE, SIZE))
    found = partial_effects(
        matrix, {"a": one, "twice": 2 * one, "b": other, "bands": banded, "none": 0 * one}
    )
    assert [name for name, (effect, _) in found.items() if np.isfinite(effect)] == ["b"]


def layout(seed, pair, wording, names, both, shape=(300, 4, 6)):
    random = np.random.default_rng(seed)
    p, w, n = shape
    return (
        pair * random.normal(size=(p, 1, 1))
        + wording * random.normal(size=(p, w, 1))
        + names * random.normal(size=(p, 1, n))
        + both * random.normal(size=(p, w, n))
    )


def test_shares_are_those_that_made_the_values():
    found = variance_shares(layout(0, 2.0, 1.0, 1.5, 0.5))
    total = 4 + 1 + 2.25 + 0.25
    wanted = {"pair": 4 / total, "wording": 1 / total, "names": 2.25 / total, "both": 0.25 / total}
    assert found == pytest.approx(wanted, abs=0.05)
    noise = variance_shares(layout(1, 0.0, 0.0, 0.0, 1.0))
    assert noise["both"] > 0.97  # means of noise over few names are no variance of pairs


def test_with_one_wording_names_have_what_pairs_have_not():
    found = variance_shares(layout(2, 1.0, 0.0, 2.0, 0.0, (400, 1, 5)))
    assert found["pair"] == pytest.approx(0.2, abs=0.05)
    assert found["pair"] + found["names"] == pytest.approx(1.0)
    assert np.isnan(found["wording"])
    assert np.isnan(found["both"])
