"""What a square matrix of influences is like: symmetric or not, banded, sparse.

M [n, n]: M_ij is what training on sample i does to the loss of sample j; > 0 helps. All but
`own_share` is off the diagonal, which alone would make any matrix look symmetric.
"""

from collections.abc import Callable

import numpy as np

LEVEL = 0.95
Statistic = Callable[[np.ndarray], float]


def antisymmetric_share(matrix: np.ndarray) -> float:
    """|A|^2 / (|S|^2 + |A|^2), S and A the symmetric and antisymmetric parts: 0 where M_ij = M_ji,
    1 where M_ij = -M_ji, 1/2 of independent entries; NaN where all entries are 0."""
    off = _off(matrix)
    parts = [float((((matrix + sign * matrix.T) / 2)[off] ** 2).sum()) for sign in (1, -1)]
    return parts[1] / sum(parts) if sum(parts) > 0 else np.nan


def centred(matrix: np.ndarray) -> np.ndarray:
    """Without what its row and its column explain of an entry (least squares, additive)."""
    without: np.ndarray = matrix - _additive(matrix)
    return without


def centred_antisymmetric_share(matrix: np.ndarray) -> float:
    """After the bands are taken out: how M_ij and M_ji differ as pairs."""
    return antisymmetric_share(centred(matrix))


def row_share(matrix: np.ndarray) -> float:
    """Share of the variance that rows' means explain: samples that help, or harm, all others."""
    return _explained(matrix, _means(matrix)[:, None])


def column_share(matrix: np.ndarray) -> float:
    """Share of the variance that columns' means explain: samples that anything helps."""
    return _explained(matrix, _means(matrix.T)[None])


def interaction_share(matrix: np.ndarray) -> float:
    """Share of the variance that rows and columns together leave unexplained."""
    return 1.0 - _explained(matrix, _additive(matrix))


def gini(matrix: np.ndarray) -> float:
    """Of the entries' sizes: 0 where all are alike, towards 1 where few have everything."""
    sizes = np.sort(np.abs(matrix[_off(matrix)]))
    total = sizes.sum()
    ranks = np.arange(1, len(sizes) + 1)
    return (
        float(2 * (ranks * sizes).sum() / (len(sizes) * total) - 1 - 1 / len(sizes))
        if total > 0
        else np.nan
    )


def own_share(matrix: np.ndarray) -> float:
    """Share of rows whose largest influence is the sample itself."""
    return float((matrix.argmax(1) == np.arange(len(matrix))).mean())


MEASURES: dict[str, Statistic] = {
    "antisymmetric share": antisymmetric_share,
    "antisymmetric share, bands taken out": centred_antisymmetric_share,
    "variance by rows": row_share,
    "variance by columns": column_share,
    "variance by neither": interaction_share,
    "Gini coefficient": gini,
    "largest is its own": own_share,
}


def jackknife(matrix: np.ndarray, statistic: Statistic) -> tuple[float, float, float]:
    """(value, low, high) at 95 %, of a statistic in [0, 1]: each sample, with its row and its
    column, left out in turn."""
    value, count = statistic(matrix), len(matrix)
    if count < 4:
        return value, np.nan, np.nan
    without = [np.delete(np.delete(matrix, k, 0), k, 1) for k in range(count)]
    half = half_interval(np.array([statistic(each) for each in without]))
    return value, max(value - half, 0.0), min(value + half, 1.0)


def half_interval(without: np.ndarray) -> float:
    """Of the values [n] with each sample left out in turn."""
    from scipy.stats import norm  # here, as it takes a second of every worker's start

    count = len(without)
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return float(norm.ppf((1 + LEVEL) / 2) * error)


def rank_correlation(
    first: np.ndarray, second: np.ndarray, within_columns: bool = False
) -> tuple[float, float, float]:
    """(value, low, high) at 95 %: Spearman's between two matrices off the diagonal, or the mean of
    each column's, columns without any order left out; NaN where nothing has one.

    Jackknife over samples, each with its row and its column; ranks stay those of all samples.
    """
    count = len(first)
    if count < 4:
        return np.nan, np.nan, np.nan
    x, y = (_ranks(matrix, within_columns) for matrix in (first, second))
    parts = np.stack([np.ones_like(x) * _off(x), x, y, x * x, y * y, x * y])
    whole, without = parts.sum(1), parts.sum(1)[:, None] - parts  # [6, column], [6, k, column]
    off = _off(x)
    if not within_columns:
        whole, without = whole.sum(1), np.where(off, without, 0.0).sum(2)
    of_all, each = _correlation(whole), _correlation(without)
    if within_columns:
        told = np.isfinite(of_all)
        if told.sum() < 2:
            return np.nan, np.nan, np.nan
        of_all = of_all[told].mean()
        each = np.nanmean(np.where(off, each, np.nan)[:, told], axis=1)
    half = half_interval(each)
    return float(of_all), max(float(of_all) - half, -1.0), min(float(of_all) + half, 1.0)


def _ranks(matrix: np.ndarray, within_columns: bool) -> np.ndarray:
    """Off the diagonal, less their mean; 0 on it."""
    from scipy.stats import rankdata

    off, count = _off(matrix), len(matrix)
    values = matrix.T[off].reshape(count, count - 1) if within_columns else matrix.T[off][None]
    ranks = rankdata(values, axis=1)
    placed = np.zeros((count, count))
    placed[off] = (ranks - ranks.mean(1, keepdims=True)).ravel()
    return placed.T


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Of the sums 1, x, y, x², y², xy [6, ...]; NaN where one of them does not vary."""
    count, x, y, xx, yy, xy = sums
    varying = (xx - x * x / count) * (yy - y * y / count)
    root = np.sqrt(np.where(varying > 1e-9, varying, np.nan))
    found: np.ndarray = (xy - x * y / count) / root
    return found


def _off(matrix: np.ndarray) -> np.ndarray:
    return ~np.eye(len(matrix), dtype=bool)


def _means(matrix: np.ndarray) -> np.ndarray:
    """Of each row, off the diagonal."""
    means: np.ndarray = (matrix.sum(1) - np.diag(matrix)) / (len(matrix) - 1)
    return means


def _explained(matrix: np.ndarray, by: np.ndarray) -> float:
    off = _off(matrix)
    left, total = (matrix - by)[off], matrix[off] - matrix[off].mean()
    return 1.0 - float((left**2).sum() / (total**2).sum()) if (total**2).sum() > 0 else np.nan


def _additive(matrix: np.ndarray) -> np.ndarray:
    """[n, n]: the least-squares m + r_i + c_j off the diagonal, in closed form.

    With the rows' and columns' sums R and C and n samples, the normal equations
    (n - 1) r_i + Σ_{j≠i} c_j = R_i, and those of columns, give r + c and r - c one after the other.
    """
    count = len(matrix)
    off = np.where(_off(matrix), matrix, 0.0)
    mean = off.sum() / (count * (count - 1))
    rows, columns = (off.sum(axis) - (count - 1) * mean for axis in (1, 0))
    # Σ r = Σ c = 0: (n - 1) r_i - c_i = rows_i, (n - 1) c_i - r_i = columns_i
    r, c = (
        ((count - 1) * a + b) / (count * (count - 2)) for a, b in ((rows, columns), (columns, rows))
    )
    fitted: np.ndarray = mean + r[:, None] + c[None]
    return fitted
