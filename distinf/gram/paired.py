"""Products among a few noisy and clean training rows, for Theorem 5.1 of Vitel and Chhabra.

The gram stage takes them with the sums over all training rows, of which they are a few. At most
EACH rows of a kind and QUERIES queries, drawn by what the cell's gradients depend on: counts cost
the same however many rows there are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import draw, row_ranges
from distinf.gram.blocks import SPARSE
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.stored_gradients import dense_rows, finite_rows, sparse_rows
from distinf.gram.task import Labelled
from distinf.gram.tiles import slab_units
from distinf.numerics.separation import GroupProducts, Separations, separations
from distinf.numerics.sparse import SparseRows, sparse_gram

EACH, QUERIES = 32, 64
CHUNK = 1 << 16  # entries that are taken in float64 at once
ROWS, ASKED, SELF, CROSS = (f"paired.{name}" for name in ("rows", "queries", "self", "cross"))


@dataclass(frozen=True)
class Separated:
    """Theorem 5.1 of Vitel and Chhabra on a cell's gradients, for two groups of layers."""

    cell: str
    theta: str
    w: str
    found: Separations


@dataclass
class Paired:
    """Which rows of a cell (int64, ascending), and what was seen of them in one slab."""

    session: Session
    cell: Cell
    slab: int
    rows: np.ndarray
    queries: np.ndarray
    _seen: list[Any] = field(default_factory=list)

    def see(self, start: int, tile: Tensor | SparseRows) -> None:
        """The slab's gradients of all training rows from `start` on, tile by tile, in order."""
        places = self.rows[(self.rows >= start) & (self.rows < start + len(tile))] - start
        self._seen.append(tile[torch.from_numpy(places)])

    def products(self) -> dict[str, np.ndarray]:
        """fp64 [B, S, S] and [B, Q, S] of the slab's blocks, and of which rows they are."""
        parts = [self._sparse()] if self.slab == SPARSE else self._dense()
        among, asked = (torch.stack(each).cpu().numpy() for each in zip(*parts, strict=True))
        return {ROWS: self.rows, ASKED: self.queries, SELF: among, CROSS: asked}

    def _dense(self) -> list[tuple[Tensor, Tensor]]:
        rows_SP, queries_QP = torch.cat(self._seen), self._dense_queries()
        return [
            _products(rows_SP[:, block.span], queries_QP[:, block.span].to(rows_SP.device))
            for block in self.cell.blocks.of(self.slab)
        ]

    def _dense_queries(self) -> Tensor:
        """fp32 [Q, P], read a unit's rows at a time."""
        name, found = self.cell.name, []
        settings = self.session.settings.gradients
        for start, stop in row_ranges(self.cell.rows[QUERY], settings.rows_per_unit):
            places = self.queries[(self.queries >= start) & (self.queries < stop)] - start
            part = dense_rows(self.session, name, QUERY, self.slab, start, stop)
            found.append(part[torch.from_numpy(places)])
        return torch.cat(found)

    def _sparse(self) -> tuple[Tensor, Tensor]:
        every = sparse_rows(self.session, self.cell.name, QUERY, 0, self.cell.rows[QUERY])
        rows, queries = (
            replace(words, rows=words.rows.double())
            for words in (SparseRows.cat(self._seen), every[torch.from_numpy(self.queries)])
        )
        return sparse_gram(rows, rows), sparse_gram(queries, rows)


def _products(rows_SP: Tensor, queries_QP: Tensor) -> tuple[Tensor, Tensor]:
    """fp64 [S, S] and [Q, S]."""
    self_SS = cross_QS = torch.zeros((), dtype=torch.float64, device=rows_SP.device)
    for rows, queries in zip(rows_SP.split(CHUNK, 1), queries_QP.split(CHUNK, 1), strict=True):
        wide = rows.double()
        self_SS = self_SS + wide @ wide.T
        cross_QS = cross_QS + queries.double() @ wide.T
    return self_SS, cross_QS


def chosen(session: Session, cell: Cell, slab: int) -> Paired | None:
    """None where no wrong label is known, or none but wrong ones."""
    task = session.task(cell.name)
    noisy_N = task.flipped() if isinstance(task, Labelled) else None
    if noisy_N is None:
        return None
    finite_N = finite_rows(session, cell.name, TRAIN)
    kinds = [np.flatnonzero(finite_N & (np.asarray(noisy_N, bool) == kind)) for kind in (1, 0)]
    queries = np.flatnonzero(finite_rows(session, cell.name, QUERY))
    if not all(len(rows) for rows in (*kinds, queries)):
        return None
    rows = np.sort(np.concatenate([_drawn(cell, rows, EACH) for rows in kinds]))
    return Paired(session, cell, slab, rows, np.sort(_drawn(cell, queries, QUERIES)))


def _drawn(cell: Cell, rows: np.ndarray, most: int) -> np.ndarray:
    """By the cell's name: another run of the same cell takes the same."""
    return rows[draw(0, f"paired {cell.name}", len(rows), most)].astype(np.int64)


# -- what was stored -------------------------------------------------------------------------


def separated(session: Session, cell: Cell, noisy_N: np.ndarray | None) -> Iterator[Separated]:
    """For every two groups without a common block, each as theta and as w; none of a run that has
    not stored the products."""
    units = [slab_units(session.settings, cell, "sums", slab)[0] for slab in cell.blocks.slabs]
    if noisy_N is None or not all(session.record(u)["summary"].get(SELF) for u in units):
        return
    blocks: dict[str, GroupProducts] = {}
    for slab, unit in zip(cell.blocks.slabs, units, strict=True):
        stored = session.arrays(unit, [ROWS, SELF, CROSS])
        for place, block in enumerate(cell.blocks.of(slab)):
            made = (torch.from_numpy(stored[key][place]) for key in (SELF, CROSS))
            blocks[block.name] = GroupProducts(*made)
    noisy_S = torch.from_numpy(noisy_N[stored[ROWS]])
    groups = {name: _added([blocks[m] for m in members]) for name, members in cell.groups.items()}
    for theta, w in permutations(groups, 2):
        if not {*cell.groups[theta]} & {*cell.groups[w]}:
            for found in separations(groups[theta], groups[w], noisy_S):
                yield Separated(cell.name, theta, w, found)


def _added(parts: Sequence[GroupProducts]) -> GroupProducts:
    return GroupProducts(
        torch.stack([part.self_SS for part in parts]).sum(0),
        torch.stack([part.cross_QS for part in parts]).sum(0),
    )
