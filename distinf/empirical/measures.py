"""What a measured matrix says: symmetry, relations, noise, conclusions, as rows of tables."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np

from distinf.empirical.matrix import Matrix
from distinf.empirical.task import (
    CLEAN,
    TRAIN,
    Contrast,
    Contrasting,
    Implying,
    Place,
    Reworded,
    Worded,
    places,
)  # fmt: skip
from distinf.empirical.task import (
    relations as related,
)
from distinf.numerics.bootstrap import Estimate, estimate
from distinf.numerics.effects import partial_effects, variance_shares
from distinf.numerics.pairwise import (
    MEASURES,
    Statistic,
    antisymmetric_share,
    half_interval,
    jackknife,
)  # fmt: skip
from distinf.tasks.task import Task

ANY, SAME, OTHER, OWN = "any pair", "same class", "other classes", "itself"
FROM_NOISY, CLEAN_ON_NOISY = "from noisy less from clean", "clean on noisy less reverse"
Row = dict[str, Any]
FEWEST = 5  # draws, or samples, from which on there is an interval over them
FLOOR = 4.0  # of a loss's float32 rounding errors: below it a difference is none


def level_name(level: str) -> str:
    return f"noise {level}" if level else "clean"


def tables(runs: Mapping[str, Matrix], tasks: Mapping[str, Task]) -> dict[str, list[Row]]:
    """By name; `runs`: "" is the run, others its variations, without samples that diverged;
    `tasks`: of each run."""
    made: dict[str, Callable[[Matrix], Iterator[Row]]] = {
        "measures": measures, "relations": relations, "noise": noise, "first_order": linearity,
    }  # fmt: skip
    found = {
        name: [{"run": run} | row for run, matrix in runs.items() for row in make(matrix)]
        for name, make in made.items()
    }
    asking: dict[str, Callable[[Matrix, Any], Iterator[Row]]] = {
        "contrasts": concluded, "meanings": meanings, "variances": variances
    }  # fmt: skip
    for name, ask in asking.items():
        found[name] = [{"run": run} | row for run in runs for row in ask(runs[run], tasks[run])]
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
                value, low, high = _over([statistic(square) for square in squares]).values()
            yield own | {"measure": measure, "value": value, "low": low, "high": high}


def _below(square: np.ndarray, floor: float) -> float:
    """Share of entries off the diagonal that rounding could have made."""
    off = ~np.eye(len(square), dtype=bool)
    return float((np.abs(square[off]) < floor).mean())


def concluded(matrix: Matrix, task: Task) -> Iterator[Row]:
    """Influence on a right conclusion less that on a wrong one, with intervals over draws.
    `within_pct`: that it is no larger than this share of the influence on what was learned itself,
    either way, is what two one-sided tests at 2.5 % show."""
    asked: Sequence[Contrast] = task.contrasts() if isinstance(task, Contrasting) else ()
    for contrast in asked:
        differences, own = {}, []
        for place in drawn(matrix).get(contrast.matrix, []):
            square, groups = matrix.block(CLEAN, CLEAN, place), matrix.groups(place).tolist()
            named = [contrast.after, contrast.right, contrast.wrong]
            named += [contrast.less] if contrast.less else []
            if square.size and set(named) <= set(groups):
                after, right, wrong, *less = map(groups.index, named)
                for_right = square[:, right] - square[:, wrong]
                differences[place[1], 0] = float(for_right[after] - for_right[less].sum())
                own.append(abs(square[after, after]))
        if differences:
            told = _told(estimate(differences))
            yield {
                "matrix": contrast.matrix,
                "contrast": contrast.name,
                "after": f"{contrast.after} less {contrast.less}".removesuffix(" less "),
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
    """How much of the measured influence the step's first order tells: R^2 about 0, correlation;
    and how antisymmetric it is itself, which the optimizer makes (0 of a step of plain SGD)."""
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
        squares = [matrix.block(trained, trained, at, first_order=True) for at in its]
        yield {
            "matrix": name,
            "trained": level_name(trained),
            "r2": 1.0 - float(left / total) if total > 0 else math.nan,
            "correlation": float(np.corrcoef(measured, told)[0, 1]),
            **_over([antisymmetric_share(square) for square in squares if len(square) > 2]),
        }


def meanings(matrix: Matrix, task: Task) -> Iterator[Row]:
    """Word against meaning: influence regressed on which share of the evaluated text's tokens is in
    the learned one, which of its pairs of neighbours (their order), and on what the learned text
    says of it (1: it follows, -1: it is contradicted), rows' and columns' means taken out. `value`:
    standard deviations of influence for one of the regressor, others held; `alone_pct`: of the
    variance, what is lost without it. Intervals over draws."""
    if not (isinstance(task, Worded) and isinstance(task, Implying)):
        return
    texts, implications = _texts(task), task.implications()
    for name, its in drawn(matrix).items():
        found: dict[str, list[tuple[float, float]]] = {}
        for place in its:
            square, samples = matrix.block(CLEAN, CLEAN, place), matrix.samples(place)
            if len(square) < 4:
                continue
            groups, said = matrix.groups(place).tolist(), implications.get(name, {})
            rows = [texts[(*place, sample)] for sample in samples]
            pairs = [[*pairwise(row)] for row in rows]
            regressors = {
                "shared tokens": np.array([[_held(e, t) for e in rows] for t in rows]),
                "their order": np.array([[_held(e, t) for e in pairs] for t in pairs]),
                "what follows": np.array([[said.get((t, e), 0.0) for e in groups] for t in groups]),
            }
            for regressor, told in partial_effects(square, regressors).items():
                found.setdefault(regressor, []).append(told)
        for regressor, every in found.items():
            effects = [effect for effect, _ in every if math.isfinite(effect)]
            if effects:
                yield {
                    "matrix": name, "regressor": regressor, **_over(effects),
                    "alone_pct": 100 * float(np.nanmean([share for _, share in every])),
                    "draws": len(effects),
                }  # fmt: skip


def _texts(task: Any) -> dict[tuple[str, int, int], list[int]]:
    """Tokens by matrix, draw and sample."""
    (tokens, starts), columns = task.words(TRAIN), related(task, TRAIN)
    rows = zip(places(columns), columns["sample"].tolist(), strict=True)
    return {
        (*place, sample): tokens[starts[k] : starts[k + 1]].tolist()
        for k, (place, sample) in enumerate(rows)
    }


def _held(of: Sequence[Any], by: Iterable[Any]) -> float:
    """Share of one's different elements that the other has."""
    return len({*of} & {*by}) / len({*of}) if of else 0.0


