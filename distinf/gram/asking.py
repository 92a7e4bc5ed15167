"""Queries that come after a Gram run, and candidates: their gradients, their products, their scores
row by row."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from distinf.engine.recipe import AS_IF_ADDED, Answer
from distinf.errors import InputError
from distinf.gram.block_products import joint_solve, members
from distinf.gram.candidates import candidate_scores, refuse_estimator
from distinf.gram.configurations import configurations, headline
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.settings import JOINT
from distinf.gram.stored_gradients import finite_rows
from distinf.gram.task import AskedAbout, described_rows
from distinf.tasks.task import error_context


def ranking(
    session: Session, name: str, rows: Mapping[str, int] | None, of_candidates: bool
) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    """Asks.ranking: an estimator and a group of layers, by default the report's."""
    cell = next(iter(session.outline.cells.values()))
    known = sorted({each.rpartition("/")[0] for each in configurations(session.outline, cell)})
    name = name or "/".join(headline(session, cell)[:2])
    if name not in known:
        raise InputError(f"--ranking {name}: use one of {', '.join(known)}")
    estimator = name.split("/")[0]
    if of_candidates:
        refuse_estimator(estimator)
    if rows is None:
        return name, (), {}
    return name, ("data", "gradients", "gram"), {"scores": {"estimators": [estimator]}}


def answers(session: Session, name: str) -> Iterator[Answer]:
    """Asks.answers: each cell's."""
    for cell in session.asked.outline.cells.values():
        yield answer(session, cell, name)


def answer(session: Session, cell: Cell, name: str) -> Answer:
    """A cell's; `name` is estimator/group."""
    task, ids = session.asked.task(cell.name), np.arange(cell.rows[QUERY])
    queries = [{"row": row} for row in ids.tolist()]
    if isinstance(task, AskedAbout):
        with error_context("describe_queries()"):
            queries = [dict(each) for each in task.describe_queries(ids)]
    rows = partial(described_rows, session.task(cell.name))
    if session.of_candidates:
        scores_QM = candidate_scores(session, session.cell(cell.name))
        return Answer(cell.name, scores_QM, queries, rows, *AS_IF_ADDED)
    scores_QN = query_scores(session, cell, *name.split("/", 1))
    return Answer(cell.name, scores_QN, queries, rows)


def query_scores(session: Session, cell: Cell, estimator: str, group: str) -> np.ndarray:
    """fp64 [Q, N] by the gram stage's products: the mean over the group's blocks, low =
    detrimental; NaN where a training row or a query is quarantined."""
    finite_N = finite_rows(session, cell.name, TRAIN)
    finite_Q = finite_rows(session, cell.name, QUERY)
    queries = cell.rows[QUERY]
    if estimator == JOINT:
        total_QN = joint_solve(session, cell, group).scores_QN
    else:
        total_QN = torch.zeros(queries, int(finite_N.sum()), dtype=torch.float64)
        for parts in members(session, cell, group):
            total_QN += parts.scores(estimator, parts.cross(0, queries), 0, queries)
        total_QN /= len(cell.groups[group])
    found = np.full((queries, len(finite_N)), np.nan)
    found[np.ix_(finite_Q, finite_N)] = total_QN.numpy()[finite_Q]
    return found
