"""What trainings on some of the rows say of scores: a row for each ranking and measure.

Shape legend: Q queries, N training rows, M subsets, K trainings of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from distinf.engine import patching
from distinf.engine.recipe import Foretold
from distinf.engine.session import Session
from distinf.engine.trainings import (
    NONE_OUT,
    Design,
    halves,
    highest,
    kept_rows,
    ones,
    patches,
    shares,
    unit_of,
)  # fmt: skip
from distinf.numerics.counterfactual import (
    FEWEST,
    LEAST_CEILING,
    Measure,
    agreement,
    ceiling,
    datamodeling,
    finite_or_0,
    mean_over,
    slope,
    wrong_labels_auc,
)

Row = dict[str, Any]


def measured(session: Session, cell: Foretold, design: Design) -> Iterator[Row]:
    """One row for each ranking and measure."""
    tops: dict[str, Measure] = {}
    for name, (loss, scores_QN) in cell.scores.items():
        about = {"cell": cell.cell, "ranking": name, "loss": loss, "queries": len(scores_QN)}
        if design.subsets:
            yield about | _of_halves(session, cell, design, loss, scores_QN, tops)
        if design.shares >= FEWEST:
            jobs = shares(design)
            losses_MQ = _losses(session, cell, jobs, loss)
            found = datamodeling(scores_QN, _kept(session, cell, jobs), losses_MQ)
            what = f"LDS, {100 * design.fraction:g} % left out"
            yield about | _row(what, found, subsets=len(jobs), repeats=1)
        if cell.wrong_N is not None and cell.wrong_N.any():
            found = wrong_labels_auc(scores_QN, cell.wrong_N)
            yield about | _row("AUC, wrong labels lowest", found)
        if design.ones:
            yield from (about | row for row in _of_ones(session, cell, design, loss, scores_QN))
    yield from _of_patches(session, cell, design)
    if design.shares:
        yield _left_out(session, cell, design)


def _losses(
    session: Session, cell: Foretold, jobs: Sequence[Mapping[str, Any]], loss: str
) -> np.ndarray:
    """fp64 [M, Q]."""
    units = [unit_of(session, cell, job) for job in jobs]
    return np.stack([session.arrays(unit, [loss])[loss] for unit in units])


def _kept(session: Session, cell: Foretold, jobs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.stack([kept_rows(session.seed, unit_of(session, cell, job).job) for job in jobs])


def _row(measure: str, found: Measure, **more: Any) -> Row:
    return {"measure": measure, **asdict(found), **more}


def _of_halves(
    session: Session, cell: Foretold, design: Design, loss: str, scores_QN: np.ndarray,
    tops: dict[str, Measure],
) -> Row:  # fmt: skip
    """LDS beside its ceiling; `tops` keeps each loss's."""
    repeats = [halves(design, repeat) for repeat in range(design.repeats)]
    losses_KMQ = np.stack([_losses(session, cell, jobs, loss) for jobs in repeats])
    if loss not in tops:
        tops[loss] = ceiling(losses_KMQ)
    top = tops[loss]
    found = datamodeling(scores_QN, _kept(session, cell, repeats[0]), losses_KMQ.mean(0))
    row = _row("LDS, half left out", found, subsets=design.subsets, repeats=design.repeats)
    row |= {f"ceiling{'' if k == 'value' else f'_{k}'}": v for k, v in asdict(top).items()}
    # A ceiling near 0 is no yardstick: nothing can be measured by trainings that disagree.
    return row | {"of_ceiling": found.value / top.value if top.value >= LEAST_CEILING else None}


def _of_ones(
    session: Session, cell: Foretold, design: Design, loss: str, scores_QN: np.ndarray
) -> Iterator[Row]:
    rows = ones(cell, design)
    whole_Q = _losses(session, cell, [NONE_OUT], loss)[0]
    with np.errstate(invalid="ignore"):  # a loss that is infinite in both
        changes_MQ = _losses(session, cell, [{"without": [r]} for r in rows], loss) - whole_Q
    found = agreement(finite_or_0(scores_QN[:, rows]).T, changes_MQ)
    yield _row("one row left out, Spearman", found, subsets=len(rows), repeats=1)
    fit = slope(scores_QN, np.array(rows), changes_MQ)
    yield _row("loss that a score of 1 means", fit, subsets=len(rows), repeats=1)


def _of_patches(session: Session, cell: Foretold, design: Design) -> Iterator[Row]:
    units, queries = patches(session, cell, design), len(cell.queries)
    if not units:
        return
    random, left = units[0], iter(units[1:])
    for name, (loss, _) in cell.scores.items():
        top_Q: list[float] = []
        while len(top_Q) < queries:
            top_Q += session.arrays(next(left), [loss])[loss].tolist()
        found = patching.gain(np.array(top_Q), session.arrays(random, [loss])[loss])
        what = f"loss less after one step on the top {design.patch} rows, minus random"
        about = {"cell": cell.cell, "ranking": name, "loss": loss, "queries": queries}
        yield about | _row(what, found)


def _left_out(session: Session, cell: Foretold, design: Design) -> Row:
    """What leaving out the highest scored rows adds to the mean loss, beyond random ones; of the
    queries whose losses are all finite."""
    loss, scores_QN = cell.scores[cell.ranking]
    losses_MQ = _losses(session, cell, [highest(cell, design), *shares(design)], loss)
    without, *random_M = losses_MQ[:, np.isfinite(losses_MQ).all(0)].mean(1)
    found = mean_over(without - np.array(random_M))
    what = f"loss added without the top {100 * design.fraction:g} %, minus random"
    about = {"cell": cell.cell, "ranking": cell.ranking, "loss": loss, "queries": len(scores_QN)}
    return about | _row(what, found, subsets=design.shares, repeats=1)
