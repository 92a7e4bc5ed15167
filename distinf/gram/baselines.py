"""Stage baselines: what finds wrong rows without influence, or with a row's own alone.

texts  of a cell of texts: by the embeddings of its model before training and by its words, each
       fp64 [N], high = likely wrong. Losses of the given label by a regression on embeddings: out
       of fold, the same with the queries among the rows that are fitted, and fitted to the queries
       alone; the share of the nearest rows that have another label; minus the agreement with the
       queries in words (BM25). And which queries [Q] the regression on the training rows gets right
self   g (F + lambda)^-1 g of every training row [N], F the empirical Fisher matrix of all dense
       blocks together: of the stored products, where they are all there

Shape legend: N training rows, Q queries, P entries of a block.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import draw
from distinf.engine.stage import Stage, pooled
from distinf.gram.blocks import SPARSE
from distinf.gram.session import QUERY, TRAIN, Cell, Outline, Session, units_of_cells
from distinf.gram.settings import JOINT, StageSettings
from distinf.gram.solved import solving
from distinf.gram.spread import each_row_batch
from distinf.gram.stored_gradients import columns as gradient_columns
from distinf.gram.stored_gradients import dense_rows, finite_rows, says_right
from distinf.gram.task import OfTexts
from distinf.gram.tiles import narrow, self_gram, slab_units
from distinf.gram.train import with_weights
from distinf.numerics import text_baselines
from distinf.numerics.estimators import fisher
from distinf.numerics.label_noise import log_odds_gain
from distinf.numerics.precision import float_edges, precision
from distinf.runtime import Cost, Unit
from distinf.runtime.ledger import Record
from distinf.tasks.task import error_context

NAME = "baselines"
TEXTS, SELF = "texts", "self"
FOLDS = 5
MOST_ROWS = 5_000  # for an N x N solve that no estimator asks for
# Each a column of the ranked rows.
OF_TEXTS = ("embedding_loss", "embedding_loss_trusted_too", "embedding_loss_trusted_only",
            "embedding_neighbours", "bm25")  # fmt: skip
SELF_INFLUENCE = "self_influence"
QUERIES_RIGHT = "embedding_queries_right"


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    return units_of_cells(outline, cell_units, _cost)


def cell_units(settings: StageSettings, cell: Cell) -> list[Unit]:
    """A cell's units: of its texts, if it has any, and of its products, if all are there."""
    found = [_unit(cell, TEXTS)] if cell.of_texts else []
    if _has_products(settings, cell):
        found.append(_unit(cell, SELF, damping=settings.scores.damping.get(JOINT)))
    return found


def _unit(cell: Cell, of: str, **more: Any) -> Unit:
    return Unit(NAME, cell.asked_keys[NAME], job={"cell": cell.name, "of": of, **more})


def _has_products(settings: StageSettings, cell: Cell) -> bool:
    """Whether all products of training rows with each other are stored, or cheap to make."""
    if JOINT not in settings.scores.estimators and cell.rows[TRAIN] > MOST_ROWS:
        return False
    return all(
        narrow(cell, block) or slab_units(settings, cell, "self", block.slab)
        for block in cell.blocks.dense
    )


