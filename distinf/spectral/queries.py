"""Stage queries: gradients of the targets under every loss, and their refined solves.

A refined solve x = (H + damping)^-1 g is committed with its outcome; one that failed is never
used for a score.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.engine.session import done_for_all
from distinf.engine.stage import Names, Stage, Values
from distinf.errors import InputError
from distinf.numerics.capture import finite_rows, flat_gradients
from distinf.numerics.parameters import Layout
from distinf.numerics.solve import RefineSettings, Solution, refine
from distinf.numerics.variants import Spectrum, spectrum
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.spectral.curvature import (
    PRODUCT,
    drawn_rows,
    left_out_rows,
    mean_product,
    product_bytes,
    stored_pairs,
)
from distinf.spectral.damping import damping_of
from distinf.spectral.evaluate import chosen_targets, evaluated
from distinf.spectral.session import Outline, Session
from distinf.spectral.settings import REFINEMENT
from distinf.spectral.train import trained_model
from distinf.tasks.methods import agree, in_a_run
from distinf.tasks.task import Batch, PerSampleLoss

NAME = "queries"


def gradient_unit(outline: Outline) -> Unit:
    return Unit(NAME, outline.keys[NAME], job={"part": "target gradients"})


def solve_units(outline: Outline) -> list[Unit]:
    """One per refined target (by rank) and loss."""
    refined = min(outline.settings.curvature.refine, outline.settings.targets.count)
    return [
        Unit(NAME, outline.keys[NAME], job={"solve": rank, "loss": loss})
        for rank in range(refined)
        for loss in outline.losses
    ]


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """The targets' gradients, then the refined solves."""
    shapes, settings = outline.shapes, outline.settings
    vector = 4.0 * shapes.parameters
    count = settings.targets.count * len(outline.losses)
    samples = min(settings.curvature.samples, outline.training_rows)
    products = samples * settings.curvature.refine_steps
    product = PRODUCT * shapes.flops_per_sample * products
    flops = 3 * shapes.flops_per_sample * count
    gradients = Cost(
        flops=flops,
        bytes=vector * count,
        memory=vector * count,
        device=3 * shapes.activation_bytes_per_sample + vector * (count + 1),
        staged=vector,
        work={"gradient": count},
    )
    passed, lever = product_bytes(outline)
    kept = vector * settings.curvature.refine_steps
    solve = Cost(
        flops=product,
        bytes=vector,
        memory=vector,
        device=passed + kept + vector * (settings.curvature.keep + 1),
        staged=vector * (settings.curvature.keep + 1),
        levers=(lever, Lever("curvature.refine_steps", settings.curvature.refine_steps, kept)),
        work={"product": products},
    )
    return [
        (gradient_unit(outline), gradients),
        *((unit, solve) for unit in solve_units(outline)),
    ]


def check(outline: Outline) -> None:
    """InputError for settings that contradict each other."""
    settings = outline.settings
    complement, known = settings.scores.complement, settings.curvature.probes > 0
    whole = settings.curvature.keep >= outline.shapes.parameters  # nothing is outside the pairs
    if complement in ("mean", "gradients") and not known and not whole:
        raise InputError(
            f"scores.complement: {complement} is the mean eigenvalue outside the Ritz pairs, which "
            "curvature.probes 0 leaves unknown; set curvature.probes to 1 or more, or "
            "scores.complement to damping or none"
        )
    if complement == "damping" and settings.scores.damping == 0 and not whole:
        raise InputError(
            "scores.complement: damping with scores.damping 0 divides by 0 outside the Ritz "
            "pairs; set scores.damping above 0, or scores.complement to gradients or none"
        )
    if settings.curvature.refine and complement == "none":
        raise InputError(
            "curvature.refine: a refined solve is of the whole operator, and scores.complement "
            "none truncates the inverse to the Ritz pairs; set curvature.refine to 0, or "
            "scores.complement to gradients or damping"
        )


def is_done(session: Session) -> bool:
    if not evaluated(session):
        return False
    wanted = [gradient_unit(session.outline), *_solvable(session)]
    return len(session.done(wanted)) == len(wanted)


def run(session: Session, runtime: Runtime) -> None:
    report = damped_spectrum(session).report  # refused here if it is indefinite
    if session.settings.curvature.refine and (report.changed or report.dropped):
        raise InputError(
            f"curvature.refine: scores.negative={report.policy} changed {report.changed} and "
            f"dropped {report.dropped} Ritz values, but a refined solve is of the operator as it "
            "is; raise scores.damping, use gauss-newton, or set curvature.refine to 0"
        )
    wanted = [gradient_unit(session.outline), *_solvable(session)]
    if len(session.done(wanted)) < len(wanted):
        runtime.gang(
            session.work("distinf.spectral.queries:body"),
            session.settings.curvature.shards,
            session.ledger(NAME),
        )


def damped_spectrum(session: Session) -> Spectrum:
    """The run's Ritz values under its policy and damping; InputError if they are refused."""
    settings = session.settings.scores
    pairs = stored_pairs(session)
    # Without probes every direction has its pair (`check`), but those of the Krylov space's null.
    unknown = settings.complement == "gradients" and pairs.seen is None
    try:
        return spectrum(
            pairs.values,
            damping_of(session, pairs.values).value,
            dim=pairs.vectors.shape[1],
            trace=pairs.trace,
            policy=settings.negative,
            complement="damping" if unknown else settings.complement,
            seen=pairs.seen,
        )
    except InputError as error:
        raise InputError(
            f"scores: {error} (scores.damping, scores.negative; then run again with "
            "--accept scores.damping or --accept scores.negative)"
        ) from None


