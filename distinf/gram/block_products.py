"""What the estimators of one block are made of, and the joint Fisher inverse of several: read from
the stored products, over the finite training rows.

Shape legend: Q queries, M the first of them, F factors of a damping, N training rows.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.settings import EKFAC, JOINT, OF_WORDS
from distinf.gram.solved import solving
from distinf.gram.stored_gradients import finite_rows
from distinf.gram.tiles import (
    FACTORS,
    WORD_CROSS,
    compared_queries,
    dampings,
    named,
    narrow,
    rows_of,
    self_gram,
    slab_units,
    tiled,
)
from distinf.numerics.estimators import ESTIMATORS, datainf, fisher
from distinf.numerics.estimators.register import Products


class BlockProducts:
    """What the estimators of one block are made of, over its finite training rows.

    Reads a range of queries at a time; only Fisher's system, which is N x N anyway, takes all.
    """

    def __init__(self, session: Session, cell: Cell, slab: int, place: int) -> None:
        self._session, self._cell, self._slab, self._place = session, cell, slab, place
        self._block = cell.blocks.of(slab)[place]
        self._finite_N = finite_rows(session, cell.name, TRAIN)
        sqnorm_N = tiled(session, cell, slab, "cross", "sqnorm")[place][self._finite_N]
        self.sqnorm_N = torch.from_numpy(sqnorm_N)
        first = slab_units(session.settings, cell, "cross", slab)[0]
        sqnorm_BQ = session.arrays(first, ["query_sqnorm"])["query_sqnorm"]
        self.query_sqnorm_Q = torch.from_numpy(sqnorm_BQ[place])
        self._fisher: Tensor | None = None
        self.notes: dict[str, dict[str, float]] = {}

    def cross(self, start: int, stop: int) -> Tensor:
        """fp64 [stop - start, N]."""
        return self._rows("cross", "cross", start, stop)

    def self_gram(self) -> np.ndarray:
        """fp64 [N, N]."""
        whole_NN = self_gram(self._session, self._cell, self._slab, self._place)
        return whole_NN[np.ix_(self._finite_N, self._finite_N)]

    def scores(self, name: str, cross_QN: Tensor, start: int, stop: int) -> Tensor:
        """fp64 [stop - start, N]."""
        if name in OF_WORDS:
            return self._rows("cross", WORD_CROSS[name], start, stop)
        if name == "datainf":
            return self._datainf(cross_QN, start, stop)
        if name == EKFAC or (name == "fisher" and narrow(self._cell, self._block)):
            return self._preconditioned(name, start, stop)
        if name == "fisher":
            return self._exact(name)[start:stop]
        found = Products(
            block=self._block.name,
            cross_QN=cross_QN,
            query_sqnorm_Q=self.query_sqnorm_Q[start:stop],
            train_sqnorm_N=self.sqnorm_N,
            gram=lambda: torch.from_numpy(self.self_gram()),
            through=lambda weights_QN: weights_QN @ torch.from_numpy(self.self_gram()),
            entries=self._block.entries,
        )
        settings, damping = ESTIMATORS[name].settings(), self._session.settings.scores.damping
        if name in damping:
            settings = replace(settings, damping=damping[name])
        scores_QN: Tensor = ESTIMATORS[name].scores(found, settings)
        return scores_QN

    def _datainf(self, cross_QN: Tensor, start: int, stop: int) -> Tensor:
        damping = dampings(self._session, self._cell, self._slab)[self._place]
        self.notes["datainf"] = {"damping": damping}
        if damping == 0.0:  # no training row has a gradient here
            return torch.zeros_like(cross_QN)
        correction_QN = self._rows("correction", "correction", start, stop)
        return datainf.scores(cross_QN, correction_QN, damping, len(self.sqnorm_N))

    def compared(self, name: str) -> Tensor:
        """fp64 [1 + F, M, N]: the first queries' scores at the damping, and at FACTORS of it; NaN
        where there are none (not allowed; or of a run from before they were stored)."""
        queries, first = self._cell.rows[QUERY], compared_queries(self._cell)
        cross_MN, damping = self.cross(0, first), self.notes[name]["damping"]
        own_MN = self.scores(name, cross_MN, 0, first)
        if name == "fisher" and not narrow(self._cell, self._block):
            others = at_factors(torch.from_numpy(self.self_gram()), cross_MN, damping)
            return torch.stack([own_MN, *others])
        found = [own_MN]
        for k, factor in enumerate(FACTORS if damping else ()):
            start, stop = queries + k * first, queries + (k + 1) * first
            if name == "datainf":
                through_MN = self._rows("correction", "correction", start, stop)
                part_MN, count = cross_MN[: len(through_MN)], len(self.sqnorm_N)
                other_MN = datainf.scores(part_MN, through_MN, factor * damping, count)
            else:
                other_MN = self._preconditioned(name, start, stop)
            found.append(other_MN if other_MN.any() else own_MN.where(own_MN == 0, torch.nan))
        return torch.stack(found if damping else [own_MN] * (1 + len(FACTORS)))

    def _preconditioned(self, name: str, start: int, stop: int) -> Tensor:
        """fp64 [stop - start, N]: of queries that the gram stage has solved for."""
        (sums,) = slab_units(self._session.settings, self._cell, "sums", self._slab)
        key = named(f"{name}.note", self._place)
        damping, condition = self._session.arrays(sums, [key])[key].tolist()
        self.notes[name] = {"damping": damping, "condition": condition}
        return self._rows("correction", name, start, stop)

    def _exact(self, name: str) -> Tensor:
        """fp64 [all queries, N]: Fisher's, solved once."""
        if self._fisher is None:
            cross_QN = self.cross(0, self._cell.rows[QUERY])
            damping = self._session.settings.scores.damping.get(name)
            with solving(name, self._block.name):
                solved = fisher.solve(torch.from_numpy(self.self_gram()), cross_QN, damping)
            self._fisher = solved.scores_QN
            self.notes[name] = note_of(solved)
        return self._fisher

    def _rows(self, phase: str, key: str, start: int, stop: int) -> Tensor:
        """fp64 [stop - start, N]: stored products."""
        array = named(key, self._place)
        found = rows_of(self._session, self._cell, self._slab, phase, array, start, stop)
        return torch.from_numpy(found[:, self._finite_N])