def _cost(outline: Outline, cell: Cell, unit: Unit) -> Cost:
    rows, every = cell.rows[TRAIN], sum(cell.rows.values())
    if unit.job["of"] == SELF:
        flops = rows**3 + sum(2.0 * rows**2 * b.width for b in cell.blocks.dense if narrow(cell, b))
        read = 4.0 * rows**2 * sum(not narrow(cell, b) for b in cell.blocks.dense)  # half of each
        return Cost(flops=flops, bytes=8.0 * rows, memory=4 * 8.0 * rows**2, read=read)
    shapes, at_once = cell.shapes, outline.settings.gradients.rows_per_batch
    return Cost(
        flops=shapes.flops_per_sample * every,
        bytes=8.0 * rows * len(OF_TEXTS),
        memory=3 * 8.0 * rows**2,
        device={
            "weights": shapes.model_bytes,
            "activations": at_once * shapes.activation_bytes_per_sample,
        },
        staged=shapes.model_bytes,
        work={"forward": every},
        loaded=cell.loaded,
    )


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays by name, each fp64 [N], NaN where a row has none; and QUERIES_RIGHT bool [Q]."""
    cell = session.cell(unit.job["cell"])
    if unit.job["of"] == SELF:
        arrays = {SELF_INFLUENCE: _self_influence(session, cell, unit.job["damping"])}
    else:
        arrays = _of_texts(session, cell)
    return session.commit(unit, attempt, arrays, may_hold_nan=[SELF_INFLUENCE])


def columns(session: Session, cell: Cell) -> Mapping[str, np.ndarray]:
    """What is stored of a cell; nothing of a run from before there were baselines."""
    found: dict[str, np.ndarray] = {}
    for unit in cell_units(session.settings, cell):
        if session.ledger(NAME).get(unit) is not None:
            stored = session.arrays(unit)
            found |= {name: stored[name] for name in (*OF_TEXTS, SELF_INFLUENCE) if name in stored}
    return found


def weights(session: Session, cell: Cell) -> tuple[float, float] | None:
    """Of the trained model and of the regression on embeddings, by what each gets right of the
    queries (`log_odds_gain`); None where not both can say."""
    task, unit = session.task(cell.name), _unit(cell, TEXTS)
    if not cell.of_texts or session.ledger(NAME).get(unit) is None:
        return None
    if not says_right(session, cell.name):
        return None
    assert isinstance(task, OfTexts)
    labels_Q = np.asarray(task.labels(QUERY))
    most = int(np.bincount(labels_Q).max())
    right = (
        gradient_columns(session, cell.name, QUERY, "correct"),
        session.arrays(unit, [QUERIES_RIGHT])[QUERIES_RIGHT],
    )
    model, regression = (log_odds_gain(int(r.sum()), most, len(labels_Q)) for r in right)
    return model, regression


# -- of texts ------------------------------------------------------------------------------


def _of_texts(session: Session, cell: Cell) -> dict[str, np.ndarray]:
    task = session.task(cell.name)
    assert isinstance(task, OfTexts)
    with error_context("embeddings(), words() or labels()"):
        train_ND, query_QD = (_embedded(session, cell, split) for split in (TRAIN, QUERY))
        labels_N, asked_Q = (torch.from_numpy(task.labels(split)) for split in (TRAIN, QUERY))
        texts, queries = (task.words(split) for split in (TRAIN, QUERY))
    classes, rows = len(task.classes() or ()), cell.rows[TRAIN]
    folds_N = torch.from_numpy(draw(session.seed, f"folds {cell.name}", rows, None) % FOLDS)
    trusted = query_QD, asked_Q
    similar_QN = text_baselines.bm25(
        texts, queries, 1 + max(int(ids.max(initial=0)) for ids, _ in (texts, queries))
    )
    agreeing_N = text_baselines.agreement(torch.from_numpy(similar_QN), asked_Q, labels_N, classes)
    judged = text_baselines.out_of_fold_losses
    found = (
        judged(train_ND, labels_N, folds_N, classes),
        judged(train_ND, labels_N, folds_N, classes, trusted),
        text_baselines.regression_losses(*trusted, train_ND, labels_N, classes),
        text_baselines.neighbours_apart(train_ND, labels_N),
        -agreeing_N,
    )
    told = text_baselines.regression_logits(train_ND, labels_N, query_QD, classes).argmax(1)
    arrays = {name: values.numpy() for name, values in zip(OF_TEXTS, found, strict=True)}
    return {**arrays, QUERIES_RIGHT: (told == asked_Q).numpy()}


def _embedded(session: Session, cell: Cell, split: str) -> Tensor:
    """fp64 [rows, D]; what is not finite is 0."""
    task, parts, order = session.task(cell.name), [], []
    assert isinstance(task, OfTexts)
    model = session.latest("untrained", cell.name, lambda: with_weights(session, cell.name, {}))
    whole = Unit(NAME, "", 0, cell.rows[split])

    def embedded(places: np.ndarray) -> Tensor:
        batch, kind = session.batch(cell.name, split, places), session.settings.gradients.precision
        with torch.no_grad(), precision(kind, session.device), float_edges(model):
            return task.embeddings(model, batch).double().cpu()

    for places, found in each_row_batch(session, cell.name, split, whole, embedded):
        parts.append(found)
        order += places.tolist()
    return torch.cat(parts)[torch.tensor(order).argsort()].nan_to_num(0.0, 0.0, 0.0)


# -- of products ---------------------------------------------------------------------------


def _self_influence(session: Session, cell: Cell, damping: float | None) -> np.ndarray:
    finite_N = finite_rows(session, cell.name, TRAIN)
    rows = int(finite_N.sum())
    total_NN = torch.zeros(rows, rows, dtype=torch.float64)
    for slab in cell.blocks.slabs:
        if slab != SPARSE:
            total_NN += _gram(session, cell, slab, finite_N)
    found_N = np.full(len(finite_N), np.nan)
    with solving(JOINT, "all"):
        found_N[finite_N] = fisher.self_influence_of_gram(total_NN, damping).numpy()
    return found_N


def _gram(session: Session, cell: Cell, slab: int, finite_N: np.ndarray) -> Tensor:
    """fp64 [N, N] of the finite rows, over the slab's blocks: stored products, or of blocks without
    them the gradients'."""
    if slab_units(session.settings, cell, "self", slab):
        total_NN = np.zeros((int(finite_N.sum()),) * 2)
        for place in range(len(cell.blocks.of(slab))):
            total_NN += self_gram(session, cell, slab, place)[np.ix_(finite_N, finite_N)]
        return torch.from_numpy(total_NN)
    grads_NP = dense_rows(session, cell.name, TRAIN, slab, 0, cell.rows[TRAIN])[finite_N].double()
    return grads_NP @ grads_NP.T


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "baselines", needs=("gram",), reads=("seed",),
    uncounted=("scores", "gradients"), units=units, run=run,
)  # fmt: skip
