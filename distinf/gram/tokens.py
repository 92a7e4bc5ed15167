"""Stage tokens: of the rows that a query ranks first and last, what each token adds to the product
of the row's gradient with the query's.

The gradients are the trained model's, in all blocks but an embedding. Sign: a share > 0 means that
training on the token makes the query's loss smaller. Shares of a row sum to its product, TracIn's
score; another estimator may have chosen the row.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from distinf.engine.recipe import extreme_rows
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.gram.asking import answer
from distinf.gram.configurations import BETWEEN, headline
from distinf.gram.session import QUERY, TRAIN, Cell, Outline, Session, layers_of, units_of_cells
from distinf.gram.settings import StageSettings
from distinf.gram.task import Tokenised, described_rows
from distinf.gram.train import trained_model
from distinf.numerics.elements import element_shares
from distinf.runtime import Cost, Unit
from distinf.runtime.ledger import Record
from distinf.tasks.task import error_context

NAME = "tokens"
PASSES = 5.0  # forward passes of a derivative along a direction


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    return units_of_cells(outline, cell_units, _cost)


def cell_units(settings: StageSettings, cell: Cell) -> list[Unit]:
    """One for each query; none where none are asked for."""
    report = settings.report
    queries = range(cell.rows[QUERY] if report.tokens else 0)
    job = {"cell": cell.name, "rows": report.per_query}
    return [Unit(NAME, cell.keys[NAME], job={**job, "query": query}) for query in queries]


def _cost(outline: Outline, cell: Cell, unit: Unit) -> Cost:
    shapes, passes = cell.shapes, 3.0 + PASSES * 2 * unit.job["rows"]
    return Cost(
        flops=shapes.flops_per_sample * passes,
        memory=8.0 * cell.rows[TRAIN] * cell.rows[QUERY],
        device={
            "weights": 2 * shapes.model_bytes,
            "activations": 2 * shapes.activation_bytes_per_sample,
        },
        staged=shapes.model_bytes,
        work={"forward": passes},
        loaded=cell.loaded,
    )


def check(session: Session) -> None:
    """InputError for tasks whose rows have no tokens."""
    task = next(iter(session.tasks.values()))
    if session.settings.report.tokens and not isinstance(task, Tokenised):
        raise InputError(
            "report.tokens: needs a task with parts(model, batch) and tokens(split, row), as sft; "
            "leave it out"
        )


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: places and rows int64 [R]; shares fp64 [R, L], NaN where a token is not scored."""
    cell, task = session.cell(unit.job["cell"]), session.task(unit.job["cell"])
    name = BETWEEN.join(headline(session, cell)[:2])
    ranked = session.cached((NAME, cell.name), lambda: answer(session, cell, name).scores_QN)
    places, rows = extreme_rows(ranked[unit.job["query"]], unit.job["rows"])
    model = trained_model(session, cell.name)
    layout, loss = layers_of(model, session.settings.gradients), next(iter(task.losses.values()))
    asked = session.batch(cell.name, QUERY, np.array([unit.job["query"]]))
    with torch.enable_grad():
        wanted = [model.get_parameter(each) for each in layout.names]
        slopes = torch.autograd.grad(loss(model, asked).sum(), wanted)
    direction_P = torch.cat([slope.flatten() for slope in slopes])
    assert isinstance(task, Tokenised)
    found = []
    for row in rows:
        batch = session.batch(cell.name, TRAIN, np.array([row]))
        shares = element_shares(model, task.parts, batch, layout, direction_P)
        found.append(shares.double().flatten().cpu().numpy())
    shares_RL = np.full((len(rows), max(map(len, found), default=0)), np.nan)
    for place, each in enumerate(found):
        shares_RL[place, : len(each)] = each
    arrays = {"places": places, "rows": rows, "shares": shares_RL}
    return session.commit(unit, attempt, arrays, may_hold_nan=["shares"])


def shares_of(session: Session, cell: Cell) -> Iterator[dict[str, Any]]:
    """A row for each scored token: the query, the training row and its place, where the token
    stands in it (from 0), its text and its share."""
    task: Any = session.task(cell.name)
    for unit in cell_units(session.settings, cell):
        stored = session.arrays(unit)
        known = described_rows(task, stored["rows"])
        with error_context("tokens()"):
            texts = [task.tokens(TRAIN, row) for row in stored["rows"].tolist()]
        for k, place in enumerate(stored["places"].tolist()):
            for position in np.flatnonzero(np.isfinite(stored["shares"][k])).tolist():
                yield {
                    "cell": cell.name, "query_row": unit.job["query"], "place": place,
                    "row": known[k]["row"], "position": position,
                    "token": texts[k][position], "share": float(stored["shares"][k, position]),
                }  # fmt: skip


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "shares of tokens", needs=("scores",), reads=("report.ranking",),
    uncounted=("report.tokens", "report.per_query", "scores", "gradients"), units=units, run=run,
)  # fmt: skip
