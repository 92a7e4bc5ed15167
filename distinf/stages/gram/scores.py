"""Stage scores: every estimator's scores, aggregated over the queries, block by block.

A block's [Q, N] scores are not kept: what is kept is their mean over all queries, and the ranks and
votes (paper 003, Eq. 9 and 10) of the queries that the model gets right. All three add up over
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

from distinf.errors import InputError
from distinf.numerics.aggregation import tallies
from distinf.numerics.estimators import cosine, datainf, fisher, tracin
from distinf.runtime import Cost, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.stages.gram.blocks import ALL, EMBEDDING, SPARSE, Block
from distinf.stages.gram.gradients import columns, finite_rows
from distinf.stages.gram.gram import WORD_CROSS, dampings, self_gram, tiled
from distinf.stages.gram.session import QUERY, TRAIN, Cell, Outline, Session
from distinf.stages.gram.settings import HOWS, OF_WORDS, StageSettings

NAME = "scores"
JOINT = "fisher-joint"


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """One per slab of a cell, and one per group for the joint Fisher inverse."""
    return [
        (unit, _cost(outline, cell, unit))
        for cell in outline.cells.values()
        for unit in cell_units(outline.settings, cell)
    ]


def cell_units(settings: StageSettings, cell: Cell) -> list[Unit]:
    """A cell's units, slabs first."""
    basis = cell.basis[NAME]
    found = []
    if blockwise(settings):
        found = [Unit(NAME, basis, job=_job(cell, slab=slab)) for slab in cell.blocks.slabs]
    if JOINT in settings.scores.estimators:
        found += [
            Unit(NAME, basis, job=_job(cell, group=group, blocks=list(members)))
            for group, members in cell.groups.items()
        ]
    return found


def _job(cell: Cell, **more: Any) -> dict[str, Any]:
    return {"cell": cell.name, **more}


def blockwise(settings: StageSettings, slab: int = SPARSE) -> list[str]:
    """The estimators that take each block by itself, those on words only for the embedding."""
    found = [name for name in settings.scores.estimators if name != JOINT]
    return [name for name in found if slab == SPARSE or name not in OF_WORDS]


def _cost(outline: Outline, cell: Cell, unit: Unit) -> Cost:
    rows, queries = cell.rows[TRAIN], cell.rows[QUERY]
    solve = rows**3 / 3.0 + 2.0 * rows**2 * queries
    if "group" in unit.job:
        blocks, solves, estimators = 1, 1, 1
    else:
        blocks = len(cell.blocks.of(unit.job["slab"]))
        wanted = blockwise(outline.settings, unit.job["slab"])
        solves, estimators = blocks * ("fisher" in wanted), len(wanted)
    sorts = 20.0 * blocks * estimators * queries * rows
    dense = 3 * 8.0 * rows**2 if solves else 0.0
    return Cost(
        flops=solves * solve + sorts,
        bytes=8.0 * blocks * estimators * len(HOWS) * rows,
        memory=dense + 8.0 * queries * rows * 6,
    )


def run(session: Session, runtime: Runtime) -> None:
    wanted = [unit for unit, _ in units(session.outline)]
    if wanted:
        runtime.pool(session.work("distinf.stages.gram.scores:body"), wanted, session.ledger(NAME))


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Array "totals" fp64 [E, H, B, N]; NaN where a training row is quarantined."""
    cell = session.cell(unit.job["cell"])
    found = _joint(session, cell, unit) if "group" in unit.job else _slab(session, cell, unit)
    totals, notes = found
    summary = {"notes": notes, "queries": int(right_queries(session, cell).sum())}
    return session.commit(
        unit, attempt, {"totals": totals}, summary=summary, may_hold_nan=["totals"]
    )


def _slab(session: Session, cell: Cell, unit: Unit) -> tuple[np.ndarray, list[dict[str, Any]]]:
    slab = unit.job["slab"]
    wanted, blocks = blockwise(session.settings, slab), cell.blocks.of(slab)
    totals = np.full((len(wanted), len(HOWS), len(blocks), cell.rows[TRAIN]), np.nan)
    notes: list[dict[str, Any]] = []
    parts = _Parts(session, cell, slab)
    for place, block in enumerate(blocks):
        for e, name in enumerate(wanted):
            scores_QN, note = parts.scores(name, place)
            totals[e, :, place] = _aggregated(session, cell, scores_QN)
            if note:
                notes.append({"block": block.name, "estimator": name, **note})
    return totals, notes


def _joint(session: Session, cell: Cell, unit: Unit) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Fisher's inverse over all blocks of a group at once."""
    members = set(unit.job["blocks"])
    finite_N = finite_rows(session, cell.name, TRAIN)
    total_NN = np.zeros((int(finite_N.sum()),) * 2)
    cross_QN = np.zeros((cell.rows[QUERY], len(total_NN)))
    for slab in cell.blocks.slabs:
        inside = [(k, b) for k, b in enumerate(cell.blocks.of(slab)) if b.name in members]
        if not inside:
            continue
        cross_BQN = tiled(session, cell, slab, "cross", "cross")
        for place, _ in inside:
            cross_QN += cross_BQN[place][:, finite_N]
            total_NN += self_gram(session, cell, slab, place)[np.ix_(finite_N, finite_N)]
    damping = session.settings.scores.damping.get(JOINT)
    scores_QN, note = _fisher(total_NN, cross_QN, damping)
    totals = _aggregated(session, cell, _spread(scores_QN, finite_N))[None, :, None]
    return totals, [{"block": unit.job["group"], "estimator": JOINT, **note}]


