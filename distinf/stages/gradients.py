"""Stage gradients: one pass over the training rows, projecting each per-sample gradient.

Stored per row: its coordinates in the kept Ritz vectors, its squared norm, and its dot products
with every query gradient and refined solve. With these every variant is a matrix product away.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distinf.numerics.capture import finite_rows, flat_gradients
from distinf.numerics.parameters import Layout
from distinf.runtime import Cost, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.stages.curvature import stored_pairs
from distinf.stages.queries import converged_solutions, query_gradients
from distinf.stages.session import Outline, Session, row_ranges
from distinf.stages.train import trained_model
from distinf.store import Rows

NAME = "gradients"


def scored_rows(outline: Outline) -> int:
    """How many training rows, from the first on, are scored."""
    wanted = outline.settings.gradients.rows
    return min(wanted, outline.rows["train"]) if wanted else outline.rows["train"]


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Row ranges of the training split."""
    settings, shapes = outline.settings, outline.shapes
    queries = settings.targets.count * len(outline.losses)
    width = settings.curvature.keep + queries + 2
    per_row = shapes.parameters * 4.0
    memory = settings.gradients.chunk * (per_row + 3 * shapes.activation_bytes_per_sample)
    memory += per_row * width
    flops = 3 * shapes.flops_per_sample + 2.0 * shapes.parameters * width
    return [
        (
            Unit(NAME, outline.basis[NAME], a, b),
            Cost(flops * (b - a), 4.0 * width * (b - a), memory),
        )
        for a, b in row_ranges(scored_rows(outline), settings.gradients.rows_per_unit)
    ]


def run(session: Session, runtime: Runtime) -> None:
    wanted = [unit for unit, _ in units(session.outline)]
    runtime.pool(session.work("distinf.stages.gradients:body"), wanted, session.ledger(NAME))


def body(session: Session, unit: Unit, attempt: str) -> Record:
    settings = session.settings.gradients
    model = session.cached("trained", lambda: trained_model(session))
    layout = Layout.of(model, session.settings.curvature.blocks)
    directions = session.cached("directions", lambda: _directions(session))
    loss = next(iter(session.task.losses.values()))
    parts: list[dict[str, np.ndarray]] = []
    for a, b in row_ranges(unit.stop - unit.start, settings.chunk):
        ids = np.arange(unit.start + a, unit.start + b)
        grads_NP = flat_gradients(
            model, loss, session.batch("train", ids), layout,
            chunk=settings.chunk, method=settings.method,
        )  # fmt: skip
        parts.append(_project(grads_NP, directions))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    quarantined = (unit.start + np.flatnonzero(~arrays["finite"])).tolist()
    return session.commit(unit, attempt, arrays, summary={"quarantined": quarantined})


def _directions(session: Session) -> dict[str, Tensor]:
    """What gradients are projected on: ritz [K, P], each loss's queries [T, P], solves [R, P]."""
    solved = converged_solutions(session)
    stacked = np.stack([solved[key] for key in sorted(solved)]) if solved else None
    directions = {"ritz": stored_pairs(session).vectors}
    directions |= {f"query.{name}": grads for name, grads in query_gradients(session).items()}
    if stacked is not None:
        directions["solved"] = torch.from_numpy(stacked)
    return {name: values.to(session.device) for name, values in directions.items()}


def _project(grads_NP: Tensor, directions: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Projections of finite rows; the others are marked, and their numbers never used."""
    finite_N = finite_rows(grads_NP)
    safe_NP = torch.where(finite_N[:, None], grads_NP, 0.0)
    found = {name: safe_NP @ rows.T.to(safe_NP) for name, rows in directions.items()}
    found["sqnorm"] = safe_NP.double().square().sum(1)
    arrays = {name: values.cpu().numpy() for name, values in found.items()}
    arrays["finite"] = finite_N.cpu().numpy()
    return arrays


def projections(session: Session) -> Rows:
    """All committed projections, by name, in row order."""
    return session.rows([unit for unit, _ in units(session.outline)])


def quarantined_rows(session: Session) -> list[int]:
    """Training rows whose gradient was not finite; they have no score."""
    wanted = [unit for unit, _ in units(session.outline)]
    done = session.done(wanted)
    return [row for unit in wanted for row in done[unit.id]["summary"]["quarantined"]]
