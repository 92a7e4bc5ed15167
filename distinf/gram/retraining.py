"""Training a cell again on some of its rows, and what its queries' losses are then."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from distinf.engine.recipe import Draws, Foretold, Trained
from distinf.engine.stage import Stage
from distinf.errors import InputError
from distinf.gram.actions import flipped_rows
from distinf.gram.asking import query_scores
from distinf.gram.blocks import ALL
from distinf.gram.configurations import configurations, headline
from distinf.gram.ranking import free_rankings
from distinf.gram.session import QUERY, TRAIN, Session
from distinf.gram.task import Reseeded
from distinf.gram.train import checked_fit, trained_model, with_weights
from distinf.microbatch import each_part
from distinf.numerics.precision import float_edges, precision

NAME = "retrain"


def foretold(session: Session) -> Iterator[Foretold]:
    """Evaluates.foretold: every estimator in the widest group of layers that it has, and the
    rankings that cost nothing, which say the same of every query."""
    for cell in session.outline.cells.values():
        groups: dict[str, str] = {}
        for name in configurations(session.outline, cell):
            estimator, group, _ = name.split("/")
            if group == ALL or estimator not in groups:
                groups[estimator] = group
        loss = next(iter(session.task(cell.name).losses))
        scores = {
            f"{estimator}/{group}": (loss, query_scores(session, cell, estimator, group))
            for estimator, group in groups.items()
        }
        shape_QN = (cell.rows[QUERY], cell.rows[TRAIN])
        for name, values_N in free_rankings(session, cell).items():
            scores[name] = (loss, np.broadcast_to(values_N, shape_QN))
        estimator, wrong_N = headline(session, cell)[0], flipped_rows(session, cell.name)
        ranking = f"{estimator}/{groups[estimator]}"
        queries = np.arange(cell.rows[QUERY])
        costs = {name: _cost(name) * sum(shape_QN) for name in scores}
        yield Foretold(cell.name, cell.rows[TRAIN], scores, ranking, queries, wrong_N, costs)


def _cost(ranking: str) -> float:
    """Foretold.costs, of one row: one pass of gradients, whatever is made of them; a forward pass,
    a third of it; or what training noted by the way, and words alone."""
    if ranking in ("loss over epochs", "bm25"):
        return 0.0
    return 1 / 3 if ranking == "own loss" or ranking.startswith("embedding") else 1.0


def check(session: Session, draws: Draws) -> None:
    """InputError for a cell that cannot be trained, or not by other draws."""
    if session.settings.train.deepspeed:
        raise InputError(
            "evaluate: it trains on one device, and this run trained on several (train.deepspeed); "
            "evaluate a run without it"
        )
    for name, cell in session.outline.cells.items():
        if not cell.trained:
            raise InputError(
                f"evaluate: this task cannot be trained{f' ({name})' if name else ''}: it has no "
                "fit(); a run of the spectral recipe trains any task"
            )
        if draws.seed and not isinstance(session.task(name), Reseeded):
            raise InputError(
                "evaluate: this task has no reseeded(), so it cannot train the same rows "
                "twice; take --repeats 1, without a ceiling"
                + (", and leave out --independent" if draws.own_start else "")
            )


def passed(session: Session, cell: str, kept: int) -> float:
    """Evaluates.passed."""
    return float(session.settings.train.epochs * kept)


def losses(
    session: Session, cell: str, kept: np.ndarray, draws: Draws, tell: Callable[[float], None]
) -> Mapping[str, np.ndarray]:
    """Evaluates.losses: each loss [queries] of the model fitted to the rows `kept`."""
    task: Any = session.task(cell)
    settings = session.settings.train
    if draws.seed:
        task = task.reseeded(draws.seed, draws.own_start)
    fit = task.fit(kept, settings, session.device, tell)
    checked_fit(fit, settings.selected_epoch)
    model = with_weights(session, cell, fit.weights)
    found: dict[str, list[np.ndarray]] = {name: [] for name in task.losses}

    def measured(ids: np.ndarray) -> dict[str, np.ndarray]:
        batch = session.batch(cell, QUERY, ids)
        with torch.no_grad(), precision("float32", session.device), float_edges(model):
            return {n: loss(model, batch).double().cpu().numpy() for n, loss in task.losses.items()}

    queries, most = np.arange(session.cell(cell).rows[QUERY]), settings.evaluation_batch
    for _, values in each_part(queries, measured, "train.evaluation_batch", most):
        for name in found:
            found[name].append(values[name])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def trained(session: Session, cell: str) -> Trained:
    """Evaluates.trained."""
    return Trained(
        trained_model(session, cell), session.settings.train.lr, session.task(cell).losses,
        lambda rows: session.batch(cell, TRAIN, rows),
        lambda queries: session.batch(cell, QUERY, queries),
    )  # fmt: skip


STAGE = Stage(NAME, "training on subsets", needs=("train",))
