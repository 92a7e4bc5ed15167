"""TracIn at one checkpoint: the dot product of gradients.

Shape legend: Q queries, N training samples.
"""

from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from distinf.numerics.estimators.register import Estimator


@dataclass(frozen=True)
class TracInSettings:
    """learning_rate: the factor of the first-order step that the score predicts."""

    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        if not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate={self.learning_rate} must be a finite number > 0")


def scores(cross_QN: Tensor, settings: TracInSettings | None = None) -> Tensor:
    """[Q, N]: learning_rate * g_q . g_i (Vitel and Chhabra, Eq. 3)."""
    settings = settings or TracInSettings()
    return settings.learning_rate * cross_QN


ESTIMATOR = Estimator(
    "tracin", TracInSettings, lambda found, settings: scores(found.cross_QN, settings), by_row=True
)