def members(session: Session, cell: Cell, group: str) -> Iterator[BlockProducts]:
    """The blocks of a group, in stored order."""
    for slab in cell.blocks.slabs:
        for place, block in enumerate(cell.blocks.of(slab)):
            if block.name in cell.groups[group]:
                yield BlockProducts(session, cell, slab, place)


def joint_solve(session: Session, cell: Cell, group: str) -> fisher.GramSolve:
    return joint_solved(session, group, *joint_products(session, cell, group))


def joint_products(session: Session, cell: Cell, group: str) -> tuple[Tensor, Tensor]:
    """fp64 [N, N] and [Q, N], summed over the group's blocks."""
    rows = int(finite_rows(session, cell.name, TRAIN).sum())
    total_NN, cross_QN = np.zeros((rows, rows)), np.zeros((cell.rows[QUERY], rows))
    for parts in members(session, cell, group):
        cross_QN += parts.cross(0, cell.rows[QUERY]).numpy()
        total_NN += parts.self_gram()
    return torch.from_numpy(total_NN), torch.from_numpy(cross_QN)


def joint_solved(
    session: Session, group: str, total_NN: Tensor, cross_QN: Tensor
) -> fisher.GramSolve:
    damping = session.settings.scores.damping.get(JOINT)
    with solving(JOINT, group):
        return fisher.solve(total_NN, cross_QN, damping)


def at_factors(gram_NN: Tensor, cross_MN: Tensor, damping: float) -> list[Tensor]:
    """fp64 [M, N] by factor of Fisher's damping; NaN at one that the matrix does not allow."""
    found = []
    for factor in FACTORS:
        try:
            found.append(fisher.solve(gram_NN, cross_MN, factor * damping or None).scores_QN)
        except InputError:
            found.append(torch.full_like(cross_MN, torch.nan))
    return found


def note_of(solved: fisher.GramSolve) -> dict[str, float]:
    return {"damping": solved.damping, "condition": solved.condition}
