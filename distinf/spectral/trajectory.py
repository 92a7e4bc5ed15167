"""Stage trajectory: TracIn, the dot products of gradients at stored checkpoints of training.

TracIn (Pruthi et al. 2020, Eq. 1 summed over checkpoints) is what plain gradient steps on a row
have done to the target's loss, to first order, while the model was trained:

    score_i(q) = sum over checkpoints c of  rate_c  g_q(theta_c) . g_i(theta_c)

g_i is of the training loss, g_q of each loss; rate_c is the learning rate of the step that led to
checkpoint c. Sign: score > 0 means that training on the row helps the target.

Shape legend: N training rows, T targets, K = losses x T queries, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distinf.engine.session import row_ranges
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.microbatch import each_part
from distinf.numerics.capture import finite_rows, flat_gradients
from distinf.numerics.hooks import projected_gradients
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.runtime import Cost, Lever, Unit
from distinf.runtime.ledger import Record
from distinf.spectral import train
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.gradients import Scaled, scored_rows
from distinf.spectral.queries import target_gradients
from distinf.spectral.session import Outline, Session
from distinf.tasks.methods import in_a_run
from distinf.tasks.task import Batch

NAME = "trajectory"


def chosen_checkpoints(outline: Outline) -> list[Unit]:
    """The training units whose ends are summed over: evenly spaced, the last among them."""
    stored = [unit for unit, _ in train.units(outline)]
    count = min(outline.settings.trajectory.checkpoints, len(stored))
    return [stored[-(-place * len(stored) // count) - 1] for place in range(1, count + 1)]


def checkpoint_units(outline: Outline, checkpoint: Unit) -> list[Unit]:
    """Row ranges of the scored rows at one checkpoint, which is named by its step."""
    per_unit = outline.settings.gradients.rows_per_unit
    return [
        Unit(NAME, outline.keys[NAME], a, b, {"checkpoint": checkpoint.stop})
        for a, b in row_ranges(scored_rows(outline), per_unit)
    ]


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Row ranges, checkpoint by checkpoint; none where no checkpoint is asked for."""
    settings, shapes = outline.settings, outline.shapes
    queries = settings.targets.count * len(outline.losses)
    per_row, chunk = outline.vector, settings.gradients.chunk
    kept = chunk * 3 * shapes.activation_bytes_per_sample
    passed = chunk * per_row + kept
    backward = shapes.forwards["gradient"] * shapes.flops_per_sample
    return [
        (
            unit,
            Cost(
                flops=backward * (unit.stop - unit.start + queries)
                + 2.0 * outline.entries * queries * (unit.stop - unit.start),
                bytes=(4.0 * queries + 1.0) * (unit.stop - unit.start),
                memory={"gradients": per_row * queries},
                device={
                    "weights": shapes.model_bytes,
                    "activations": kept,
                    "gradients": per_row * (chunk + queries + 2),
                },
                staged=shapes.model_bytes,
                levers=(Lever("gradients.chunk", chunk, passed),),
                work={"gradient": unit.stop - unit.start},
                read=shapes.model_bytes,  # the checkpoint
            ),
        )
        for checkpoint in chosen_checkpoints(outline)
        for unit in checkpoint_units(outline, checkpoint)
    ]


def check(outline: Outline) -> None:
    """InputError for more checkpoints than training stores."""
    asked, settings = outline.settings.trajectory.checkpoints, outline.settings.train
    stored = len(train.units(outline))
    if asked > stored:
        raise InputError(
            f"trajectory.checkpoints: {asked} is more than the {stored} that {settings.steps} "
            f"training steps store, one every {settings.checkpoint_every}; lower it or "
            "train.checkpoint_every"
        )


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays "query.<loss>" [rows, targets], without the rate; finite [rows]."""
    at = _at_checkpoint(session, unit.job["checkpoint"])

    def dots(ids: np.ndarray) -> tuple[Tensor, Tensor]:
        return _dots(session, at, session.batch("train", ids))

    ids, most = np.arange(unit.start, unit.stop), session.settings.gradients.chunk
    found = [made for _, made in each_part(ids, dots, "gradients.chunk", most)]
    dots_NK, finite_N = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    by_loss = dots_NK.chunk(len(session.outline.losses), dim=1)
    arrays = {
        f"query.{name}": dots_NT.contiguous().numpy()
        for name, dots_NT in zip(session.outline.losses, by_loss, strict=True)
    }
    arrays["finite"] = finite_N.numpy()
    quarantined = (unit.start + np.flatnonzero(~arrays["finite"])).tolist()
    return session.commit(unit, attempt, arrays, summary={"quarantined": quarantined})


def _dots(session: Session, at: "_Checkpoint", batch: Batch) -> tuple[Tensor, Tensor]:
    """(dot products [N, K] with the queries, 0 where not finite; finite [N]), as in gradients."""
    settings = session.settings.gradients
    loss = next(iter(session.task.losses.values()))
    with in_a_run(), precision(settings.precision, session.device):
        if settings.method == "hooks":
            rows_KP = at.queries.rows_KP
            dots_NK, sqnorm_N = projected_gradients(at.model, loss, batch, at.layout, rows_KP)
            finite_N = torch.isfinite(sqnorm_N)
            return at.queries.back(torch.where(finite_N[:, None], dots_NK, 0.0)), finite_N
        grads_NP = flat_gradients(
            at.model, loss, batch, at.layout, chunk=settings.chunk, method=settings.chosen
        )
    finite_N = finite_rows(grads_NP)
    safe_NP = torch.where(finite_N[:, None], grads_NP, 0.0)
    return at.queries.back(safe_NP @ at.queries.rows_KP.T.to(safe_NP)), finite_N


@dataclass(frozen=True)
class _Checkpoint:
    """A model of the trajectory, and the targets' gradients there, loss by loss."""

    model: nn.Module
    layout: Layout
    queries: Scaled


