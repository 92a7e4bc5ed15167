"""Queries times an inverse of the curvature, block by block: Fisher's in parameter space, EK-FAC's.

The gram stage stores them with the sums over a slab's training rows; correction and scores read
them. Shape legend: Q queries, N training rows, P entries of a block or slab.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.gram.factors import curvature
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.settings import EKFAC
from distinf.gram.stored_gradients import dense_rows, finite_rows
from distinf.gram.tiles import FACTORS, compared_queries, named, narrow
from distinf.numerics.estimators import fisher


def moments_of(session: Session, cell: Cell, slab: int) -> dict[int, Tensor]:
    """By place, fp64 [P, P] of the blocks whose Fisher matrix is taken in parameter space: room for
    T^T T of all training rows T."""
    if "fisher" not in session.settings.scores.estimators:
        return {}
    return {
        place: torch.zeros(block.width, block.width, dtype=torch.float64, device=session.device)
        for place, block in enumerate(cell.blocks.of(slab))
        if narrow(cell, block)
    }


def fisher_queries(
    session: Session, cell: Cell, slab: int, moments: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Fisher's queries of narrow blocks; zeros at a damping that its matrix does not allow."""
    count = int(finite_rows(session, cell.name, TRAIN).sum())
    given = session.settings.scores.damping.get("fisher")
    found: dict[str, Tensor] = {}
    blocks = cell.blocks.of(slab)
    for place, moment_PP in moments.items():
        query_QP = query_slab(session, cell.name, slab)[:, blocks[place].span]
        with solving("fisher", blocks[place].name):
            solved = fisher.precondition(moment_PP, query_QP, count, given)
        parts = [solved.queries_QP]
        for first_QP, factor in _compared(cell, query_QP):
            try:
                other = fisher.precondition(moment_PP, first_QP, count, factor * solved.damping)
                parts.append(other.queries_QP)
            except InputError:
                parts.append(torch.zeros_like(first_QP, dtype=torch.float64))
        found |= _stored("fisher", place, torch.cat(parts), (solved.damping, solved.condition))
    return found


def ekfac_queries(session: Session, cell: Cell, slab: int) -> dict[str, Tensor]:
    """EK-FAC's queries of a slab's blocks. A layer may reach into other slabs."""
    ekfac, given = curvature(session, cell), session.settings.scores.damping.get(EKFAC)
    layer_of = {block.name: ekfac.layer_of(block.name) for block in cell.blocks.dense}
    layers = {layer_of[block.name] for block in cell.blocks.of(slab)}
    queries = {
        block.name: query_slab(session, cell.name, block.slab)[:, block.span].cpu()
        for block in cell.blocks.dense
        if layer_of[block.name] in layers
    }
    found: dict[str, Tensor] = {}
    solved = [ekfac.solve(queries, given)]
    for k, factor in enumerate(FACTORS):
        first = {name: _compared(cell, query_QP)[k][0] for name, query_QP in queries.items()}
        solved.append(ekfac.solve(first, given, factor))
    for place, block in enumerate(cell.blocks.of(slab)):
        layer = layer_of[block.name]
        query_QP = torch.cat([part[block.name] for part in solved])  # type: ignore[misc]
        damping, largest = given or ekfac.damping(layer), float(ekfac.eigenvalues[layer].max())
        note = damping, (largest + damping) / damping if damping else 1.0
        found |= _stored(EKFAC, place, query_QP, note)
    return found


def _compared(cell: Cell, query_QP: Tensor) -> list[tuple[Tensor, float]]:
    """The first queries, and a factor of the damping."""
    return [(query_QP[: compared_queries(cell)], factor) for factor in FACTORS]


def _stored(
    name: str, place: int, query_QP: Tensor, note: tuple[float, float]
) -> dict[str, Tensor]:
    """fp64 [Q, entries]; damping and condition."""
    return {
        named(name, place): query_QP,
        named(f"{name}.note", place): torch.tensor(note, dtype=torch.float64),
    }


def query_slab(session: Session, name: str, slab: int) -> Tensor:
    """fp32 [Q, P] on the device; the last one is kept."""
    queries = session.cell(name).rows[QUERY]
    found: Tensor = session.latest(
        "query slab",
        (name, slab),
        lambda: dense_rows(session, name, QUERY, slab, 0, queries).to(session.device),
    )
    return found


@contextmanager
def solving(estimator: str, block: str) -> Iterator[None]:
    """An InputError of a solve says which block, and which setting would help."""
    try:
        yield
    except InputError as error:
        raise InputError(f"scores.damping.{estimator}: '{block}': {error}") from None
