"""Stage curvature: Arnoldi on the mean Hessian or Gauss-Newton product, as a gang.

Ranks share the samples, sum their products, and each keeps only its slice of the basis. Every
Krylov step is committed: a killed run repeats at most the product it was in.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.engine.session import done_for_all, draw
from distinf.engine.stage import Names, Stage, Values
from distinf.errors import InputError
from distinf.numerics.complement import SeenComplement, complement_probe, seen_by
from distinf.numerics.curvature import Kind
from distinf.numerics.krylov import ArnoldiSettings, ArnoldiState, Matvec, RitzPairs, iterate, ritz
from distinf.numerics.losses import SplitLoss, sum_gradient
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.numerics.second_derivatives import passing_kind
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.spectral.damping import refuse_negative
from distinf.spectral.mean_product import (
    drawn_rows,
    mean_product,
    microbatch,
    product_bytes,
    product_rows,
    summed_bytes,
)
from distinf.spectral.preconditioning import rooted
from distinf.spectral.session import Outline, Session
from distinf.spectral.settings import REFINEMENT, CurvatureSettings, StageSettings
from distinf.spectral.train import trained_layers
from distinf.tasks.identity import has_own_rows
from distinf.tasks.task import STUDIES, Task

NAME = "curvature"
FEWER = "name fewer parameters in curvature.blocks, as by 'lora'"
SEEN = ("product", "sqnorm", "coordinates")  # of a training gradient, as seen_by gives them


def step_units(outline: Outline) -> list[Unit]:
    """One unit per Krylov step."""
    steps = outline.settings.curvature.steps
    return [Unit(NAME, outline.keys[NAME], j, j + 1, {"krylov_step": j}) for j in range(steps)]


def pairs_unit(outline: Outline) -> Unit:
    return Unit(NAME, outline.keys[NAME], job={"part": "ritz pairs"})


def probe_units(outline: Outline) -> list[Unit]:
    """Of the trace, where scores do not take what gradients see instead."""
    settings = outline.settings
    wanted = range(settings.curvature.probes if settings.scores.complement != "gradients" else 0)
    return [Unit(NAME, outline.keys[NAME], i, i + 1, {"trace_probe": i}) for i in wanted]


def seen_units(outline: Outline) -> list[Unit]:
    """Training gradients that tell what the operator is outside the pairs, where scores ask it."""
    settings = outline.settings
    probes = min(settings.curvature.probes, settings.curvature.samples, outline.training_rows)
    wanted = range(probes if settings.scores.complement == "gradients" else 0)
    return [Unit(NAME, outline.keys[NAME], i, i + 1, {"gradient_probe": i}) for i in wanted]


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Krylov steps, the Ritz pairs, the probes of what is outside them."""
    settings, shapes = outline.settings.curvature, outline.shapes
    samples = min(settings.samples, outline.training_rows)
    product = shapes.forwards["product"] * shapes.flops_per_sample * samples
    vector = outline.vector
    passed, lever = product_bytes(outline)
    directions = vector * (settings.steps + settings.keep + 4)
    step = Cost(
        flops=product,
        bytes=vector,
        memory={"results": vector},
        device={
            "weights": shapes.model_bytes,
            "activations": passed,
            "directions": directions,
        },
        staged=vector * settings.keep + shapes.model_bytes,
        levers=(
            lever,
            Lever("curvature.steps", settings.steps, vector * settings.steps, settings.keep),
            Lever("curvature.keep", settings.keep, vector * settings.keep),
            Lever("curvature.blocks", 1.0, directions, advice=FEWER),
        ),
        work={"product": samples, "screen": samples * settings.fresh},
        loaded=outline.loaded,
        summed=summed_bytes(outline) + vector,  # and the next vector, from the ranks' slices
    )
    measured = settings.keep if settings.residuals == "products" else 0
    work = {"product": samples * measured, "screen": samples}  # once over: which are finite
    kept, summed = vector * settings.keep, summed_bytes(outline)
    probe = replace(step, work={"product": samples}, summed=summed)
    pairs = replace(step, flops=product * measured, bytes=kept, memory={"results": kept}, work=work)
    pairs = replace(pairs, summed=kept + summed * measured)
    return [
        *((unit, step) for unit in step_units(outline)),
        (pairs_unit(outline), pairs),
        *((unit, replace(probe, bytes=64.0)) for unit in probe_units(outline)),
        *((unit, replace(probe, bytes=8.0 * settings.keep)) for unit in seen_units(outline)),
    ]


def is_done(session: Session) -> bool:
    outline = session.outline
    wanted = [pairs_unit(outline), *probe_units(outline), *seen_units(outline)]
    return len(session.done(wanted)) == len(wanted)