def _solvable(session: Session) -> list[Unit]:
    """Solves of targets that exist: there may be fewer than were asked for."""
    count = len(chosen_targets(session).ids)
    return [unit for unit in solve_units(session.outline) if unit.job["solve"] < count]


def body(session: Session, collective: Collective, attempt: str) -> int:
    """Gradients, then one solve after the other -> how many solves."""
    model = session.cached("trained", lambda: trained_model(session))
    layout = Layout.of(model, session.settings.curvature.blocks)
    unit = gradient_unit(session.outline)
    if not all(done_for_all(session, collective, [unit])):
        ids = chosen_targets(session).ids
        owned = collective.owned(len(ids))
        batch = session.batch("evaluation", ids[owned.start : owned.stop]) if owned else {}
        arrays = {}
        for name, loss in session.task.losses.items():
            mine_TP = layout.gather(model).new_empty((0, layout.size))
            if owned:
                mine_TP = target_gradients(session, model, loss, batch, layout)
            grads_TP = collective.all_gather(mine_TP)
            if not finite_rows(grads_TP).all():
                bad = ids[~finite_rows(grads_TP).cpu().numpy()].tolist()
                raise InputError(f"targets: the {name} gradient of rows {bad} is not finite")
            if not grads_TP.any():
                raise InputError(
                    f"targets: the {name} gradient of every target is exactly zero, which ranks "
                    "nothing: choose other targets.ids, or use a loss that is not flat there"
                )
            arrays[name] = grads_TP.cpu().numpy()
        if collective.rank == 0:
            session.commit(unit, attempt, arrays)
    collective.barrier()
    _solve_all(session, collective, attempt)
    return len(_solvable(session))


def target_gradients(
    session: Session, model: nn.Module, loss: PerSampleLoss, batch: Batch, layout: Layout
) -> Tensor:
    """[T, P]: the targets' gradients, each by itself."""
    settings = session.settings.gradients
    with in_a_run():
        agree(model, loss, batch, layout, settings, (settings.chosen,), rows=1)
        return flat_gradients(model, loss, batch, layout, chunk=1, method=settings.chosen)


def _solve_all(session: Session, collective: Collective, attempt: str) -> None:
    wanted = _solvable(session)
    done = done_for_all(session, collective, wanted)
    if all(done):
        return
    settings = session.settings.curvature
    model = session.cached("trained", lambda: trained_model(session))
    layout = Layout.of(model, settings.blocks)
    rows = np.setdiff1d(drawn_rows(session), left_out_rows(session))
    matvec = mean_product(session, collective, model, layout, rows)
    limits = RefineSettings(tolerance=settings.refine_tolerance, steps=settings.refine_steps)
    vectors_KP = stored_pairs(session).vectors.to(session.device)
    gradients = session.arrays(gradient_unit(session.outline))
    for unit in (unit for unit, is_done in zip(wanted, done, strict=True) if not is_done):
        rhs_P = torch.from_numpy(gradients[unit.job["loss"]][unit.job["solve"]])
        solution = refine(
            matvec, rhs_P.to(session.device), vectors_KP, damped_spectrum(session), limits,
            collective,
        )  # fmt: skip
        if collective.rank == 0:
            _commit(session, unit, attempt, solution)
    collective.barrier()


def _commit(session: Session, unit: Unit, attempt: str, solution: Solution) -> Record:
    summary = {
        "status": str(solution.status),
        "steps": solution.steps,
        "residual": solution.residual,
        "message": solution.message,
        "negative_curvature": solution.negative_curvature,
    }
    return session.commit(unit, attempt, {"x": solution.x.cpu().numpy()}, summary=summary)


def query_gradients(session: Session) -> dict[str, Tensor]:
    """Loss name -> [targets, P]."""
    stored = session.cached("queries", lambda: session.arrays(gradient_unit(session.outline)))
    return {name: torch.from_numpy(values) for name, values in stored.items()}


def solves(session: Session) -> dict[tuple[int, str], Record]:
    """(target's rank, loss) -> the solve's record."""
    wanted = _solvable(session)
    done = session.done(wanted)
    return {(unit.job["solve"], unit.job["loss"]): done[unit.id] for unit in wanted}


def converged_solutions(session: Session) -> dict[tuple[int, str], np.ndarray]:
    """(target's rank, loss) -> x [P], of the solves that converged."""
    by_key = {(unit.job["solve"], unit.job["loss"]): unit for unit in _solvable(session)}
    return {
        key: session.arrays(by_key[key])["x"]
        for key, record in solves(session).items()
        if record["summary"]["status"] == "converged"
    }


def _reads(values: Values) -> Names:
    """With solves, the operator that they invert."""
    refinement = tuple(f"curvature.{name}" for name in REFINEMENT)
    operator = ("scores.damping", "scores.negative", "scores.complement")
    solved = values["curvature"]["refine"] > 0
    passes = ("gradients.method", "gradients.precision")
    return (*passes, *refinement, *(operator if solved else ()))


STAGE = Stage(
    NAME, "target gradients", needs=("evaluate", "curvature", "targets"), reads=_reads,
    units=units, run=run, done=is_done, shards=lambda settings: settings.curvature.shards,
)  # fmt: skip
