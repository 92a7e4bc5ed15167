"""Stage train: data-parallel training as a gang, committed every few steps.

A batch is cut into a fixed number of logical shards. Each takes its own forward and backward pass
(and its own batch statistics); gradients and running statistics are summed in shard order in fp64.
One rank or many, killed or not, the weights are the same bits.

Training starts from the task's own weights or from a checkpoint, and its end is also written as
<run>/model.safetensors, frozen parameters left out: for other tools, and as the checkpoint of
another run. A variation of the
run that trains a model of its own writes model-<variation>.safetensors beside it.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from distinf.collective import Collective
from distinf.digest import sha256
from distinf.engine.session import done_for_all, row_ranges
from distinf.engine.stage import Stage
from distinf.errors import CorruptionError
from distinf.numerics.parameters import Layout
from distinf.numerics.randomness import generator
from distinf.runtime import Cost, Lever, Runtime, Unit, hand_out
from distinf.runtime.handed import handed
from distinf.spectral.session import DATA, Outline, Session
from distinf.spectral.settings import TrainSettings
from distinf.spectral.step import gradient_of, take_step
from distinf.spectral.training_state import (
    load_model,
    load_optimizer,
    model_arrays,
    optimizer_arrays,
)
from distinf.tasks import checkpoint
from distinf.tasks.identity import has_own_rows
from distinf.tasks.task import Task, error_context

NAME = "train"
WEIGHTS = "model.safetensors"


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """One unit per checkpoint, in step order."""
    train, shapes = outline.settings.train, outline.shapes
    per_step = shapes.forwards["train"] * shapes.flops_per_sample * train.batch_size
    passed = shapes.activation_bytes_per_sample * train.batch_size / train.shards
    size, shards = float(train.batch_size), train.shards
    state, weights = outline.stored, shapes.model_bytes
    device = {**outline.state, "activations": passed, "gradients": 4.0 * shapes.tuned}
    return [
        (
            Unit(NAME, outline.keys[NAME], a, b, {"to_step": b}),
            Cost(
                flops=per_step * (b - a),
                bytes=state,
                memory={"results": state},
                device=device,
                staged=weights,
                levers=(Lever("train.batch_size", size, passed, least=shards, step=shards),),
                work={"train": train.batch_size * (b - a), "checkpoint": 1},
                summed=8.0 * shards * shapes.tuned * (b - a),  # in order, in float64
            ),
        )
        for a, b in row_ranges(train.steps, train.checkpoint_every)
    ]


def run(session: Session, runtime: Runtime) -> None:
    wanted = [unit for unit, _ in units(session.outline)]
    if len(session.done(wanted)) < len(wanted):
        runtime.gang(
            session.work("distinf.spectral.train:body"),
            session.settings.train.shards,
            session.ledger(NAME),
        )
    if wanted and not _is_exported(session):
        _export(session, wanted[-1])


def is_done(session: Session) -> bool:
    wanted = [unit for unit, _ in units(session.outline)]
    return len(session.done(wanted)) == len(wanted) and (not wanted or _is_exported(session))


def check(session: Session) -> None:
    """InputError for a checkpoint that does not fit the model, or an optimizer that cannot step."""
    settings = session.settings.train
    if settings.checkpoint:
        starting_model(session)
    if settings.steps and has_own_rows(session.task):
        try_step(session.task, settings)


def try_step(task: Task, settings: TrainSettings) -> None:
    """One step on a row or two, of a model that is then thrown away, and the state it leaves.

    InputError if the optimizer cannot step so (LBFGS wants a closure), or its state be stored.
    """
    model = task.model().train()
    name, loss = next(iter(task.losses.items()))
    rows = min(2, settings.batch_size // settings.shards, task.rows("train"))
    with error_context(f"a training step on loss '{name}' and {rows} rows"):
        loss(model, task.batch("train", np.arange(rows))).sum().backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = gradient_of(parameter)
        optimizer = task.optimizer(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        optimizer.step()
    optimizer_arrays(model, optimizer)


def starting_model(session: Session) -> nn.Module:
    """The model as training starts, on the session's device."""
    model = session.fresh_model()
    path = session.settings.train.checkpoint
    if path:
        checkpoint.load_checked(path, model, session.context["task_settings"])
    return model


def trained_model(session: Session) -> nn.Module:
    """A fresh copy of the trained model, in evaluation mode, on the session's device."""
    wanted = [unit for unit, _ in units(session.outline)]
    if not wanted:
        return starting_model(session).eval()
    model = session.fresh_model()
    stored = session.cached("weights", lambda: session.arrays(wanted[-1]))
    load_model(model, stored)
    return model.eval()