def run(session: Session, runtime: Runtime) -> None:
    if not is_done(session):
        shards = session.settings.curvature.shards
        runtime.gang(
            session.work("distinf.spectral.curvature:body"),
            shards,
            session.ledger(NAME),
        )


def body(session: Session, collective: Collective, attempt: str) -> int:
    """Krylov steps, Ritz pairs, probes -> the number of steps taken."""
    settings, outline = session.settings.curvature, session.outline
    model, layout = trained_layers(session)
    rows = product_rows(session, collective, model)
    matvec = mean_product(session, collective, model, layout, rows)
    if not all(done_for_all(session, collective, [pairs_unit(outline)])):
        state = _krylov(session, collective, attempt, model, layout, matvec)
        measured = settings.residuals == "products"
        pairs = ritz(state, settings.keep, matvec if measured else None)
        if collective.rank == 0:
            summary = {"left_out": np.setdiff1d(drawn_rows(session), rows).tolist()}
            session.commit(pairs_unit(outline), attempt, _pair_arrays(pairs), summary=summary)
        collective.barrier()
    found = stored_pairs(session, probed=False)
    refuse_negative(session, found.values)
    vectors_KP = found.vectors.to(session.device)
    probes = [*probe_units(outline), *seen_units(outline)]
    done = done_for_all(session, collective, probes)
    for unit in (unit for unit, is_done in zip(probes, done, strict=True) if not is_done):
        if "trace_probe" in unit.job:
            value = complement_probe(matvec, vectors_KP, seed=session.seed, probe=unit.start)
            arrays = {"value": np.array([value])}
        else:
            gradient_P = _drawn_gradient(session, collective, model, layout, rows, unit.start)
            seen = seen_by(matvec, vectors_KP, gradient_P)
            arrays = dict(zip(SEEN, (part.numpy() for part in seen), strict=True))
        if collective.rank == 0:
            session.commit(unit, attempt, arrays)
    collective.barrier()
    return settings.steps


def _drawn_gradient(
    session: Session,
    collective: Collective,
    model: nn.Module,
    layout: Layout,
    rows: np.ndarray,
    place: int,
) -> Tensor:
    """[P]: the gradient of one of the curvature's rows, drawn by the seed; of one rank for all."""
    order = draw(session.seed, "seen complement", len(rows), None)
    loss = next(iter(session.task.losses.values()))
    mine_P = layout.gather(model).new_empty((0, layout.size))
    if collective.owned(1):
        batch = session.batch("train", rows[order[[place % len(rows)]]])
        with precision(session.settings.curvature.precision, session.device):
            mine_P = rooted(session, sum_gradient(model, loss, batch, layout))[None]
    return collective.all_gather(mine_P)[0]


def check(session: Session) -> None:
    """InputError for settings that the model rules out, before anything is computed."""
    settings, outline = session.settings.curvature, session.outline
    size = Layout.of(session.task.model(), settings.blocks).size
    if settings.keep > size:
        raise InputError(f"curvature.keep: {settings.keep} is more than {size} parameters")
    loss = next(iter(session.task.losses.values()))
    if settings.kind.startswith("gauss-newton") and not isinstance(loss, SplitLoss):
        raise InputError(
            f"curvature.kind: {settings.kind} needs the loss '{outline.losses[0]}' to have "
            ".outputs(model, batch) and .from_outputs(outputs, batch); or take kind hessian"
        )
    microbatch(outline)


def decided(name: str, task: Task, settings: StageSettings) -> StageSettings:
    """Recipe.decided: with the product that passes the model."""
    return replace(settings, curvature=_passing(name, task, settings.curvature))


def _passing(name: str, task: Task, settings: CurvatureSettings) -> CurvatureSettings:
    """The settings with the product that passes the model, tried on two training rows.

    The studies' own models are known to pass. What else is wrong with the task is for the
    rehearsal to say. InputError if no product passes, with what there is instead.
    """
    loss = next(iter(task.losses.values()), None)
    split = isinstance(loss, SplitLoss) or not settings.kind.startswith("gauss-newton")
    if name in STUDIES or loss is None or not split or not has_own_rows(task):
        return settings
    try:
        model = task.model().eval()
        batch = task.batch("train", np.arange(min(2, task.rows("train"))))
        layout = Layout.of(model, settings.blocks)
        sum_gradient(model, loss, batch, layout)
    except Exception:  # the rehearsal tells of it
        return settings

    def passing(kind: Kind) -> Kind:
        with precision(settings.precision, torch.device("cpu")):
            return passing_kind(model, loss, batch, layout, kind)

    try:
        return replace(settings, kind=passing(settings.kind))
    except InputError as error:
        newton = ""
        if isinstance(loss, SplitLoss) and settings.kind.startswith("hessian"):
            with suppress(InputError):
                newton = f"--set curvature.kind={passing('gauss-newton')}, or "
        raise InputError(
            f"curvature.kind: {error}; {newton}rank without curvature: distinf score {name}"
        ) from None