def variances(matrix: Matrix, task: Task) -> Iterator[Row]:
    """Of the influences off the diagonal: shares of the variance that go with what is said, with
    its wording, with the names that were drawn, and with both; jackknife over draws of names."""
    itself = {name: [name] for name in drawn(matrix)}
    for name, its in (task.wordings if isinstance(task, Reworded) else itself).items():
        every = drawn(matrix)
        squares = [
            [matrix.block(CLEAN, CLEAN, place) for place in every.get(one, [])] for one in its
        ]
        sizes = {square.shape for wording in squares for square in wording}
        counts = {len(wording) for wording in squares}
        if len(sizes) != 1 or len(counts) != 1 or min(counts) < 2 or min(sizes)[0] < 2:
            continue  # samples that diverged in one draw have no counterpart
        cube = np.array(squares)
        off = ~np.eye(cube.shape[-1], dtype=bool)
        values_PWN = cube[:, :, off].transpose(2, 0, 1)
        whole, names = variance_shares(values_PWN), values_PWN.shape[2]
        without = [variance_shares(np.delete(values_PWN, k, 2)) for k in range(names)]
        for part, value in whole.items():
            if math.isfinite(value):
                each = np.array([shares[part] for shares in without])
                half = half_interval(each) if names >= FEWEST else math.nan
                yield {
                    "matrix": name, "part": part, "value": value, "low": max(value - half, 0.0),
                    "high": min(value + half, 1.0), "wordings": len(its), "draws": names,
                }  # fmt: skip


def _over(values: Sequence[float]) -> Row:
    """Their mean, with an interval over draws."""
    if not values:
        return {"value": math.nan, "low": math.nan, "high": math.nan}
    found = estimate({(k, 0): value for k, value in enumerate(values)})
    low, high = interval(found)
    return {"value": found.mean, "low": low, "high": high}


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
