"""Queries that come after a Gram run: their gradients, their products, their scores row by row."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from distinf.engine.recipe import Answer
from distinf.errors import InputError
from distinf.gram.scores import configurations, headline, query_scores
from distinf.gram.session import QUERY, Session
from distinf.gram.task import AskedAbout, described_rows
from distinf.tasks.task import telling


def ranking(
    session: Session, name: str, rows: Mapping[str, int]
) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    """Asks.ranking: an estimator and a group of layers, by default the report's."""
    cell = next(iter(session.outline.cells.values()))
    known = sorted({each.rpartition("/")[0] for each in configurations(session.outline, cell)})
    name = name or "/".join(headline(session, cell)[:2])
    if name not in known:
        raise InputError(f"--ranking {name}: use one of {', '.join(known)}")
    return name, ("data", "gradients", "gram"), {"scores": {"estimators": [name.split("/")[0]]}}


def answers(session: Session, name: str) -> Iterator[Answer]:
    """Asks.answers: each cell's."""
    estimator, group = name.split("/", 1)
    for cell in session.outline.cells.values():
        task, ids = session.task(cell.name), np.arange(cell.rows[QUERY])
        queries = [{"row": row} for row in ids.tolist()]
        if isinstance(task, AskedAbout):
            with telling("describe_queries()"):
                queries = [dict(each) for each in task.describe_queries(ids)]
        scores_QN = query_scores(session, cell, estimator, group)
        yield Answer(cell.name, scores_QN, queries, partial(described_rows, task))