def _krylov(
    session: Session,
    collective: Collective,
    attempt: str,
    model: nn.Module,
    layout: Layout,
    fixed: Matvec,
) -> ArnoldiState:
    """The finished iteration, each of its steps committed; it goes on from those that are."""
    settings, outline = session.settings.curvature, session.outline
    arnoldi = ArnoldiSettings(settings.steps, settings.keep, seed=session.seed, probes=0)
    state = ArnoldiState.start(layout.size, arnoldi, collective, session.device)
    wanted = step_units(outline)
    finished = [*done_for_all(session, collective, wanted), False].index(False)
    for unit in wanted[:finished]:
        stored = session.arrays(unit)
        state.append(torch.from_numpy(stored["vector"]), torch.from_numpy(stored["column"]))

    def matvec(vector_P: Tensor) -> Tensor:
        if not settings.fresh:
            return fixed(vector_P)
        rows = product_rows(session, collective, model, state.step)
        return mean_product(session, collective, model, layout, rows)(vector_P)

    for record in iterate(matvec, state):
        if collective.rank == 0:
            arrays = {"vector": record.vector.cpu().numpy(), "column": record.column.numpy()}
            summary = {
                "asymmetry": record.asymmetry,
                "orthogonality": record.orthogonality,
                "product_s": record.product_s,
                "own_s": record.own_s,
                "ranks": collective.size,
            }
            session.commit(wanted[record.step], attempt, arrays, summary=summary)
    return state


def left_out_rows(session: Session) -> list[int]:
    """Drawn rows that the curvature is not over, because their loss is not finite."""
    return session.record(pairs_unit(session.outline))["summary"]["left_out"]


def _pair_arrays(pairs: RitzPairs) -> dict[str, np.ndarray]:
    return {
        "values": pairs.values.numpy(),
        "vectors": pairs.vectors.cpu().numpy(),
        "residuals": pairs.residuals.numpy(),
        "hessenberg": pairs.hessenberg.numpy(),
        "quality": np.array([pairs.orthogonality, pairs.asymmetry]),
    }


def stored_pairs(session: Session, probed: bool = True) -> RitzPairs:
    """The committed Ritz pairs, with what the committed probes tell where there are any."""
    stored = session.cached("pairs", lambda: session.arrays(pairs_unit(session.outline)))
    values = torch.from_numpy(stored["values"])
    pairs = RitzPairs(
        values=values,
        vectors=torch.from_numpy(stored["vectors"]),
        residuals=torch.from_numpy(stored["residuals"]),
        orthogonality=float(stored["quality"][0]),
        asymmetry=float(stored["quality"][1]),
        trace=float("nan"),
        hessenberg=torch.from_numpy(stored["hessenberg"]),
    )
    return _with_probes(session, pairs) if probed else pairs


def _with_probes(session: Session, pairs: RitzPairs) -> RitzPairs:
    traces, seen = probe_units(session.outline), seen_units(session.outline)
    if traces:
        found = np.concatenate([session.arrays(unit)["value"] for unit in traces])
        error = float(found.std(ddof=1) / len(found) ** 0.5) if len(found) > 1 else float("nan")
        trace = float(pairs.values.sum()) + float(found.mean())
        pairs = replace(pairs, trace=trace, trace_error=error)
    if seen:
        parts = [session.arrays(unit) for unit in seen]
        stacked = (torch.from_numpy(np.stack([part[name] for part in parts])) for name in SEEN)
        pairs = replace(pairs, seen=SeenComplement(*stacked))
    return pairs


def _reads(values: Values) -> Names:
    """scores.filter only where it says what the operator is."""
    operator = ("scores.filter",) if values["scores"]["filter"] == "preconditioned" else ()
    return ("curvature", *(f"-curvature.{name}" for name in REFINEMENT), *operator)


STAGE = Stage(
    NAME, "curvature (Arnoldi)", needs=("train",), reads=_reads,
    # Which probes there are; a refusal; a filter of the same pairs.
    uncounted=("scores.complement", "scores.damping", "scores.negative", "scores.filter"),
    units=units, run=run, done=is_done, shards=lambda settings: settings.curvature.shards,
)  # fmt: skip