def _is_exported(session: Session) -> bool:
    """These very weights are there, under the run's name or the variation's."""
    for name in {WEIGHTS, _weights_name(session)}:
        try:
            data, sums = session.blobs.get(name), handed(session.blobs, name)
        except (KeyError, CorruptionError):
            continue
        is_ours = checkpoint.about(data).get("key") == session.keys[NAME]
        if is_ours and sums.get(name) == sha256(data):
            return True
    return False


def _export(session: Session, last: Unit) -> None:
    tensors = checkpoint.whole(trained_model(session))
    about = {
        "task": session.context["task"],
        "seed": session.seed,
        "key": session.keys[NAME],
        "step": last.stop,
    }
    name = _weights_name(session)
    hand_out(session.blobs, name, {name: checkpoint.encoded(tensors, about)})


def _weights_name(session: Session) -> str:
    return f"model-{session.name}.safetensors" if session.name else WEIGHTS


def model_at(session: Session, unit: Unit) -> nn.Module:
    """The model as it was when `unit` ended, one of `units`; otherwise as trained_model."""
    model = session.fresh_model()
    names = [f"model.{name}" for name in checkpoint.unfrozen(model)]
    load_model(model, session.arrays(unit, names))
    return model.eval()


def trained_optimizer(session: Session, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give `optimizer`, over the parameters of `model`, the state it had when training ended."""
    wanted = [unit for unit, _ in units(session.outline)]
    if wanted:
        stored = session.cached("weights", lambda: session.arrays(wanted[-1]))
        load_optimizer(model, optimizer, stored)


def loss_curve(session: Session) -> np.ndarray:
    """[steps] mean training loss of each step."""
    wanted = [unit for unit, _ in units(session.outline)]
    parts = [session.arrays(unit, ["loss"])["loss"] for unit in wanted]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def body(session: Session, collective: Collective, attempt: str) -> int:
    """Train from the last checkpoint to the end -> the step reached."""
    settings = session.settings.train
    wanted = [unit for unit, _ in units(session.outline)]
    model = starting_model(session)
    optimizer = session.task.optimizer(model.parameters(), settings.lr, settings.weight_decay)
    finished = [*done_for_all(session, collective, wanted), False].index(False)
    if finished:
        stored = session.arrays(wanted[finished - 1])
        load_model(model, stored)
        load_optimizer(model, optimizer, stored)
    for unit in wanted[finished:]:
        began = time.perf_counter()
        losses = []
        for step in range(unit.start, unit.stop):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            losses.append(_step(session, model, optimizer, step, collective))
        if collective.rank == 0:
            arrays = {**model_arrays(model), **optimizer_arrays(model, optimizer)}
            arrays["loss"] = np.asarray(losses, dtype=np.float32)
            seconds = time.perf_counter() - began
            summary = {"loss": losses[-1], "seconds": seconds, "ranks": collective.size}
            session.commit(unit, attempt, arrays, summary=summary)
    return wanted[-1].stop if wanted else 0


def step_rows(session: Session, step: int) -> np.ndarray:
    """[batch_size] row ids of a step: epochs are permutations, each from (seed, epoch)."""
    size = session.settings.train.batch_size
    count = session.outline.training_rows
    first = step * size
    order = {
        epoch: session.cached(("epoch", epoch), partial(_epoch, session.seed, epoch, count))
        for epoch in range(first // count, (first + size - 1) // count + 1)
    }
    return np.array([order[i // count][i % count] for i in range(first, first + size)])


def _epoch(seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, f"epoch {epoch}").permutation(count)


def _step(
    session: Session,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    collective: Collective,
) -> float:
    rows = np.split(step_rows(session, step), session.settings.train.shards)
    return take_step(session, model, optimizer, rows, step, collective)


def trained_layers(session: Session) -> tuple[nn.Module, Layout]:
    """The trained model, one a worker, and those of its parameters that the curvature is of."""
    model = session.cached("trained", lambda: trained_model(session))
    return model, Layout.of(model, session.settings.curvature.blocks)


STAGE = Stage(
    NAME, "train", needs=(DATA,),
    reads=("task.settings", "task.identity", "task.losses", "train", "-train.checkpoint_every"),
    uncounted=("train.checkpoint_every",),
    units=units, run=run, done=is_done, shards=lambda settings: settings.train.shards,
    curves=lambda session, unit: session.arrays(unit, ["loss"]),
)  # fmt: skip
