"""The yardstick: how well estimates, and what other runs measured, tell what a run measured."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from distinf.empirical.estimates import AT, estimated
from distinf.empirical.matrix import Matrix, finite
from distinf.empirical.measures import Row, interval
from distinf.empirical.session import Session
from distinf.empirical.task import CLEAN
from distinf.numerics.bootstrap import estimate
from distinf.numerics.pairwise import rank_correlation


def agreements(runs: Mapping[str, Matrix], sessions: Mapping[str, Session]) -> Iterator[Row]:
    """Spearman's correlation with the measured influence on clean samples: `off` the diagonal, and
    `within` columns, each with _low and _high; of several draws the mean. By run, matrix, estimator
    and what it is `of`: a space of parameters, or the run that measured."""
    for run, matrix in runs.items():
        told = estimated(sessions[run])
        others = {n: m.influence_NE for n, m in runs.items() if told and n != run}
        told |= {f"measured{AT}{n or 'this run'}": values for n, values in others.items()}
        for name, values in told.items():
            estimator, _, of = name.partition(AT)
            if values.shape == matrix.influence_NE.shape:
                for row in _by_matrix(finite(matrix), replace(matrix, influence_NE=values)):
                    yield {"run": run, "estimator": estimator, "of": of, **row}


def _by_matrix(measured: Matrix, told: Matrix) -> Iterator[Row]:
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for place in measured.places:
        samples = measured.samples(place)
        if len(samples) >= 4:
            blocks = [m.block(CLEAN, CLEAN, place, samples=samples) for m in (measured, told)]
            pairs.setdefault(place[0], []).append((blocks[0], blocks[1]))
    for name, draws in pairs.items():
        row: Row = {"matrix": name, "samples": len(draws[0][0]), "draws": len(draws)}
        for part in ("off", "within"):
            every = [rank_correlation(first, second, part == "within") for first, second in draws]
            value, low, high = every[0]
            if len(every) > 1:
                found = estimate({(k, 0): each[0] for k, each in enumerate(every)})
                value, (low, high) = found.mean, interval(found)
            row |= {part: value, f"{part}_low": low, f"{part}_high": high}
        yield row
