"""Candidates: rows that a Gram run was not trained on, scored as if added to its training rows.

A candidate's gradient is multiplied with what the run has of its queries (or with what later ones
have): its model, dampings, factors and number n of training rows stay as they are. Block by block:

tracin, cosine, of words      with the queries' gradients
ekfac, fisher (narrow block)  with the stored solved queries
datainf                       with (g_q - U_q / n) / lambda, by the stored U = W T
all others                    (g_q . g_c - Z K_tc / n) / lambda, by products K_tc with the stored
                              training gradients: fisher of wide blocks and fisher-joint, where Z is
                              the training rows' own scores, as (F + lambda)^-1 =
                              (1 - (F + lambda)^-1 F) / lambda; datainf of the embedding: Z = W

Sign: score > 0 means that training on the candidate helps the query.

Shape legend: Q queries, M candidates of a tile, N training rows of the run, P entries of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import row_ranges
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.gram.block_products import BlockProducts, joint_solve
from distinf.gram.blocks import SPARSE, Block
from distinf.gram.gram import TOP_WORDS
from distinf.gram.session import QUERY, TRAIN, Cell, Outline, Session
from distinf.gram.settings import EKFAC, JOINT, OF_WORDS
from distinf.gram.stored_gradients import dense_rows, finite_rows, sparse_rows
from distinf.gram.tiles import NAME, dampings, named, narrow, slab_units
from distinf.numerics.estimators import ESTIMATORS, datainf
from distinf.numerics.estimators.register import Products
from distinf.numerics.sparse import SparseRows, pair_products
from distinf.runtime import Cost, Unit
from distinf.runtime.ledger import Record

Rows = Tensor | SparseRows  # [rows, P] in float64
BY_STORED = ("datainf", "fisher", JOINT, EKFAC, *OF_WORDS)


def refuse_estimator(name: str) -> None:
    """InputError for an estimator that has no score of a row by itself."""
    if name not in BY_STORED and not ESTIMATORS[name].by_row:
        raise InputError(
            f"--candidates: a row's score by {name} depends on all other training rows, so that a "
            "candidate has none; --ranking names another estimator of the run"
        )


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Tiles of candidates, for each slab that has blocks of the group."""
    estimator, _, group = outline.ranking.partition("/")
    damping = outline.settings.scores.damping.get(estimator)
    found = []
    for cell in outline.cells.values():
        for slab in cell.blocks.slabs:
            members = [b.name for b in cell.blocks.of(slab) if b.name in cell.groups[group]]
            job = {"cell": cell.name, "phase": "candidates", "slab": slab, "blocks": members}
            job |= {"estimator": estimator, "group": group, "damping": damping}
            for a, b in row_ranges(cell.rows[TRAIN], outline.settings.gram.rows_per_tile):
                found += [(Unit(NAME, cell.row_keys[NAME], a, b, job), Cost())] if members else []
    return found


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Array "scores" fp64 [Q, M]: the sum over the slab's blocks of the group."""
    asked, name = session.asked, unit.job["cell"]
    cell, estimator = asked.cell(name), unit.job["estimator"]
    total_QM = torch.zeros(cell.rows[QUERY], unit.stop - unit.start, dtype=torch.float64)
    for place, block in enumerate(cell.blocks.of(unit.job["slab"])):
        if block.name in unit.job["blocks"]:
            of = _OfBlock(asked, cell, place, block)
            rows = _rows(session, name, TRAIN, block, unit.start, unit.stop)
            total_QM += of.scores(estimator, unit.job["group"], rows)
    return session.commit(unit, attempt, {"scores": total_QM.numpy()})


