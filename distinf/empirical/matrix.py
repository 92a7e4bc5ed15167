"""What was measured, as matrices: influence of every row on every evaluation row.

Sign: > 0 where training on the row lowers the evaluation row's loss (the opposite of Eq. 4 of
Matelsky, Ungar and Kording). Shape legend: N rows that are tuned on, E that are evaluated, S
samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distinf.empirical import base, tuning
from distinf.empirical.task import CLEAN, EVALUATION, TRAIN, Place, places, relations
from distinf.engine.session import Session


@dataclass(frozen=True)
class Matrix:
    """influence_NE, NaN of rows of another matrix or draw; first_order_NE, None without it.

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

    @property
    def places(self) -> list[Place]:
        """The matrices and their draws, in order."""
        return [*dict.fromkeys(places(self.rows))]

    @property
    def diverged_N(self) -> np.ndarray:
        """bool: a loss that was measured is not finite after it."""
        numbers = {place: k for k, place in enumerate([*places(self.rows), *places(self.columns)])}
        rows, columns = (
            np.array([numbers[place] for place in places(of)]) for of in (self.rows, self.columns)
        )
        asked_NE = rows[:, None] == columns[None]
        return np.asarray((asked_NE & ~np.isfinite(self.influence_NE)).any(1))

    def samples(
        self,
        place: Place = ("", 0),
        trained: Sequence[str] = (CLEAN,),
        evaluated: Sequence[str] = (CLEAN,),
    ) -> list[int]:
        """Those tuned on at each of these levels and evaluated at each of those: by group where
        groups are of several samples, else as they are numbered."""
        found = [_placed(self.rows, level, place) for level in trained]
        found += [_placed(self.columns, level, place) for level in evaluated]
        shared = set(found[0]).intersection(*found)
        group = {sample: str(self.rows["group"][found[0][sample]]) for sample in shared}
        several = len(set(group.values())) < len(group)
        return sorted(shared, key=lambda sample: (group[sample] if several else "", sample))

    def block(
        self,
        trained: str,
        evaluated: str,
        place: Place = ("", 0),
        first_order: bool = False,
        samples: Sequence[int] | None = None,
    ) -> np.ndarray:
        """[S, S]: samples tuned on at one level by the same samples evaluated at another, `samples`
        or all that they share; [0, 0] where these are fewer than two."""
        whole = self.first_order_NE if first_order else self.influence_NE
        shared = self.samples(place, [trained], [evaluated]) if samples is None else samples
        if whole is None or len(shared) < 2:
            return np.empty((0, 0))
        levels = ((self.rows, trained), (self.columns, evaluated))
        found = [_placed(of, level, place) for of, level in levels]
        i, j = (np.array([of[sample] for sample in shared]) for of in found)
        return whole[np.ix_(i, j)]

    def groups(
        self, place: Place = ("", 0), level: str = CLEAN, samples: Sequence[int] | None = None
    ) -> np.ndarray:
        """[S]: of `samples`, or those of the clean `block`, at the level that they are tuned on."""
        found = _placed(self.rows, level, place)
        shared = self.samples(place) if samples is None else samples
        return np.array([self.rows["group"][found[sample]] for sample in shared])


def _placed(columns: Mapping[str, np.ndarray], level: str, place: Place) -> dict[int, int]:
    """Sample -> its row at that level."""
    chosen = (columns["matrix"] == place[0]) & (columns["draw"] == place[1])
    mine = np.flatnonzero(chosen & (columns["level"] == level))
    return {int(columns["sample"][row]): int(row) for row in mine}


def measured(session: Session) -> Matrix:
    """Of a run whose stages are done."""
    before_E = session.arrays(base.units(session.outline)[0][0])["losses"]
    stored = session.rows([unit for unit, _ in tuning.units(session.outline)]).columns()
    rows, columns = (relations(session.task, split) for split in (TRAIN, EVALUATION))
    with np.errstate(invalid="ignore"):
        influence_NE = stored.get("without", before_E) - stored["losses"]
    return Matrix(influence_NE, stored.get("first_order"), stored["taken"], before_E, rows, columns)


def finite(matrix: Matrix) -> Matrix:
    """Without samples whose fine-tuning diverged."""
    kept = ~matrix.diverged_N
    linear = matrix.first_order_NE
    return replace(
        matrix,
        influence_NE=matrix.influence_NE[kept],
        first_order_NE=None if linear is None else linear[kept],
        taken_N=matrix.taken_N[kept],
        rows={name: values[kept] for name, values in matrix.rows.items()},
    )
