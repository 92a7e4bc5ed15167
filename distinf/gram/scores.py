"""Stage scores: every estimator's scores, aggregated over the queries, block by block.

A block's [Q, N] scores are not kept: what is kept is their mean over all queries, and the ranks and
votes (Vitel and Chhabra, Eq. 9, 10) of the queries that the model gets right. All three add up over
blocks, so that any group of layers costs nothing further. The joint Fisher inverse does not: a
group of its blocks is a unit of its own.
Sign: score > 0 means that training on the row helps the queries.

Shape legend: E estimators, H ways of aggregating, B blocks, Q queries, N training rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import row_ranges
from distinf.engine.stage import Stage
from distinf.errors import InputError
from distinf.gram.blocks import SPARSE
from distinf.gram.gradients import columns, finite_rows
from distinf.gram.session import QUERY, TRAIN, Cell, Outline, Session, units_of_cells
from distinf.gram.settings import EKFAC, HOWS, JOINT, OF_ALL_PAIRS, OF_WORDS, StageSettings
from distinf.gram.solved import solving
from distinf.gram.stopwatch import TOOK, Stopwatch, joint_name
from distinf.gram.tiles import (
    WORD_CROSS,
    dampings,
    named,
    narrow,
    queries_at_once,
    rows_of,
    self_gram,
    slab_units,
    tiled,
)
from distinf.numerics.aggregation import tallies
from distinf.numerics.estimators import ESTIMATORS, datainf, fisher
from distinf.numerics.estimators.register import Products
from distinf.numerics.products import scales
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record

NAME = "scores"


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """One per slab of a cell, and one per group for the joint Fisher inverse."""
    return units_of_cells(outline, cell_units, _cost)


def cell_units(settings: StageSettings, cell: Cell) -> list[Unit]:
    """A cell's units, slabs first."""
    jobs: list[dict[str, Any]] = []
    if blockwise(settings):
        jobs = [{"cell": cell.name, "slab": slab} for slab in cell.blocks.slabs]
    if JOINT in settings.scores.estimators:
        jobs += [
            {"cell": cell.name, "group": group, "blocks": list(members)}
            for group, members in cell.groups.items()
        ]
    return [Unit(NAME, cell.asked_keys[NAME], job=job) for job in jobs]


def blockwise(settings: StageSettings, slab: int | None = None) -> list[str]:
    """The estimators that take each block by itself; with a slab, those that take its blocks."""
    found = [name for name in settings.scores.estimators if name != JOINT]
    others = (EKFAC,) if slab == SPARSE else () if slab is None else OF_WORDS
    return [name for name in found if name not in others]


def _cost(outline: Outline, cell: Cell, unit: Unit) -> Cost:
    rows, queries = cell.rows[TRAIN], cell.rows[QUERY]
    solve = rows**3 / 3.0 + 2.0 * rows**2 * queries
    blocks, solves, estimators, solved = 1, 1, 1, [JOINT]
    if "slab" in unit.job:
        of, wanted = cell.blocks.of(unit.job["slab"]), blockwise(outline.settings, unit.job["slab"])
        blocks, estimators, wide = len(of), len(wanted), sum(not narrow(cell, b) for b in of)
        solved = [name for name in wanted if name in OF_ALL_PAIRS]
        solves = sum(wide if name == "fisher" else blocks for name in solved)
    sorts = 20.0 * blocks * estimators * queries * rows
    dense = 3 * 8.0 * rows**2 if solves else 0.0
    held = 8.0 * min(queries, queries_at_once(rows)) * rows * 6
    advice = f"leave {', '.join(solved or ['fisher'])} out of scores.estimators"
    return Cost(
        flops=solves * solve + sorts,
        bytes=8.0 * blocks * estimators * len(HOWS) * rows,
        memory=dense + (8.0 * queries * rows * 3 if solves else held),
        levers=(Lever("scores.estimators", 1.0, dense, where="host", advice=advice),),
    )


def run(session: Session, runtime: Runtime) -> None:
    for cell in session.outline.cells.values():
        _refuse_all_zero(session, cell)
    wanted = [unit for unit, _ in units(session.outline)]
    if wanted:
        runtime.pool(session.work("distinf.gram.scores:body"), wanted, session.ledger(NAME))