@dataclass(frozen=True)
class _OfBlock:
    """A block, at a place in its slab, of the cell that has the queries: session's."""

    session: Session
    cell: Cell
    place: int
    block: Block

    def scores(self, estimator: str, group: str, rows: Rows) -> Tensor:
        """fp64 [Q, M] of the candidates' gradients."""
        name, slab = self.cell.name, self.block.slab
        queries = _rows(self.session, name, QUERY, self.block, 0, self.cell.rows[QUERY])
        if estimator in OF_WORDS:
            both = estimator == "tracin-we-both10"
            return pair_products(_top(queries) if both else queries, _top(rows))
        if estimator in ESTIMATORS and ESTIMATORS[estimator].by_row:
            return self._by_row(estimator, queries, rows)
        if estimator == EKFAC or (estimator == "fisher" and narrow(self.cell, self.block)):
            return pair_products(self._solved(estimator), rows)
        cross_QM = pair_products(queries, rows)
        if estimator == "datainf" and slab != SPARSE:
            damping = dampings(self.session, self.cell, slab)[self.place]
            through_QM = pair_products(self._summed(), rows)
        else:
            weights_QN, damping = self._weights(estimator, group)
            through_QM = self._through(weights_QN, rows)
        if damping == 0.0:  # no training row has a gradient here
            return torch.zeros_like(cross_QM)
        count = int(finite_rows(self.session, name, TRAIN).sum())
        return datainf.scores(cross_QM, through_QM, damping, count)

    def _by_row(self, estimator: str, queries: Rows, rows: Rows) -> Tensor:
        def refused(*_: Any) -> Tensor:
            raise InputError(f"--candidates: {estimator} takes products of training rows after all")

        settings, given = ESTIMATORS[estimator].settings(), self.session.settings.scores.damping
        if estimator in given:
            settings = replace(settings, damping=given[estimator])
        found = Products(
            block=self.block.name,
            cross_QN=pair_products(queries, rows),
            query_sqnorm_Q=_sqnorms(queries),
            train_sqnorm_N=_sqnorms(rows),
            gram=refused,
            through=refused,
            entries=self.block.entries,
        )
        scores_QM: Tensor = ESTIMATORS[estimator].scores(found, settings)
        return scores_QM

    def _sums(self) -> dict[str, np.ndarray]:
        session, slab = self.session, self.block.slab
        (unit,) = slab_units(session.settings, self.cell, "sums", slab)
        return session.latest("sums", unit.id, lambda: session.arrays(unit))

    def _solved(self, estimator: str) -> Tensor:
        """fp64 [Q, P]: the queries that the gram stage has solved for."""
        solved_QP = torch.from_numpy(self._sums()[named(estimator, self.place)])
        return solved_QP[: self.cell.rows[QUERY]]

    def _summed(self) -> Tensor:
        """fp64 [Q, P]: DataInf's U = W T."""
        asked = slice(self.cell.rows[QUERY])
        return torch.from_numpy(self._sums()["weighted"][asked, self.block.span])

    @property
    def _products(self) -> BlockProducts:
        return BlockProducts(self.session, self.cell, self.block.slab, self.place)

    def _weights(self, estimator: str, group: str) -> tuple[Tensor, float]:
        """Z fp64 [Q, N], 0 at rows that are not finite, and lambda."""
        finite_N = torch.from_numpy(finite_rows(self.session, self.cell.name, TRAIN))
        found, queries = self._products, self.cell.rows[QUERY]
        if estimator == JOINT:
            key = ("joint", self.cell.name, group)
            solved = self.session.cached(key, lambda: joint_solve(self.session, self.cell, group))
            inside_QN, damping = solved.scores_QN, solved.damping
        elif estimator == "fisher":
            inside_QN = found.scores("fisher", found.cross(0, queries), 0, queries)
            damping = found.notes["fisher"]["damping"]
        else:
            damping = dampings(self.session, self.cell, self.block.slab)[self.place]
            inside_QN = datainf.weights(found.cross(0, queries), found.sqnorm_N, damping)
        weights_QN = torch.zeros(queries, len(finite_N), dtype=torch.float64)
        weights_QN[:, finite_N] = inside_QN.nan_to_num(0.0)  # 0/0: no gradient at all
        return weights_QN, damping

    def _through(self, weights_QN: Tensor, rows: Rows) -> Tensor:
        """fp64 [Q, M]: Z K_tc, tile by tile of the stored training gradients."""
        total_QM = torch.zeros(len(weights_QN), len(rows), dtype=torch.float64)
        for tile in slab_units(self.session.settings, self.cell, "cross", self.block.slab):
            a, b = tile.start, tile.stop
            train = _rows(self.session, self.cell.name, TRAIN, self.block, a, b)
            total_QM += weights_QN[:, a:b] @ pair_products(train, rows)
        return total_QM


def _rows(session: Session, name: str, split: str, block: Block, start: int, stop: int) -> Rows:
    """fp64: the block's stored gradients of the rows start:stop."""
    if block.slab == SPARSE:
        words = sparse_rows(session, name, split, start, stop)
        return replace(words, rows=words.rows.double())
    return dense_rows(session, name, split, block.slab, start, stop)[:, block.span].double()


def _top(rows: Rows) -> SparseRows:
    assert isinstance(rows, SparseRows)
    return rows.top_rows(TOP_WORDS)


def _sqnorms(rows: Rows) -> Tensor:
    return rows.sqnorms() if isinstance(rows, SparseRows) else rows.square().sum(1)


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(NAME, "scores of candidates", units=units, run=run)


# -- what was stored -------------------------------------------------------------------------


def candidate_scores(session: Session, cell: Cell) -> np.ndarray:
    """fp64 [Q, M] of all of a cell's candidates: the mean over the group's blocks, or that of all
    at once; NaN where a candidate or a query has no finite gradient."""
    wanted = [unit for unit, _ in units(session.outline) if unit.job["cell"] == cell.name]
    parts: dict[int, list[np.ndarray]] = {}
    for unit in wanted:
        parts.setdefault(unit.start, []).append(session.arrays(unit)["scores"])
    total_QM = np.concatenate([np.sum(parts[start], axis=0) for start in sorted(parts)], axis=1)
    estimator, _, group = session.outline.ranking.partition("/")
    if estimator != JOINT:
        total_QM /= len(cell.groups[group])
    total_QM[:, ~finite_rows(session, cell.name, TRAIN)] = np.nan
    total_QM[~finite_rows(session.asked, cell.name, QUERY)] = np.nan
    return total_QM
