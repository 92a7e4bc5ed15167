"""The numbers of an empirical run, as rows of its tables."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from distinf.empirical.matrix import CLEAN, Matrix
from distinf.numerics.bootstrap import Estimate, estimate
from distinf.numerics.pairwise import MEASURES, jackknife
from distinf.report.rows import Row

ANY, SAME, OTHER, OWN = "any pair", "same class", "other classes", "itself"
FROM_NOISY, CLEAN_ON_NOISY = "from noisy less from clean", "clean on noisy less reverse"
FLOOR = 4.0  # of a loss's float32 rounding errors: below it a difference is none


def level_name(level: str) -> str:
    return f"noise {level}" if level else "clean"


def tables(runs: Mapping[str, Matrix]) -> dict[str, list[Row]]:
    """By name; `runs`: "" is the run, others its variations, without samples that diverged."""
    found: dict[str, list[Row]] = {"measures": [], "relations": [], "noise": [], "first_order": []}
    for name, matrix in runs.items():
        own = {"run": name}
        found["measures"] += [own | row for row in measures(matrix)]
        found["relations"] += [own | row for row in relations(matrix)]
        found["noise"] += [own | row for row in noise(matrix)]
        found["first_order"] += [own | row for row in linearity(matrix)]
    return {name: rows for name, rows in found.items() if rows}


def measures(matrix: Matrix) -> Iterator[Row]:
    """Of the clean samples' square matrix: MEASURES with jackknife intervals."""
    square = matrix.block(CLEAN, CLEAN)
    if len(square) < 3:
        return
    for name, statistic in MEASURES.items():
        value, low, high = jackknife(square, statistic)
        yield {"measure": name, "value": value, "low": low, "high": high, "samples": len(square)}
    off = ~np.eye(len(square), dtype=bool)
    floor = FLOOR * np.finfo(np.float32).eps * max(float(np.abs(matrix.before_E).max()), 1.0)
    share = float((np.abs(square[off]) < floor).mean())
    yield {"measure": "below rounding", "value": share, "samples": len(square)}


def relations(matrix: Matrix) -> Iterator[Row]:
    """Mean influence on the sample itself, on others of its class and on other classes, by the
    level it is tuned on at and that it is evaluated at."""
    for trained in matrix.levels:
        for evaluated in matrix.levels:
            square = matrix.block(trained, evaluated)
            for relation, chosen in _pairs(square, matrix.groups(), own=True).items():
                yield {
                    "trained": level_name(trained),
                    "evaluated": level_name(evaluated),
                    "relation": relation,
                    **_told(_by_sample(square, chosen)),
                    "helped_pct": 100 * float((square[chosen] > 0).mean()),
                }


def noise(matrix: Matrix) -> Iterator[Row]:
    """Eq. 5 and 6 of Matelsky et al., in our sign, by sample: what is learned from its noisy copy
    less what is learned from its clean one; and what a clean sample teaches noisy ones less what
    the noisy one teaches clean ones. `holds_pct`: of pairs, how many go as one would wish."""
    clean = matrix.block(CLEAN, CLEAN)
    for level in matrix.levels[1:]:
        from_noisy, on_noisy = matrix.block(level, CLEAN), matrix.block(CLEAN, level)
        contrasts = {
            FROM_NOISY: (from_noisy - clean, -1.0),
            CLEAN_ON_NOISY: (on_noisy - from_noisy, 1.0),
        }
        for relation, chosen in _pairs(clean, matrix.groups()).items():
            for contrast, (difference, wished) in contrasts.items():
                yield {
                    "contrast": contrast,
                    "level": level_name(level),
                    "relation": relation,
                    **_told(_by_sample(difference, chosen)),
                    "wished": "below 0" if wished < 0 else "above 0",
                    "holds_pct": 100 * float((wished * difference[chosen] > 0).mean()),
                }


def linearity(matrix: Matrix) -> Iterator[Row]:
    """How much of the measured influence the step's first order tells: R^2 about 0, correlation."""
    if matrix.first_order_NE is None:
        return
    for trained in matrix.levels:
        measured = matrix.block(trained, CLEAN)
        told = matrix.block(trained, CLEAN, first_order=True)
        if not measured.size:
            continue
        left, total = ((measured - told) ** 2).sum(), (measured**2).sum()
        yield {
            "trained": level_name(trained),
            "r2": 1.0 - float(left / total) if total > 0 else math.nan,
            "correlation": float(np.corrcoef(measured.ravel(), told.ravel())[0, 1]),
        }


def _pairs(square: np.ndarray, groups: np.ndarray, own: bool = False) -> dict[str, np.ndarray]:
    """bool [S, S] by relation; those without a pair are left out."""
    if not square.size:
        return {}
    itself = np.eye(len(square), dtype=bool)
    alike = groups[:, None] == groups[None]
    named = bool((groups != "").any())
    found = {OWN: itself} if own else {}
    found |= {SAME: alike & ~itself, OTHER: ~alike} if named else {}
    if not (own and named):
        found[ANY] = ~itself
    return {name: chosen for name, chosen in found.items() if chosen.any()}


def _by_sample(values: np.ndarray, chosen: np.ndarray) -> Estimate:
    """Over samples that are tuned on, each one's mean over the others."""
    with np.errstate(invalid="ignore"):
        means = np.where(chosen, values, 0.0).sum(1) / chosen.sum(1)
    return estimate({(k, 0): float(m) for k, m in enumerate(means) if math.isfinite(m)})


def _told(found: Estimate) -> dict[str, Any]:
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "samples": found.targets,
    }
