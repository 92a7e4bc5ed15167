"""Every training row of a cell ranked; rankings without influence beside it; and what the model
says of the labels itself.

The own loss and the gradient's norm of every row are stored by the way; on many tasks they find
wrong labels as well as any estimator, so every report shows them, and what else the run has
(baselines.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distinf.gram import baselines, tiles
from distinf.gram.actions import flipped_rows, lowest_first
from distinf.gram.blocks import SPARSE
from distinf.gram.configurations import all_scores, headline
from distinf.gram.gradients import PREDICTED
from distinf.gram.session import TRAIN, Cell, Session
from distinf.gram.stored_gradients import columns, finite_rows, split_units
from distinf.gram.task import Predicting, described_rows
from distinf.gram.train import ROW_LOSSES, stored_fit
from distinf.numerics.label_noise import likeliest_other, normal_scores, wrong_labels
from distinf.tasks.notes import with_notes

OWN_LOSS, GRADIENT_NORM = "own_loss", "gradient_norm"
MEAN_LOSS = "loss_over_epochs"
COMBINED = "combined"
FLIPPED, SUGGESTED = "flipped", "suggested_label"


@dataclass(frozen=True)
class Suggested:
    """Of a cell's training rows: the class that each has if its label is wrong; about how many
    are."""

    labels: tuple[str, ...]
    wrong: int


def own_columns(session: Session, cell: Cell) -> dict[str, np.ndarray]:
    """fp64 [N] each, high = likely wrong: a row's own loss, the norm of its gradient in all trained
    blocks (of projected ones the projection's), its loss in training, mean over epochs, and what
    the stage baselines has of it.

    NaN where the gradient is not finite.
    """
    return session.cached(("own", cell.name), lambda: _own_columns(session, cell))


def _own_columns(session: Session, cell: Cell) -> dict[str, np.ndarray]:
    squares_N = np.zeros(cell.rows[TRAIN])
    for slab in cell.blocks.slabs:
        if slab != SPARSE:
            squares_N += tiles.tiled(session, cell, slab, "cross", "sqnorm").sum(0)
    finite_N = finite_rows(session, cell.name, TRAIN)
    found = {
        OWN_LOSS: columns(session, cell.name, TRAIN, "loss"),
        GRADIENT_NORM: np.where(finite_N, np.sqrt(squares_N), np.nan),
    }
    noted = stored_fit(session, cell.name).get(ROW_LOSSES)
    if noted is not None:
        found[MEAN_LOSS] = noted.astype(np.float64).mean(0)
    return found | dict(baselines.columns(session, cell))


def free_rankings(session: Session, cell: Cell) -> Mapping[str, np.ndarray]:
    """By name, scores fp64 [N] as influence has them: the lowest are most likely wrong."""
    return {name.replace("_", " "): -values for name, values in own_columns(session, cell).items()}


def combined(session: Session, cell: Cell) -> np.ndarray:
    """fp64 [N], low = likely wrong: the headline's scores and losses, by the normal scores of their
    ranks.

    The mean of the headline's and of minus the own loss, which are the trained model's; where there
    is a regression on embeddings, with minus its loss (out of fold, the queries among the fitted
    rows), weighted by what model and regression get right of the queries. No wrong label has a say.
    """
    own = own_columns(session, cell)
    model_N = _normal(all_scores(session, cell)[headline(session, cell)]) + _normal(-own[OWN_LOSS])
    weights = baselines.weights(session, cell)
    if weights is None or not sum(weights):
        return model_N / 2
    regression_N = _normal(-own[baselines.OF_TEXTS[1]])
    return (weights[0] * model_N / 2 + weights[1] * regression_N) / sum(weights)


def _normal(scores_N: np.ndarray) -> np.ndarray:
    return normal_scores(torch.from_numpy(lowest_first(scores_N))).numpy()


def suggested(session: Session, cell: Cell) -> Suggested | None:
    """None for a task that does not tell classes, or a run that has not stored what it told."""
    task = session.task(cell.name)
    names = task.classes() if isinstance(task, Predicting) else None
    wanted = split_units(session.settings, cell, TRAIN)
    if names is None or not all(session.record(u)["summary"].get(PREDICTED) for u in wanted):
        return None
    assert isinstance(task, Predicting)
    found = torch.from_numpy(columns(session, cell.name, TRAIN, PREDICTED))
    given = torch.from_numpy(np.asarray(task.given(), dtype=np.int64))
    labels = likeliest_other(found, given).tolist()
    wrong = round(wrong_labels(found, given))
    return Suggested(tuple(str(names[place]) for place in labels), wrong)


def cell_ranking(session: Session, cell: Cell) -> list[dict[str, Any]]:
    """Every training row of a cell, lowest score first: its place, its number in the data, score,
    own loss, gradient norm, what the task can say of it, the label to put in place of a wrong
    one, where the task tells classes, and last the further baselines and the combined score. A row
    without a score (its gradient is not finite) comes first with an empty one."""
    scores_N = all_scores(session, cell)[headline(session, cell)]
    order = np.argsort(lowest_first(scores_N), kind="stable")
    noise = flipped_rows(session, cell.name)
    own, labels = dict(own_columns(session, cell)), suggested(session, cell)
    own[COMBINED] = combined(session, cell)
    told_of = described_rows(session.task(cell.name), order)
    found = []
    for place, (row, told) in enumerate(zip(order.tolist(), told_of, strict=True), 1):
        line = {"place": place, "score": float(scores_N[row])}
        line |= {name: float(own[name][row]) for name in (OWN_LOSS, GRADIENT_NORM)}
        line |= {} if noise is None else {FLIPPED: bool(noise[row])}
        line |= {} if labels is None else {SUGGESTED: labels.labels[row]}
        further = {name: float(values[row]) for name, values in own.items() if name not in line}
        kept = (FLIPPED, SUGGESTED, *further)
        found.append(with_notes(line, told, kept=kept) | further)
    return found