def _fisher(
    gram_NN: np.ndarray, cross_QN: np.ndarray, damping: float | None
) -> tuple[Tensor, dict[str, float]]:
    solved = fisher.solve(torch.from_numpy(gram_NN), torch.from_numpy(cross_QN), damping)
    return solved.scores_QN, {"damping": solved.damping, "condition": solved.condition}


class _Parts:
    """What the estimators of one slab are made of, read once."""

    def __init__(self, session: Session, cell: Cell, slab: int) -> None:
        self.session, self.cell, self.slab = session, cell, slab
        self.finite_N = finite_rows(session, cell.name, TRAIN)
        self.cross_BQN = tiled(session, cell, slab, "cross", "cross")
        self.sqnorm_BN = tiled(session, cell, slab, "cross", "sqnorm")
        self.wanted = blockwise(session.settings, slab)
        self._gram: tuple[int, np.ndarray] | None = None
        if "datainf" in self.wanted:
            self.damping_B = dampings(session, cell, slab)
            if slab != SPARSE:
                self.correction_BQN = tiled(session, cell, slab, "correction", "correction")

    def scores(self, name: str, place: int) -> tuple[Tensor, dict[str, float]]:
        """fp64 [Q, N], NaN in columns of quarantined rows, and what is to be said of a damping."""
        keep = self.finite_N
        cross_QN = torch.from_numpy(self.cross_BQN[place][:, keep]).double()
        sqnorm_N = torch.from_numpy(self.sqnorm_BN[place][keep])
        note: dict[str, float] = {}
        if name in OF_WORDS:
            stored = tiled(self.session, self.cell, self.slab, "cross", WORD_CROSS[name])
            found = torch.from_numpy(stored[place][:, keep]).double()
        elif name == "tracin":
            found = tracin.scores(cross_QN)
        elif name == "cosine":
            found = cosine.scores(cross_QN, self._query_sqnorms(place), sqnorm_N)
        elif name == "datainf":
            found, note = self._datainf(place, cross_QN, sqnorm_N)
        else:
            damping = self.session.settings.scores.damping.get(name)
            found, note = _fisher(self._self(place), cross_QN.numpy(), damping)
        return _spread(found, keep), note

    def _query_sqnorms(self, place: int) -> Tensor:
        return torch.from_numpy(query_sqnorms(self.session, self.cell, self.slab)[place])

    def _datainf(
        self, place: int, cross_QN: Tensor, sqnorm_N: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        damping, count = self.damping_B[place], len(sqnorm_N)
        if damping == 0.0:  # no training row has a gradient here
            return torch.zeros_like(cross_QN), {"damping": 0.0}
        if self.slab == SPARSE:
            weights_QN = datainf.weights(cross_QN, sqnorm_N, damping)
            correction_QN = weights_QN @ torch.from_numpy(self._self(place))
        else:
            kept_QN = self.correction_BQN[place][:, self.finite_N]
            correction_QN = torch.from_numpy(kept_QN).double()
        return datainf.scores(cross_QN, correction_QN, damping, count), {"damping": damping}

    def _self(self, place: int) -> np.ndarray:
        """fp64 [N, N] of the finite rows; the last one is kept."""
        if self._gram is None or self._gram[0] != place:
            gram_NN = self_gram(self.session, self.cell, self.slab, place)
            self._gram = place, gram_NN[np.ix_(self.finite_N, self.finite_N)]
        return self._gram[1]


def _spread(scores_QN: Tensor, finite_N: np.ndarray) -> Tensor:
    """Columns back in their places, NaN where a row was left out."""
    out = torch.full((len(scores_QN), len(finite_N)), torch.nan, dtype=torch.float64)
    out[:, torch.from_numpy(finite_N)] = scores_QN.double()
    return out


def right_queries(session: Session, cell: Cell) -> np.ndarray:
    """bool [Q]: finite queries that the model gets right."""
    found: np.ndarray = session.cached(
        ("right", cell.name),
        lambda: (
            columns(session, cell.name, QUERY, "correct") & finite_rows(session, cell.name, QUERY)
        ),
    )
    return found


def _aggregated(session: Session, cell: Cell, scores_QN: Tensor) -> np.ndarray:
    """fp64 [H, N]: mean over all finite queries; rank and vote over those that are right."""
    finite_N = torch.isfinite(scores_QN).all(0)
    finite_Q = torch.from_numpy(finite_rows(session, cell.name, QUERY))
    right_Q = torch.from_numpy(right_queries(session, cell))
    if not bool(right_Q.any()):
        raise InputError(
            f"scores: the model gets no query of cell '{cell.name}' right, so that rank and vote "
            "have nothing to go by; train longer (train.epochs, train.lr) or use other queries"
        )
    found = tallies(
        scores_QN[:, finite_N][finite_Q], right_Q[finite_Q], session.settings.scores.top
    )
    out = np.full((len(HOWS), scores_QN.shape[1]), np.nan)
    out[:, finite_N.numpy()] = np.stack([found[how].numpy() for how in HOWS])
    return out


def query_sqnorms(session: Session, cell: Cell, slab: int) -> np.ndarray:
    """fp64 [B, Q]."""
    from distinf.stages.gram.gram import slab_units

    first = slab_units(session.settings, cell, "cross", slab)[0]
    return session.arrays(first, ["query_sqnorm"])["query_sqnorm"]


# -- what was stored -------------------------------------------------------------------------


def block_totals(session: Session, cell: Cell) -> dict[tuple[str, str], np.ndarray]:
    """(estimator, block) -> fp64 [H, N] of every blockwise estimator."""
    return session.cached(("totals", cell.name), lambda: _block_totals(session, cell))  # type: ignore[no-any-return]


def _block_totals(session: Session, cell: Cell) -> dict[tuple[str, str], np.ndarray]:
    found = {}
    for unit in cell_units(session.settings, cell):
        if "group" in unit.job:
            continue
        totals = session.arrays(unit)["totals"]
        blocks: Sequence[Block] = cell.blocks.of(unit.job["slab"])
        for e, name in enumerate(blockwise(session.settings, unit.job["slab"])):
            for place, block in enumerate(blocks):
                found[name, block.name] = totals[e, :, place]
    return found


def joint_totals(session: Session, cell: Cell) -> dict[str, np.ndarray]:
    """Group -> fp64 [H, N] of the joint Fisher inverse."""
    wanted = [u for u in cell_units(session.settings, cell) if "group" in u.job]
    return {u.job["group"]: session.arrays(u)["totals"][0, :, 0] for u in wanted}


def all_scores(session: Session, cell: Cell) -> dict[tuple[str, str, str], np.ndarray]:
    """(estimator, group, how) -> fp64 [N], low = detrimental; a mean is over the group's blocks."""
    return session.cached(("scores", cell.name), lambda: _all_scores(session, cell))  # type: ignore[no-any-return]


def _all_scores(session: Session, cell: Cell) -> dict[tuple[str, str, str], np.ndarray]:
    totals = block_totals(session, cell)
    found: dict[tuple[str, str, str], np.ndarray] = {}
    for estimator in session.settings.scores.estimators:
        for group, members in cell.groups.items():
            parts = [totals[estimator, b] for b in members if (estimator, b) in totals]
            if len(parts) < len(members):
                continue
            summed_HN = np.sum(parts, axis=0)
            for h, how in enumerate(HOWS):
                scale = len(parts) if how == "mean" else 1
                found[estimator, group, how] = summed_HN[h] / scale
    for group, totals_HN in joint_totals(session, cell).items():
        found |= {(JOINT, group, how): totals_HN[h] for h, how in enumerate(HOWS)}
    return found


def headline(session: Session, cell: Cell) -> tuple[str, str, str]:
    """What ranks a cell's rows: the setting, or datainf/all/vote if it is there."""
    found = all_scores(session, cell)
    named = session.settings.report.ranking
    if named:
        return named_configuration(named, found)
    first = session.settings.scores.estimators[0]
    for choice in ("datainf", first):
        for group in (ALL, EMBEDDING):
            if (choice, group, "vote") in found:
                return choice, group, "vote"
    return next(iter(found))


def named_configuration(
    name: str, found: dict[tuple[str, str, str], np.ndarray]
) -> tuple[str, str, str]:
    """The key of "estimator/group/how"; InputError with what there is."""
    estimator, group, how = [*name.split("/"), "", ""][:3]
    if (estimator, group, how) not in found:
        known = ", ".join(dict.fromkeys(f"{e}/{g}" for e, g, _ in found))
        raise InputError(f"'{name}' is not among the scores: {known}, each with mean, rank or vote")
    return estimator, group, how
