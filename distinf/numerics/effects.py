"""What explains a square matrix of influences M [n, n], off its diagonal: regressors of pairs, and
how much of its variance goes with names and with wordings."""

from collections.abc import Mapping

import numpy as np

from distinf.numerics.pairwise import centred

LEAST = 1e-6  # of a regressor's own variation has to be left beside the others


def partial_effects(
    matrix: np.ndarray, regressors: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """By regressor [n, n]: (effect, share). `effect`: standard deviations of M for one
    standard deviation of the regressor, all others held, by least squares; `share`: of M's
    variance that is lost without it. Rows' and columns' means are taken out of all first. NaN where
    the others tell a regressor, or it does not vary."""
    off = ~np.eye(len(matrix), dtype=bool)
    y, *xs = (centred(each)[off] for each in (matrix, *regressors.values()))
    spreads = [float(each[off].std()) for each in regressors.values()]
    found, total = {}, float(y @ y)
    for k, name in enumerate(regressors):
        others = [x for j, x in enumerate(xs) if j != k]
        own, left = (_without(each, others) for each in (xs[k], y))
        varying = float(own @ own) > LEAST * len(own) * spreads[k] ** 2 > 0 and total > 0
        along = float(own @ left) / float(own @ own) if varying else np.nan
        scale = np.sqrt(float(xs[k] @ xs[k]) / total) if varying else np.nan
        found[name] = along * scale, along**2 * float(own @ own) / total if varying else np.nan
    return found


def _without(values: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    if not others:
        return values
    x = np.stack(others, 1)
    left: np.ndarray = values - x @ np.linalg.lstsq(x, values, rcond=1e-9)[0]
    return left


def variance_shares(values_PWN: np.ndarray) -> dict[str, float]:
    """Of P pairs in W wordings with N draws of names: shares of the variance that go with `pair`
    (what is said), `wording` (with one wording NaN), `names`, and `both`, the two together.

    Components of a crossed layout, unbiased, by each pair's mean squares (Searle, Casella and
    McCulloch, Variance Components, ch. 4); those below 0 are 0. With one wording, `names` has both.
    """
    pairs, wordings, names = values_PWN.shape
    if pairs < 2 or names < 2:
        return dict.fromkeys(("pair", "wording", "names", "both"), np.nan)
    means_P = values_PWN.mean((1, 2))
    by_wording, by_names = values_PWN.mean(2), values_PWN.mean(1)
    wording = both = 0.0
    names_square = wordings * float(by_names.var(1, ddof=1).mean())
    if wordings > 1:
        left = values_PWN - by_wording[..., None] - by_names[:, None] + means_P[:, None, None]
        both = float((left**2).sum((1, 2)).mean()) / ((wordings - 1) * (names - 1))
        wording = (names * float(by_wording.var(1, ddof=1).mean()) - both) / names
    named = (names_square - both) / wordings
    pair = float(means_P.var(ddof=1)) - wording / wordings - named / names
    pair -= both / (wordings * names)
    parts = {"pair": pair, "wording": wording, "names": named, "both": both}
    parts = {name: max(part, 0.0) for name, part in parts.items()}
    total = sum(parts.values())
    shares = {name: part / total if total > 0 else np.nan for name, part in parts.items()}
    return shares | ({"wording": np.nan, "both": np.nan} if wordings == 1 else {})
