"""What was measured, as matrices: influence of every row on every evaluation row.

Sign: > 0 where training on the row lowers the evaluation row's loss (the opposite of Eq. 4 of
Matelsky, Ungar and Kording). Shape legend: N rows that are tuned on, E that are evaluated, S
samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from distinf.empirical.stages import EVALUATION, TRAIN, base_units, tuning_units
from distinf.empirical.task import Related
from distinf.engine.session import Session
from distinf.errors import InputError
from distinf.tasks.task import error_context

COLUMNS = ("sample", "group", "level")
CLEAN = ""


@dataclass(frozen=True)
class Matrix:
    """influence_NE, and first_order_NE, None where it was not asked for.

    taken_N  how much of its step each row took. before_E: the losses of the base
    rows     COLUMNS of the tuned rows, and columns of the evaluated ones
    """

    influence_NE: np.ndarray
    first_order_NE: np.ndarray | None
    taken_N: np.ndarray
    before_E: np.ndarray
    rows: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]

    @property
    def levels(self) -> list[str]:
        """Of both, clean first, then as they come."""
        every = [*self.rows["level"].tolist(), *self.columns["level"].tolist()]
        return sorted(dict.fromkeys(every), key=lambda level: level != CLEAN)

    def block(self, trained: str, evaluated: str, first_order: bool = False) -> np.ndarray:
        """[S, S]: samples tuned on at one level by the same samples evaluated at another, in the
        order of their groups; [0, 0] where they are not the same samples."""
        whole = self.first_order_NE if first_order else self.influence_NE
        places = [
            _placed(of, level) for of, level in ((self.rows, trained), (self.columns, evaluated))
        ]
        shared = [sample for sample in places[0] if sample in places[1]]
        if whole is None or len(shared) < 2:
            return np.empty((0, 0))
        i, j = (np.array([place[sample] for sample in shared]) for place in places)
        return whole[np.ix_(i, j)]

    def groups(self, level: str = CLEAN) -> np.ndarray:
        """[S]: the groups of the samples of `block`."""
        found = _placed(self.rows, level)
        other = _placed(self.columns, level)
        return np.array([self.rows["group"][found[s]] for s in found if s in other])


def _placed(columns: Mapping[str, np.ndarray], level: str) -> dict[int, int]:
    """Sample -> its row at that level, by group and then as they come."""
    mine = np.flatnonzero(columns["level"] == level)
    order = mine[np.argsort(columns["group"][mine], kind="stable")]
    return {int(columns["sample"][row]): int(row) for row in order}


def measured(session: Session) -> Matrix:
    """Of a run whose stages are done."""
    before_E = session.arrays(base_units(session.outline)[0][0])["losses"]
    stored = session.rows([unit for unit, _ in tuning_units(session.outline)]).columns()
    rows, columns = (relations(session.task, split) for split in (TRAIN, EVALUATION))
    with np.errstate(invalid="ignore"):
        influence_NE = before_E - stored["losses"]
    return Matrix(influence_NE, stored.get("first_order"), stored["taken"], before_E, rows, columns)


def relations(task: object, split: str) -> dict[str, np.ndarray]:
    """What the task says of a split's rows, whole; each a sample of its own where it says nothing.

    InputError for columns of another length.
    """
    count = task.rows(split)  # type: ignore[attr-defined]
    alone = np.arange(count) if split == TRAIN else -1 - np.arange(count)
    found = {"sample": alone, "group": np.full(count, ""), "level": np.full(count, CLEAN)}
    if isinstance(task, Related):
        with error_context(f"relations('{split}')"):
            told = {name: np.asarray(values) for name, values in task.relations(split).items()}
        odd = [name for name, v in told.items() if name not in COLUMNS or v.shape != (count,)]
        if odd:
            raise InputError(
                f"task: relations('{split}') has {odd[0]!r} of shape {told[odd[0]].shape}; give "
                f"{', '.join(COLUMNS)}, each one value a row"
            )
        found |= told
    return found


def finite(matrix: Matrix) -> Matrix:
    """Without samples whose fine-tuning diverged."""
    kept = np.isfinite(matrix.influence_NE).all(1)
    linear = matrix.first_order_NE
    return replace(
        matrix,
        influence_NE=matrix.influence_NE[kept],
        first_order_NE=None if linear is None else linear[kept],
        taken_N=matrix.taken_N[kept],
        rows={name: values[kept] for name, values in matrix.rows.items()},
    )
