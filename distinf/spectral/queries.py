"""Stage queries: gradients of the targets under every loss, and their refined solves."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.engine.session import done_for_all
from distinf.engine.stage import Names, Stage, Values
from distinf.errors import InputError
from distinf.numerics.capture import finite_rows, flat_gradients
from distinf.numerics.parameters import Layout
from distinf.runtime import Cost, Runtime, Unit
from distinf.spectral import curvature, solves, spectra
from distinf.spectral.evaluate import chosen_targets, evaluated
from distinf.spectral.session import Outline, Session
from distinf.spectral.settings import REFINEMENT
from distinf.spectral.train import trained_layers
from distinf.tasks.methods import agree, in_a_run
from distinf.tasks.task import Batch, PerSampleLoss

NAME = "queries"


def gradient_unit(outline: Outline) -> Unit:
    return Unit(NAME, outline.keys[NAME], job={"part": "target gradients"})


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """The targets' gradients, then the refined solves."""
    shapes, settings = outline.shapes, outline.settings
    vector = outline.vector
    count = settings.targets.count * len(outline.losses)
    gradients = Cost(
        flops=shapes.forwards["gradient"] * shapes.flops_per_sample * count,
        bytes=vector * count,
        memory={"results": vector * count},
        device={
            "weights": shapes.model_bytes,
            "activations": 3 * shapes.activation_bytes_per_sample,
            "gradients": vector * count,
        },
        staged=shapes.model_bytes,
        work={"gradient": count},
        loaded=outline.loaded,
        summed=vector * count,
    )
    return [(gradient_unit(outline), gradients), *solves.costed_units(outline)]


def check(outline: Outline) -> None:
    """InputError for settings that contradict each other."""
    settings = outline.settings
    complement, known = settings.scores.complement, settings.curvature.probes > 0
    whole = settings.curvature.keep >= outline.entries  # nothing is outside the pairs
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
    if not (evaluated(session) and curvature.is_done(session)):
        return False
    return len(session.done([gradient_unit(session.outline)])) == 1 and solves.are_done(session)


def run(session: Session, runtime: Runtime) -> None:
    spectra.damped_spectrum(session)  # refused here if it is indefinite
    if not is_done(session):
        runtime.gang(
            session.work("distinf.spectral.queries:body"),
            session.settings.curvature.shards,
            session.ledger(NAME),
        )


def body(session: Session, collective: Collective, attempt: str) -> int:
    """Gradients, then the solves -> how many of these there are."""
    model, layout = trained_layers(session)
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
    solves.solve_all(session, collective, attempt, session.arrays(unit))
    return len(solves.solves(session))


def target_gradients(
    session: Session, model: nn.Module, loss: PerSampleLoss, batch: Batch, layout: Layout
) -> Tensor:
    """[T, P]: the targets' gradients, each by itself."""
    settings = session.settings.gradients
    with in_a_run():
        agree(model, loss, batch, layout, settings, (settings.chosen,), rows=1)
        return flat_gradients(model, loss, batch, layout, chunk=1, method=settings.chosen)


def query_gradients(session: Session) -> dict[str, Tensor]:
    """Loss name -> [targets, P]."""
    stored = session.cached("queries", lambda: session.arrays(gradient_unit(session.outline)))
    return {name: torch.from_numpy(values) for name, values in stored.items()}


def _reads(values: Values) -> Names:
    """With solves, the operator that they invert."""
    passes = ("gradients.method", "gradients.precision")
    scores = values["scores"]
    if not solves.is_asked(values["curvature"]["refine"], scores["complement"], scores["filter"]):
        return passes
    refinement = tuple(f"curvature.{name}" for name in REFINEMENT)
    operator = (f"scores.{name}" for name in ("damping", "negative", "complement", "filter"))
    return (*passes, *refinement, *operator)


STAGE = Stage(
    NAME, "target gradients", needs=("evaluate", "curvature", "targets"), reads=_reads,
    units=units, run=run, done=is_done, shards=lambda settings: settings.curvature.shards,
)  # fmt: skip
