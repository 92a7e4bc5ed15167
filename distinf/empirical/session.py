"""A run of the empirical recipe as one process sees it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distinf.empirical.settings import TuneSettings
from distinf.empirical.task import EVALUATION, TRAIN, Based, Parted, Worded, places, relations
from distinf.engine import session as engine_session
from distinf.tasks.task import error_context


@dataclass(frozen=True)
class Outline(engine_session.Outline):
    """All that the list of units depends on.

    measured_N  how many evaluation rows are measured after each training row: those of its matrix
                and draw, counted by their lengths in rows of the mean length
    alike_N     how many training rows are of its matrix and draw, with it
    evaluated   all evaluation rows, so counted
    most        evaluation rows of the largest matrix
    is_based    whether the task trains a base of its own
    steps_often whether any row is tuned on in more than one step
    """

    measured_N: np.ndarray
    alike_N: np.ndarray
    evaluated: float
    most: int
    is_based: bool
    steps_often: bool

    @property
    def loaded(self) -> dict[str, float]:
        """Cost.loaded: the model as the task has it, and the base if it is trained here."""
        based = 4.0 * self.shapes.parameters * self.is_based
        return {"model": self.shapes.model_bytes, "base": based}


class Session(engine_session.Session):
    """Its outline says how much is measured after each row."""

    @cached_property
    def outline(self) -> Outline:
        mine, others = (places(relations(self.task, split)) for split in (TRAIN, EVALUATION))
        lengths_E = _lengths(self.task, len(others))
        measured: Counter[tuple[str, int]] = Counter()
        for place, length in zip(others, lengths_E.tolist(), strict=True):
            measured[place] += length
        counts: Mapping[tuple[str, int], int] = Counter(mine)
        plain = super().outline
        return Outline(
            plain.settings, plain.keys, plain.rows, plain.shapes,
            measured_N=np.array([measured[place] for place in mine]),
            alike_N=np.array([counts[place] for place in mine]),
            evaluated=float(lengths_E.sum()),
            most=max(Counter(others).values(), default=0),
            is_based=isinstance(self.task, Based),
            steps_often=_steps_often(plain.settings.tune, self.task, len(mine)),
        )  # fmt: skip


def _steps_often(tune: TuneSettings, task: object, rows: int) -> bool:
    if tune.steps > 1 or tune.leave_one_out:
        return True
    return isinstance(task, Parted) and any(len(task.parts(row)) > 1 for row in range(rows))


def _lengths(task: object, rows: int) -> np.ndarray:
    """[E] of the evaluation rows, in means; where the task has no words they are alike."""
    if not isinstance(task, Worded):
        return np.ones(rows)
    with error_context("words('evaluation')"):
        lengths_E = np.diff(task.words(EVALUATION)[1])
    return lengths_E / max(float(lengths_E.mean()), 1.0)
