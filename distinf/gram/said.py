"""What the trained model says of a unit's rows, beside their gradients."""

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import row_ranges
from distinf.gram.session import QUERY, TRAIN, Session
from distinf.gram.spread import each_row_batch, each_share, gathered
from distinf.gram.task import Predicting
from distinf.gram.train import trained_model
from distinf.numerics.precision import float_edges, precision
from distinf.runtime import Unit


def predicted_classes(session: Session, name: str, unit: Unit) -> np.ndarray | None:
    """fp32 [n, classes]: the trained model's probabilities; None where the task tells none."""
    task = session.task(name)
    names = task.classes() if isinstance(task, Predicting) else None
    if names is None or not isinstance(task, Predicting):
        return None
    model, settings = trained_model(session, name), session.settings.gradients
    found = torch.zeros(unit.stop - unit.start, len(names))
    mine: list[int] = []

    def probabilities(places: np.ndarray) -> Tensor:
        batch = session.batch(name, TRAIN, unit.start + places)
        with torch.no_grad(), precision(settings.precision, session.device), float_edges(model):
            return task.probabilities(model, batch).float().cpu()

    for places, values in each_row_batch(session, name, TRAIN, unit, probabilities):
        found[torch.from_numpy(places)] = values
        mine += places.tolist()
    return gathered(session, mine, found).numpy()


def right_queries(session: Session, name: str, unit: Unit) -> np.ndarray | None:
    """bool [n]: which queries the model gets right; None where the task cannot say."""
    model, settings = trained_model(session, name), session.settings.gradients

    def correct(places: np.ndarray) -> np.ndarray | None:
        batch = session.batch(name, QUERY, unit.start + places)
        with torch.no_grad(), precision(settings.precision, session.device), float_edges(model):
            columns = session.task(name).evaluate(model, batch)
        return columns["correct"].cpu().numpy() > 0 if "correct" in columns else None

    rows, mine, says = unit.stop - unit.start, list[int](), True
    found = torch.zeros(rows, dtype=torch.uint8)
    batches = [np.arange(a, b) for a, b in row_ranges(rows, settings.rows_per_batch)]
    for places, told in each_share(session, batches, correct, "gradients.rows_per_batch"):
        mine += places.tolist()
        says &= told is not None
        if told is not None:
            found[torch.from_numpy(places)] = torch.from_numpy(told.astype(np.uint8))
    found = gathered(session, mine, found)
    return found.bool().numpy() if says else None
