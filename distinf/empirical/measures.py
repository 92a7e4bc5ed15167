"""What a measured matrix says: symmetry, relations, noise, conclusions, as rows of tables."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from distinf.empirical.matrix import Matrix
from distinf.empirical.task import CLEAN, Contrast, Place
from distinf.numerics.bootstrap import Estimate, estimate
from distinf.numerics.pairwise import MEASURES, Statistic, jackknife

ANY, SAME, OTHER, OWN = "any pair", "same class", "other classes", "itself"
FROM_NOISY, CLEAN_ON_NOISY = "from noisy less from clean", "clean on noisy less reverse"
Row = dict[str, Any]
FEWEST = 5  # draws, or samples, from which on there is an interval over them
FLOOR = 4.0  # of a loss's float32 rounding errors: below it a difference is none


def level_name(level: str) -> str:
    return f"noise {level}" if level else "clean"


def tables(
    runs: Mapping[str, Matrix], contrasts: Mapping[str, Sequence[Contrast]]
) -> dict[str, list[Row]]:
    """By name; `runs`: "" is the run, others its variations, without samples that diverged;
    `contrasts`: of each run's task."""
    made: dict[str, Callable[[Matrix], Iterator[Row]]] = {
        "measures": measures, "relations": relations, "noise": noise, "first_order": linearity,
    }  # fmt: skip
    found = {
        name: [{"run": run} | row for run, matrix in runs.items() for row in make(matrix)]
        for name, make in made.items()
    }
    found["contrasts"] = [
        {"run": run} | row for run in runs for row in concluded(runs[run], contrasts[run])
    ]
    return {name: rows for name, rows in found.items() if rows}


def drawn(matrix: Matrix) -> dict[str, list[Place]]:
    """The draws of every matrix."""
    found: dict[str, list[Place]] = {}
    for place in matrix.places:
        found.setdefault(place[0], []).append(place)
    return found


def measures(matrix: Matrix) -> Iterator[Row]:
    """Of the clean samples' square matrix: MEASURES with jackknife intervals; of several draws
    their means, with intervals over draws."""
    floor = FLOOR * float(np.finfo(np.float32).eps) * max(float(np.abs(matrix.before_E).max()), 1.0)
    every: dict[str, Statistic] = {**MEASURES, "below rounding": partial(_below, floor=floor)}
    for name, its in drawn(matrix).items():
        squares = [matrix.block(CLEAN, CLEAN, place) for place in its]
        squares = [square for square in squares if len(square) >= 3]
        if not squares:
            continue
        own = {"matrix": name, "samples": len(squares[0]), "draws": len(squares)}
        for measure, statistic in every.items():
            if len(squares) == 1:
                value, low, high = jackknife(squares[0], statistic)
            else:
                over = estimate({(k, 0): statistic(square) for k, square in enumerate(squares)})
                value, (low, high) = over.mean, interval(over)
            yield own | {"measure": measure, "value": value, "low": low, "high": high}


def _below(square: np.ndarray, floor: float) -> float:
    """Share of entries off the diagonal that rounding could have made."""
    off = ~np.eye(len(square), dtype=bool)
    return float((np.abs(square[off]) < floor).mean())


def concluded(matrix: Matrix, contrasts: Sequence[Contrast]) -> Iterator[Row]:
    """Influence on a right conclusion less that on a wrong one, with intervals over draws.
    `within_pct`: that it is no larger than this share of the influence on what was learned itself,
    either way, is what two one-sided tests at 2.5 % show."""
    for contrast in contrasts:
        differences, own = {}, []
        for place in drawn(matrix).get(contrast.matrix, []):
            square, groups = matrix.block(CLEAN, CLEAN, place), matrix.groups(place).tolist()
            named = [contrast.after, contrast.right, contrast.wrong]
            if square.size and set(named) <= set(groups):
                after, right, wrong = map(groups.index, named)
                differences[place[1], 0] = float(square[after, right] - square[after, wrong])
                own.append(abs(square[after, after]))
        if differences:
            told = _told(estimate(differences))
            yield {
                "matrix": contrast.matrix,
                "contrast": contrast.name,
                "after": contrast.after,
                "right": contrast.right,
                "wrong": contrast.wrong,
                **told,
                "within_pct": 100 * max(abs(told["low"]), abs(told["high"])) / np.mean(own),
                "right_pct": 100 * float(np.mean([d > 0 for d in differences.values()])),
            }


def relations(matrix: Matrix) -> Iterator[Row]:
    """Mean influence on the sample itself, on others of its class and on other classes, by the
    level it is tuned on at and that it is evaluated at."""
    for trained in matrix.levels if matrix.places == [("", 0)] else ():
        for evaluated in matrix.levels:
            shared = matrix.samples(("", 0), [trained], [evaluated])
            square = matrix.block(trained, evaluated)
            groups = matrix.groups(("", 0), trained, shared)
            for relation, chosen in _pairs(square, groups, own=True).items():
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
    for level in matrix.levels[1:]:
        contrasts = {
            FROM_NOISY: ((level, CLEAN), (CLEAN, CLEAN), -1.0),
            CLEAN_ON_NOISY: ((CLEAN, level), (level, CLEAN), 1.0),
        }
        for contrast, (first, second, wished) in contrasts.items():
            shared = matrix.samples(("", 0), *zip(first, second, strict=True))
            one, other = (matrix.block(*of, samples=shared) for of in (first, second))
            difference, groups = one - other, matrix.groups(samples=shared)
            for relation, chosen in _pairs(difference, groups).items():
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
    for trained, (name, its) in product(matrix.levels, drawn(matrix).items()):
        measured, told = (
            np.concatenate([matrix.block(trained, CLEAN, at, linear).ravel() for at in its])
            for linear in (False, True)
        )
        if not measured.size:
            continue
        left, total = ((measured - told) ** 2).sum(), (measured**2).sum()
        yield {
            "matrix": name,
            "trained": level_name(trained),
            "r2": 1.0 - float(left / total) if total > 0 else math.nan,
            "correlation": float(np.corrcoef(measured, told)[0, 1]),
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


def interval(found: Estimate) -> tuple[float, float]:
    """NaN where too few draws, or samples, give none."""
    return (found.low, found.high) if found.targets >= FEWEST else (math.nan, math.nan)


def _told(found: Estimate) -> dict[str, Any]:
    low, high = interval(found)
    return {"mean": found.mean, "low": low, "high": high, "samples": found.targets}
