"""How far a ranking hangs on an estimator's damping: at a tenth and at ten times of it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from distinf.gram.scores import COMPARED, cell_units
from distinf.gram.session import QUERY, Cell, Session
from distinf.gram.stored_gradients import finite_rows
from distinf.gram.tiles import FACTORS
from distinf.numerics.metrics import spearman

NAMES = dict(zip(FACTORS, ("λ / 10", "10 λ"), strict=True))


def sensitivity(session: Session, cell: Cell) -> Iterator[dict[str, Any]]:
    """By estimator and factor: Spearman of the first queries' scores with those at the damping
    itself, mean and lowest, over the blocks of the first group; nan where a damping is not allowed,
    none of a run from before they were stored."""
    for estimator, scores_FMN in _compared(session, cell).items():
        finite_M = finite_rows(session, cell.name, QUERY)[: scores_FMN.shape[1]]
        own_MN, *others = scores_FMN[:, finite_M]
        for factor, other_MN in zip(FACTORS, others, strict=True):
            told = [_agreement(*pair) for pair in zip(own_MN, other_MN, strict=True)]
            row: dict[str, Any] = {
                "cell": cell.name,
                "estimator": estimator,
                "factor": NAMES[factor],
            }
            row |= {"queries": len(told), "spearman": float(np.mean(told or [np.nan]))}
            yield row | {"least": min(told, default=float("nan"))}


def _compared(session: Session, cell: Cell) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for unit in cell_units(session.settings, cell):
        for name, values in session.arrays(unit).items():
            kind, _, estimator = name.partition(".")
            if kind == COMPARED:
                found[estimator] = found.get(estimator, 0.0) + values
    return found


def _agreement(own_N: np.ndarray, other_N: np.ndarray) -> float:
    if len(own_N) < 2 or not np.isfinite(other_N).all():
        return float("nan")
    return spearman(torch.from_numpy(own_N), torch.from_numpy(other_N))