def _refuse_all_zero(session: Session, cell: Cell) -> None:
    """InputError where all rows of a split would have the same score: nothing ranks them."""
    for split, key in ((TRAIN, "sqnorm"), (QUERY, "query_sqnorm")):
        slabs = (tiled(session, cell, slab, "cross", key) for slab in cell.blocks.slabs)
        if not any(sqnorms.any() for sqnorms in slabs):
            raise InputError(
                f"scores: the gradient of every {split} row of cell '{cell.name}' is exactly zero, "
                "which ranks nothing: use a loss that is not flat (rounded, clipped, saturated), "
                "or train for fewer steps"
            )


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Array "totals" fp64 [E, H, B, N]; NaN where a training row is quarantined."""
    cell, watch = session.cell(unit.job["cell"]), Stopwatch(session.device)
    make = _joint if "group" in unit.job else _slab
    totals, notes = make(session, cell, unit, watch)
    queries = int(right_queries(session, cell).sum())
    summary = {"notes": notes, "queries": queries, TOOK: watch.notes()}
    return session.commit(
        unit, attempt, {"totals": totals}, summary=summary, may_hold_nan=["totals"]
    )


def _slab(
    session: Session, cell: Cell, unit: Unit, watch: Stopwatch
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    slab = unit.job["slab"]
    wanted, blocks = blockwise(session.settings, slab), cell.blocks.of(slab)
    totals = np.full((len(wanted), len(HOWS), len(blocks), cell.rows[TRAIN]), np.nan)
    notes: list[dict[str, Any]] = []
    products = [name for name in wanted if name not in OF_WORDS]
    for place, block in enumerate(blocks):
        alone = {block.name: 1.0}
        parts = BlockProducts(session, cell, slab, place)
        tallies = {name: _Tally(session, cell) for name in wanted}
        for start, stop in row_ranges(cell.rows[QUERY], queries_at_once(cell.rows[TRAIN])):
            with watch.step(products, alone):
                cross_QN = parts.cross(start, stop)
            for name, tally in tallies.items():
                with watch.step([name], alone):
                    tally.add(parts.scores(name, cross_QN, start, stop), start, stop)
        for e, (name, tally) in enumerate(tallies.items()):
            totals[e, :, place] = tally.result()
            if name in parts.notes:
                notes.append({"block": block.name, "estimator": name, **parts.notes[name]})
    return totals, notes


def _joint(
    session: Session, cell: Cell, unit: Unit, watch: Stopwatch
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Fisher's inverse over all blocks of a group at once."""
    group, tally = unit.job["group"], _Tally(session, cell)
    with watch.step([JOINT], {joint_name(group): 1.0}):
        solved = joint_solve(session, cell, group)
        tally.add(solved.scores_QN, 0, cell.rows[QUERY])
    note = {"block": group, "estimator": JOINT, **_note(solved)}
    return tally.result()[None, :, None], [note]


def joint_solve(session: Session, cell: Cell, group: str) -> fisher.GramSolve:
    rows = int(finite_rows(session, cell.name, TRAIN).sum())
    total_NN, cross_QN = np.zeros((rows, rows)), np.zeros((cell.rows[QUERY], rows))
    for parts in members(session, cell, group):
        cross_QN += parts.cross(0, cell.rows[QUERY]).numpy()
        total_NN += parts.self_gram()
    damping = session.settings.scores.damping.get(JOINT)
    with solving(JOINT, group):
        return fisher.solve(torch.from_numpy(total_NN), torch.from_numpy(cross_QN), damping)


