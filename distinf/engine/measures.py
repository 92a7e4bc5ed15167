"""What trainings on some of the rows say of scores: a row for each ranking and measure.

Shape legend: Q queries, N training rows, M subsets, K trainings of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from distinf.engine import patching
from distinf.engine.patching import PATCH
from distinf.engine.recipe import Foretold
from distinf.engine.session import Session
from distinf.engine.trainings import (
    AGAIN,
    NONE_OUT,
    Design,
    fixed,
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
COST = "gradients"  # that the scores took, beyond training
TRAINED = "gradients_trained"  # that the trainings and steps took which they are held against
CEILING, OF_CEILING = "ceiling", "of_ceiling"
CEILING_BY = "ceiling_by"  # how it is known, or why it is not
TWICE = "by how far trainings under other seeds agree"
ONCE = "unknown, since each was trained once"
FIXED = "1, since seed and order are held and training again ends at the same bits"
UNREPEATED = "unknown, since training again on all rows ends at other losses"
OWN_ORDER = "unknown, since rows that are left out change the order of all others"


def measured(session: Session, cell: Foretold, design: Design) -> Iterator[Row]:
    """One row for each ranking and measure."""
    tops: dict[str, Measure] = {}
    for name, (loss, scores_QN) in cell.scores.items():
        about = _about(cell, name)
        if design.subsets:
            yield about | _of_halves(session, cell, design, loss, scores_QN, tops)
        if design.shares >= FEWEST:
            jobs = shares(design)
            losses_MQ = _losses(session, cell, jobs, loss)
            found = datamodeling(scores_QN, _kept(session, cell, jobs), losses_MQ)
            row = _row(f"LDS, {100 * design.fraction:g} % left out", found, subsets=len(jobs))
            row |= {"repeats": 1, TRAINED: _passed(session, cell, jobs)}
            yield about | row | _fixed(session, cell, design, loss, found)
        if cell.wrong_N is not None and cell.wrong_N.any():
            found = wrong_labels_auc(scores_QN, cell.wrong_N)
            yield about | _row("AUC, wrong labels lowest", found, **{TRAINED: 0.0})
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


def _about(cell: Foretold, ranking: str) -> Row:
    loss, scores_QN = cell.scores[ranking]
    about = {"cell": cell.cell, "ranking": ranking, "loss": loss, "queries": len(scores_QN)}
    return about | {COST: cell.costs.get(ranking)}


def _row(measure: str, found: Measure, **more: Any) -> Row:
    return {"measure": measure, **asdict(found), **more}


def _passed(session: Session, cell: Foretold, jobs: Sequence[Mapping[str, Any]]) -> float:
    """Gradients of a row that these trainings took."""
    evaluates = session.recipe.evaluates
    assert evaluates is not None
    kept = _kept(session, cell, jobs).sum(1).tolist()
    return sum(evaluates.passed(session, cell.cell, rows) for rows in kept)


def _fixed(
    session: Session, cell: Foretold, design: Design, loss: str, found: Measure
) -> dict[str, Any]:
    """The ceiling where trainings have one seed and order: 1, if training on all rows again ends
    at the same losses."""
    if not fixed(session, design):
        return {CEILING: None, OF_CEILING: None, CEILING_BY: OWN_ORDER}
    once_Q, again_Q = _losses(session, cell, [NONE_OUT, AGAIN], loss)
    if not np.array_equal(once_Q, again_Q, equal_nan=True):
        return {CEILING: None, OF_CEILING: None, CEILING_BY: UNREPEATED}
    return {CEILING: 1.0, OF_CEILING: found.value, CEILING_BY: FIXED}


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
    row[TRAINED] = sum(_passed(session, cell, jobs) for jobs in repeats)
    row |= {CEILING: top.value, f"{CEILING}_low": top.low, f"{CEILING}_high": top.high}
    row[CEILING_BY] = TWICE if design.repeats > 1 else ONCE
    # A ceiling near 0 is no yardstick: nothing can be measured by trainings that disagree.
    return row | {OF_CEILING: found.value / top.value if top.value >= LEAST_CEILING else None}


def _of_ones(
    session: Session, cell: Foretold, design: Design, loss: str, scores_QN: np.ndarray
) -> Iterator[Row]:
    rows = ones(cell, design)
    jobs = [NONE_OUT, *({"without": [row]} for row in rows)]
    whole_Q, *losses_MQ = _losses(session, cell, jobs, loss)
    with np.errstate(invalid="ignore"):  # a loss that is infinite in both
        changes_MQ = np.array(losses_MQ) - whole_Q
    found = agreement(finite_or_0(scores_QN[:, rows]).T, changes_MQ)
    about = {"subsets": len(rows), "repeats": 1, TRAINED: _passed(session, cell, jobs)}
    row = _row("one row left out, Spearman", found, **about)
    yield row | _fixed(session, cell, design, loss, found)
    fit = slope(scores_QN, np.array(rows), changes_MQ)
    yield _row("loss that a score of 1 means", fit, **about)


def _of_patches(session: Session, cell: Foretold, design: Design) -> Iterator[Row]:
    units, queries = patches(session, cell, design), len(cell.queries)
    if not units:
        return
    random, left = units[0], iter(units[1:])
    for name, (loss, _) in cell.scores.items():
        top_Q: list[float] = []
        stepped = sum(map(len, random.job[PATCH]))
        while len(top_Q) < queries:
            unit = next(left)
            stepped += sum(map(len, unit.job[PATCH]))
            top_Q += session.arrays(unit, [loss])[loss].tolist()
        found = patching.gain(np.array(top_Q), session.arrays(random, [loss])[loss])
        what = f"loss less after one step on the top {design.patch} rows, minus random"
        yield _about(cell, name) | _row(what, found, **{TRAINED: float(stepped)})


def _left_out(session: Session, cell: Foretold, design: Design) -> Row:
    """What leaving out the highest scored rows adds to the mean loss, beyond random ones; of the
    queries whose losses are all finite."""
    loss = cell.scores[cell.ranking][0]
    jobs = [highest(cell, design), *shares(design)]
    losses_MQ = _losses(session, cell, jobs, loss)
    without, *random_M = losses_MQ[:, np.isfinite(losses_MQ).all(0)].mean(1)
    found = mean_over(without - np.array(random_M))
    what = f"loss added without the top {100 * design.fraction:g} %, minus random"
    row = _row(what, found, subsets=design.shares, repeats=1)
    return _about(cell, cell.ranking) | row | {TRAINED: _passed(session, cell, jobs)}