def _at_checkpoint(session: Session, step: int) -> _Checkpoint:
    """The checkpoint after `step` training steps; a worker holds one at a time."""
    held: dict[int, _Checkpoint] = session.cached(NAME, dict)
    if step not in held:
        held.clear()
        stored = {unit.stop: unit for unit, _ in train.units(session.outline)}
        model = train.model_at(session, stored[step])
        layout = Layout.of(model, session.settings.curvature.blocks)
        held[step] = _Checkpoint(model, layout, _query_gradients(session, model, layout, step))
    return held[step]


def _query_gradients(session: Session, model: nn.Module, layout: Layout, step: int) -> Scaled:
    ids = chosen_targets(session).ids
    batch = session.batch("evaluation", ids)
    found = []
    for name, loss in session.task.losses.items():
        grads_TP = target_gradients(session, model, loss, batch, layout)
        bad = ids[~finite_rows(grads_TP).cpu().numpy()].tolist()
        if bad:
            raise InputError(
                f"trajectory: the {name} gradient of targets {bad} is not finite after step {step} "
                "of training; choose other targets.ids, or set trajectory.checkpoints to 0"
            )
        found.append(grads_TP)
    return Scaled.of(torch.cat(found))


def tracin_scores(session: Session, loss: str = "") -> np.ndarray:
    """fp64 [targets, rows]; NaN for a row without a finite gradient at every checkpoint.

    `loss` "" is the training loss.
    """
    outline = session.outline
    name = loss or outline.losses[0]
    if name not in outline.losses:
        known = ", ".join(outline.losses)
        raise InputError(f"actions.loss: '{name}' is not a loss of this task ({known})")
    checkpoints = chosen_checkpoints(outline)
    if not checkpoints:
        raise InputError(
            "actions.variant: tracin sums over checkpoints of training; set "
            "trajectory.checkpoints to at least 1"
        )
    total_NT = np.zeros((scored_rows(outline), len(chosen_targets(session).ids)))
    for checkpoint in checkpoints:
        rows = session.rows(checkpoint_units(outline, checkpoint))
        columns = rows.columns([f"query.{name}", "finite"])
        rate = session.settings.train.rate(checkpoint.stop - 1)
        total_NT += rate * columns[f"query.{name}"].astype(np.float64)
        total_NT[~columns["finite"]] = np.nan
    return np.ascontiguousarray(total_NT.T)


def quarantined_rows(session: Session) -> list[int]:
    """Training rows whose gradient was not finite at one of the checkpoints; sorted."""
    wanted = [unit for unit, _ in units(session.outline)]
    done = session.records(wanted)
    return sorted({row for record in done for row in record["summary"]["quarantined"]})


def deviations(session: Session) -> list[str]:
    """What TracIn's formula leaves out here, a sentence; nothing without checkpoints."""
    count = len(chosen_checkpoints(session.outline))
    if not count:
        return []
    optimizer = type(session.task.optimizer(session.fresh_model().parameters(), 1e-3, 0.0)).__name__
    return [
        f"TracIn sums the learning rate times the dot product of gradients over {count} "
        "checkpoints: what plain gradient steps change to first order. Training took its steps "
        f"with {optimizer}."
    ]


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "gradients at checkpoints", needs=("evaluate", "targets"),
    reads=("gradients.chunk", "gradients.method", "gradients.precision", "curvature.blocks"),
    uncounted=(
        "gradients.rows", "gradients.rows_per_unit", "gradients.candidates",
        "trajectory.checkpoints",
    ),
    units=units, run=run,
)  # fmt: skip
TRACIN = Stage(  # which checkpoints are summed; the units name them one by one
    "tracin", "sum over checkpoints", needs=(NAME,), reads=("trajectory", "train.checkpoint_every")
)