def _note(solved: fisher.GramSolve) -> dict[str, float]:
    return {"damping": solved.damping, "condition": solved.condition}


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
        self._scale_N = scales(self.sqnorm_N)
        first = slab_units(session.settings, cell, "cross", slab)[0]
        sqnorm_BQ = session.arrays(first, ["query_sqnorm"])["query_sqnorm"]
        self.query_sqnorm_Q = torch.from_numpy(sqnorm_BQ[place])
        self.scale_Q = scales(self.query_sqnorm_Q)
        self._fisher: Tensor | None = None
        self.notes: dict[str, dict[str, float]] = {}

    def cross(self, start: int, stop: int) -> Tensor:
        """fp64 [stop - start, N]."""
        return self._rows("cross", "cross", start, stop)

    def self_gram(self) -> np.ndarray:
        """fp64 [N, N]."""
        whole_NN = self_gram(self._session, self._cell, self._slab, self._place)
        scale_N = self._scale_N.numpy()
        return whole_NN[np.ix_(self._finite_N, self._finite_N)] * scale_N[:, None] * scale_N

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

    def _preconditioned(self, name: str, start: int, stop: int) -> Tensor:
        """fp64 [stop - start, N]: of queries that the gram stage has solved for."""
        (sums,) = slab_units(self._session.settings, self._cell, "sums", self._slab)
        keys = [named(f"{name}.{key}", self._place) for key in ("note", "scale")]
        stored = self._session.arrays(sums, keys)
        damping, condition = stored[keys[0]].tolist()
        self.notes[name] = {"damping": damping, "condition": condition}
        scale_Q = torch.from_numpy(stored[keys[1]])
        return self._rows("correction", name, start, stop, scale_Q)

    def _exact(self, name: str) -> Tensor:
        """fp64 [all queries, N]: Fisher's, solved once."""
        if self._fisher is None:
            cross_QN = self.cross(0, self._cell.rows[QUERY])
            damping = self._session.settings.scores.damping.get(name)
            with solving(name, self._block.name):
                solved = fisher.solve(torch.from_numpy(self.self_gram()), cross_QN, damping)
            self._fisher = solved.scores_QN
            self.notes[name] = _note(solved)
        return self._fisher

    def _rows(
        self, phase: str, key: str, start: int, stop: int, scale_Q: Tensor | None = None
    ) -> Tensor:
        """fp64 [stop - start, N]: stored products times both rows' scales; of a query `scale_Q`."""
        array = named(key, self._place)
        found = rows_of(self._session, self._cell, self._slab, phase, array, start, stop)
        scale_Q = (self.scale_Q if scale_Q is None else scale_Q)[start:stop, None]
        return torch.from_numpy(found[:, self._finite_N]).double() * scale_Q * self._scale_N


def members(session: Session, cell: Cell, group: str) -> Iterator[BlockProducts]:
    """The blocks of a group, in stored order."""
    for slab in cell.blocks.slabs:
        for place, block in enumerate(cell.blocks.of(slab)):
            if block.name in cell.groups[group]:
                yield BlockProducts(session, cell, slab, place)


class _Tally:
    """fp64 [H, N] over the queries added so far: the mean over all that are finite; rank and vote
    over those of them that the model gets right."""

    def __init__(self, session: Session, cell: Cell) -> None:
        self._finite_N = finite_rows(session, cell.name, TRAIN)
        self._finite_Q = torch.from_numpy(finite_rows(session, cell.name, QUERY))
        self._right_Q = torch.from_numpy(right_queries(session, cell))
        self._top = session.settings.scores.top
        self._sums_HN = torch.zeros(len(HOWS), int(self._finite_N.sum()), dtype=torch.float64)
        self._queries = 0

    def add(self, scores_QN: Tensor, start: int, stop: int) -> None:
        """The scores of the queries start:stop for the finite training rows."""
        finite_Q = self._finite_Q[start:stop]
        kept_QN = scores_QN[finite_Q]
        found = tallies(kept_QN, self._right_Q[start:stop][finite_Q], self._top)
        self._queries += len(kept_QN)
        for h, how in enumerate(HOWS) if len(kept_QN) else ():
            self._sums_HN[h] += found[how] * (len(kept_QN) if how == "mean" else 1)

    def result(self) -> np.ndarray:
        """NaN where a training row has no score."""
        found_HN = self._sums_HN.clone()
        found_HN[HOWS.index("mean")] /= self._queries
        out = np.full((len(HOWS), len(self._finite_N)), np.nan)
        out[:, self._finite_N] = found_HN.numpy()
        return out


def right_queries(session: Session, cell: Cell) -> np.ndarray:
    """bool [Q]: finite queries that the model gets right; InputError if there is none."""
    found: np.ndarray = session.cached(
        ("right", cell.name),
        lambda: (
            columns(session, cell.name, QUERY, "correct") & finite_rows(session, cell.name, QUERY)
        ),
    )
    if not found.any():
        raise InputError(
            f"scores: the model gets no query of cell '{cell.name}' right, so that rank and vote "
            "have nothing to go by; train longer (train.epochs, train.lr) or use other queries"
        )
    return found


# -- what was stored -------------------------------------------------------------------------


def block_totals(session: Session, cell: Cell) -> dict[tuple[str, str], np.ndarray]:
    """(estimator, block) -> fp64 [H, N] of every blockwise estimator."""
    found = {}
    for unit in cell_units(session.settings, cell):
        if "group" in unit.job:
            continue
        totals = session.arrays(unit)["totals"]
        for e, name in enumerate(blockwise(session.settings, unit.job["slab"])):
            for place, block in enumerate(cell.blocks.of(unit.job["slab"])):
                found[name, block.name] = totals[e, :, place]
    return found


STAGE = Stage(NAME, "influence scores", needs=("gram",), reads=("scores",), units=units, run=run)
