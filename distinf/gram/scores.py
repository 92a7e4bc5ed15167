"""Stage scores: every estimator's scores, aggregated over the queries, block by block.

A block's [Q, N] scores are not kept: what is kept is their mean over all queries, and the ranks and
votes (Vitel and Chhabra, Eq. 9, 10) of the queries that the model gets right. All three add up over
blocks, so that any group of layers costs nothing further. The joint Fisher inverse does not: a
group of its blocks is a unit of its own.
Sign: score > 0 means that training on the row helps the queries.

Shape legend: E estimators, H ways of aggregating, B blocks, Q queries, N training rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import row_ranges
from distinf.engine.stage import Stage
from distinf.errors import InputError
from distinf.gram.block_products import (
    BlockProducts,
    at_factors,
    joint_products,
    joint_solved,
    note_of,
)
from distinf.gram.blocks import SPARSE
from distinf.gram.session import QUERY, TRAIN, Cell, Outline, Session, units_of_cells
from distinf.gram.settings import EKFAC, HOWS, JOINT, OF_ALL_PAIRS, OF_WORDS, StageSettings
from distinf.gram.stopwatch import TOOK, Stopwatch, joint_name
from distinf.gram.stored_gradients import columns, finite_rows
from distinf.gram.tiles import FACTORS, compared_queries, narrow, queries_at_once, tiled
from distinf.numerics.aggregation import tallies
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record

NAME = "scores"
COMPARED = "compared"


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
        flops=(1 + len(FACTORS)) * solves * solve + sorts,
        bytes=8.0 * blocks * estimators * len(HOWS) * rows,
        memory=dense + (8.0 * queries * rows * 3 if solves else held),
        read=len(unit.job.get("blocks", range(blocks))) * (16.0 * queries * rows + dense / 6.0),
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
        if not finite_rows(session, cell.name, split).any():
            raise InputError(
                f"scores: no {split} row of cell '{cell.name}' has a finite loss and gradient, so "
                "that nothing is ranked: look for weights or features that are not finite"
            )
        slabs = (tiled(session, cell, slab, "cross", key) for slab in cell.blocks.slabs)
        if not any(sqnorms.any() for sqnorms in slabs):
            raise InputError(
                f"scores: the gradient of every {split} row of cell '{cell.name}' is exactly zero, "
                "which ranks nothing: use a loss that is not flat (rounded, clipped, saturated), "
                "or train for fewer steps"
            )


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Array "totals" fp64 [E, H, B, N]; NaN where a training row is quarantined. And of estimators
    with a damping, [1 + F, M, finite N] each: what the first queries' scores are at the damping and
    at FACTORS of it, summed over the blocks of the first group (COMPARED.estimator)."""
    cell, watch = session.cell(unit.job["cell"]), Stopwatch(session.device)
    make = _joint if "group" in unit.job else _slab
    totals, notes, compared = make(session, cell, unit, watch)
    queries = int(right_queries(session, cell).sum())
    summary = {"notes": notes, "queries": queries, TOOK: watch.notes()}
    arrays = {"totals": totals, **{f"{COMPARED}.{name}": x for name, x in compared.items()}}
    return session.commit(unit, attempt, arrays, summary=summary, may_hold_nan=[*arrays])


Scored = tuple[np.ndarray, list[dict[str, Any]], dict[str, np.ndarray]]


def _slab(session: Session, cell: Cell, unit: Unit, watch: Stopwatch) -> Scored:
    slab = unit.job["slab"]
    wanted, blocks = blockwise(session.settings, slab), cell.blocks.of(slab)
    totals = np.full((len(wanted), len(HOWS), len(blocks), cell.rows[TRAIN]), np.nan)
    notes: list[dict[str, Any]] = []
    compared: dict[str, np.ndarray] = {}
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
            if name in parts.notes and block.name in _first_group(cell)[1]:
                with watch.step([name], alone):
                    compared[name] = compared.get(name, 0.0) + parts.compared(name).numpy()
    return totals, notes, compared


def _first_group(cell: Cell) -> tuple[str, Sequence[str]]:
    """All trained blocks, unless the settings have groups of their own."""
    return next(iter(cell.groups.items()))


def _joint(session: Session, cell: Cell, unit: Unit, watch: Stopwatch) -> Scored:
    """Fisher's inverse over all blocks of a group at once."""
    group, tally = unit.job["group"], _Tally(session, cell)
    compared: dict[str, np.ndarray] = {}
    with watch.step([JOINT], {joint_name(group): 1.0}):
        total_NN, cross_QN = joint_products(session, cell, group)
        solved = joint_solved(session, group, total_NN, cross_QN)
        tally.add(solved.scores_QN, 0, cell.rows[QUERY])
        if group == _first_group(cell)[0]:
            first = slice(compared_queries(cell))
            others = at_factors(total_NN, cross_QN[first], solved.damping)
            compared[JOINT] = torch.stack([solved.scores_QN[first], *others]).numpy()
    note = {"block": group, "estimator": JOINT, **note_of(solved)}
    return tally.result()[None, :, None], [note], compared


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
