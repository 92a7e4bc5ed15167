"""Stage factors: EK-FAC of the trained model, and the targets' gradients through its inverse.

sums, bases, values  over the rows that the curvature's products are over: tasks/factors.py
queries              per loss [targets, P]: (F + damping)^-1 g of each target, which the gradients
                     stage takes among its directions

Only where scores.ekfac asks for it.
"""

from collections.abc import Sequence

import numpy as np
import torch

from distinf.engine.session import row_ranges
from distinf.engine.stage import Names, Stage, Values
from distinf.errors import InputError
from distinf.microbatch import rows_at_once
from distinf.numerics.ekfac import EkFac
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.spectral.curvature import left_out_rows
from distinf.spectral.mean_product import drawn_rows
from distinf.spectral.queries import query_gradients
from distinf.spectral.session import Outline, Session
from distinf.spectral.train import trained_layers
from distinf.tasks.factors import (
    PHASES,
    SHARDS,
    Batches,
    Passes,
    check_sampling,
    ekfac_of,
    rotations,
    squares,
)

NAME = "factors"
QUERIES, EKFAC = "queries", "ekfac"


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Phase by phase; none where EK-FAC is not asked for."""
    return [
        (unit, _cost(outline, unit))
        for phase in (*PHASES, QUERIES)
        for unit in phase_units(outline, phase)
    ]


def phase_units(outline: Outline, phase: str) -> list[Unit]:
    """The units of one phase; their ranges are of the drawn rows."""
    if not outline.settings.scores.ekfac:
        return []
    rows = min(outline.settings.curvature.samples, outline.training_rows)
    size = -(-rows // SHARDS) if phase in ("sums", "values") else rows
    job = {"phase": phase}
    return [Unit(NAME, outline.keys[NAME], a, b, job) for a, b in row_ranges(rows, size)]


def _cost(outline: Outline, unit: Unit) -> Cost:
    settings, shapes, forms = outline.settings, outline.shapes, outline.forms
    factors, vector, rows = 8.0 * squares(forms), outline.vector, unit.stop - unit.start
    if unit.job["phase"] == "bases":
        flops, read = 10.0 * squares(forms, 3), SHARDS * factors
        return Cost(flops, bytes=factors, memory=2.0 * factors, read=read)
    if unit.job["phase"] == QUERIES:
        count = settings.targets.count * len(outline.losses)
        held = 4.0 * vector * count + factors
        flops, read = count * rotations(forms) * 2.0, vector * count + factors
        return Cost(flops, bytes=vector * count, memory=held, read=read)
    summed = unit.job["phase"] == "sums"
    stored = factors if summed else 2.0 * vector
    each = 2.0 * max(shapes.tokens_per_row or 1.0, 1.0) * squares(forms)
    chunk, passes = settings.gradients.chunk, shapes.forwards["gradient"] * shapes.flops_per_sample
    passed = chunk * (shapes.activation_bytes_per_sample + (0.0 if summed else vector))
    return Cost(
        flops=rows * (passes + (each if summed else rotations(forms))),
        bytes=stored,
        memory=stored,
        device={"weights": shapes.model_bytes, "activations": passed, "factors": factors + stored},
        staged=shapes.model_bytes,
        levers=(
            Lever("gradients.chunk", chunk, passed),
            Lever("scores.ekfac", 1.0, factors + stored, advice="set scores.ekfac to false"),
        ),
        work={"gradient": rows},
        loaded=outline.loaded | ({} if summed else {"factors": factors}),
    )


def check(session: Session) -> None:
    """InputError where EK-FAC is asked for and cannot be had."""
    if not session.settings.scores.ekfac:
        return
    if session.settings.gradients.chosen != "hooks":
        raise InputError(
            "scores.ekfac: needs gradients.method: hooks, which see each layer's input; set "
            "scores.ekfac to false"
        )
    try:
        check_sampling(session.task)
    except InputError as error:
        raise InputError(f"scores.ekfac: {error}") from None


def run(session: Session, runtime: Runtime) -> None:
    """Phase by phase: each needs all of the one before."""
    work, ledger = session.work("distinf.spectral.factors:body"), session.ledger(NAME)
    for phase in (*PHASES, QUERIES):
        wanted = phase_units(session.outline, phase)
        if wanted:
            runtime.pool(work, wanted, ledger)


def body(session: Session, unit: Unit, attempt: str) -> Record:
    phase = unit.job["phase"]
    made = _queries(session) if phase == QUERIES else _passes(session, unit).arrays(phase)
    return session.commit(unit, attempt, made)


def _passes(session: Session, unit: Unit) -> Passes:
    parts, (whole,) = (phase_units(session.outline, phase) for phase in ("sums", "bases"))
    return Passes(
        session.task, session.seed, session.settings.gradients.precision, session.device,
        session.outline.forms,
        model=lambda: trained_layers(session),
        batches=lambda: _batches(session, unit),
        setting="gradients.chunk",
        sums=lambda key: (session.arrays(part, [key])[key] for part in parts),
        bases=lambda: session.latest("bases", whole.id, lambda: session.arrays(whole)),
    )  # fmt: skip


def _batches(session: Session, unit: Unit) -> Batches:
    left_out = left_out_rows(session)
    mine = drawn_rows(session)[unit.start : unit.stop]
    ids = mine[~np.isin(mine, left_out)]
    size = rows_at_once("gradients.chunk", session.settings.gradients.chunk)
    for a, b in row_ranges(len(ids), size):
        yield ids[a:b], session.batch("train", ids[a:b])


def _queries(session: Session) -> dict[str, np.ndarray]:
    """By loss: fp32 [targets, P]."""
    _, layout = trained_layers(session)
    curvature, damping = _curvature(session), session.settings.scores.ekfac_damping
    found = {}
    for loss, grads_TP in query_gradients(session).items():
        blocks = {name: grads_TP[:, span] for name, span in layout.spans.items()}
        solved = curvature.solve(blocks, damping)
        rows = [part for part in solved.values() if isinstance(part, torch.Tensor)]
        found[loss] = torch.cat(rows, 1).float().numpy()
    return found


def _curvature(session: Session) -> EkFac:
    (bases,) = phase_units(session.outline, "bases")
    parts = (session.arrays(part) for part in phase_units(session.outline, "values"))
    rows = len(drawn_rows(session)) - len(left_out_rows(session))
    return ekfac_of(session.arrays(bases), parts, rows)


def solved_queries(session: Session) -> dict[str, torch.Tensor]:
    """Loss name -> [targets, P]; empty where EK-FAC is not asked for."""
    found: dict[str, torch.Tensor] = {}
    for unit in phase_units(session.outline, QUERIES):
        found |= {loss: torch.from_numpy(rows) for loss, rows in session.arrays(unit).items()}
    return found


def _reads(values: Values) -> Names:
    """Nothing where EK-FAC is not asked for."""
    passes = ("gradients.chunk", "gradients.method", "gradients.precision", "curvature.blocks")
    mine = ("scores.ekfac", "scores.ekfac_damping", "seed")
    return (*passes, *mine) if values["scores"]["ekfac"] else ()


STAGE = Stage(
    NAME, "Kronecker factors", needs=("curvature", "queries"), reads=_reads,
    uncounted=("scores.ekfac",), units=units, run=run,
)  # fmt: skip
