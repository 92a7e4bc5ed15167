"""Stage train: one fine-tuning per cell, on its rows with whatever labels they have.

With train.deepspeed each is a gang's, saved on its way under checkpoints/ in the run's folder.
The weights of the selected epoch (train.selected_epoch: by default that of least loss on the
queries) are what everything after is about. A task that cannot be trained is taken as it is.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.collective import Collective
from distinf.engine.session import done_for_all
from distinf.engine.stage import Stage
from distinf.errors import InputError, Interrupted
from distinf.gram.deepspeed import refuse_missing, rows_at_once, shared_bytes, summed_bytes
from distinf.gram.session import DATA, QUERY, TRAIN, Cell, Outline, Session
from distinf.gram.settings import Epoch, StageSettings, TrainSettings
from distinf.gram.spread import spread
from distinf.gram.task import METRICS, Fit, Gang, Shared, Trainable, selected_epoch
from distinf.numerics.checkpointing import recompute_blocks
from distinf.runtime import Cost, Lever, Resources, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.runtime.units import by_part
from distinf.store import open_group
from distinf.tasks.culprit import InHand
from distinf.tasks.shapes import Shapes

NAME = "train"
WEIGHT = "weight."
ROW_LOSSES, BEFORE = "row_losses", "loss_before"
CHECKPOINTS = "checkpoints"  # of trainings by gangs on their way, a folder for each unit
# Of a trained parameter, its own four in fp32 and two moments.
MOMENTS = {"adamw": 12.0, "adamw-8bit": 6.0, "paged-adamw-8bit": 6.0}


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """One job per cell that is trained."""
    return [
        (_unit(cell), fit_cost(outline, cell, cell.rows[TRAIN]))
        for cell in outline.cells.values()
        if cell.trained
    ]


def step_passes(recipe: TrainSettings, shapes: Shapes) -> float:
    """Of a row in a training step, in forward passes of a row of mean length: forward, gradients of
    the activations and of what is trained, activations again, all of them with padding."""
    return (shapes.forwards["train"] + recipe.checkpointing) * shapes.padded(_at_once(recipe))


def _at_once(recipe: TrainSettings) -> int:
    """Rows of one pass on one device."""
    rows = rows_at_once(recipe) if recipe.deepspeed else recipe.batch_size
    return math.ceil(rows / recipe.accumulation)


def fit_cost(outline: Outline, cell: Cell, rows: int) -> Cost:
    """What one training on `rows` rows takes, with the evaluations after each epoch."""
    recipe, shapes = outline.settings.train, cell.shapes
    trained, at_once = sum(block.entries for block in cell.blocks.dense), _at_once(recipe)
    steps = recipe.epochs * (rows * step_passes(recipe, shapes) + 2 * cell.rows[QUERY])
    passed = at_once * shapes.padded() * shapes.activations(recipe.checkpointing)
    on_host, summed = dict[str, float](), 0.0
    on_device = {"weights": shapes.model_bytes, "gradients": 4.0 * trained}
    on_device["optimizer"] = MOMENTS[recipe.optimizer] * trained
    if recipe.deepspeed:
        on_host, on_device = shared_bytes(recipe, shapes.model_bytes, trained)
        measured = 2 * cell.rows[QUERY]
        summed = summed_bytes(recipe, shapes.model_bytes, trained, rows, measured)
    return Cost(
        flops=shapes.flops_per_sample * steps,
        bytes=4.0 * trained,
        memory=by_part({"results": 4.0 * trained}, on_host),  # the best epoch's weights
        device=by_part({"activations": passed}, on_device),
        staged=shapes.model_bytes,
        levers=(Lever("train.batch_size", recipe.batch_size, passed),),
        work={"train": recipe.epochs * rows, "forward": 2 * recipe.epochs * cell.rows[QUERY]},
        loaded=cell.loaded,
        summed=summed,
    )


def check(session: Session) -> None:
    """InputError for settings of a training that there will not be."""
    trained = any(cell.trained for cell in session.outline.cells.values())
    if not trained and session.settings.train != TrainSettings():
        raise InputError(
            "train: this task cannot be trained (it has no fit), and is scored as model() returns "
            "it; leave train out"
        )
    if not session.settings.train.deepspeed:
        return
    refuse_missing()
    for name in session.tasks:
        if not isinstance(session.task(name), Shared):
            raise InputError(
                "train.deepspeed: this task's fit() is for one device; leave it out, or give the "
                "task a fit_together()"
            )
    if any(cell.quantised for cell in session.outline.cells.values()):
        raise InputError(
            "train.deepspeed: it does not share quantised weights; set model.quantise=none, or "
            "train on one device, without train.deepspeed"
        )


def run(session: Session, runtime: Runtime) -> None:
    wanted = [unit for unit, _ in units(session.outline)]
    if wanted:
        train(session, runtime, NAME, wanted)


def train(
    session: Session, runtime: Runtime, stage: str, wanted: Sequence[Unit],
    resources: Resources | None = None,
) -> None:  # fmt: skip
    """Each training on a worker of its own, or, with DeepSpeed, by a gang, as many gangs at once as
    there are workers for."""
    work = partial(session.work, f"distinf.gram.{stage}:body")
    if not session.settings.train.deepspeed:
        runtime.pool(work(), wanted, session.ledger(stage), resources)
    elif len(session.done(wanted)) < len(wanted):
        together = session.work(f"distinf.gram.{stage}:gang")
        devices, ledger = session.settings.train.devices, session.ledger(stage)
        runtime.gang(together, devices, ledger, wanted)


def gang_size(settings: StageSettings) -> int | None:
    """Workers of one training; None where each has its own."""
    return settings.train.devices if settings.train.deepspeed else None


def gang(session: Session, collective: Collective, attempt: str) -> None:
    wanted = [unit for unit, _ in units(session.outline)]
    for unit, fit in fitted_together(session, collective, wanted, partial(_rows, session)):
        _commit(session, unit, attempt, fit)


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: METRICS by epoch [epochs], best [], weight.<name> of the best epoch, and where the
    task notes them row_losses [epochs, N] and the loss_before any training []."""
    return _commit(session, unit, attempt, fitted(session, unit, _rows(session, unit)))


def _rows(session: Session, unit: Unit) -> np.ndarray:
    return np.arange(session.cell(unit.job["cell"]).rows[TRAIN])


def _commit(session: Session, unit: Unit, attempt: str, fit: Fit) -> Record:
    name = unit.job["cell"]
    task, rows = session.task(name), _rows(session, unit)
    load_weights(getattr(task, "skeleton", task.model)(), fit.weights)  # or it is refused now
    weights = {f"{WEIGHT}{key}": np.asarray(values) for key, values in fit.weights.items()}
    arrays = {**history_arrays(fit), **weights}
    if fit.loss_before is not None:
        arrays[BEFORE] = np.asarray(fit.loss_before)
    if fit.row_losses is not None:
        arrays[ROW_LOSSES] = _checked_row_losses(fit.row_losses, len(rows))
    holes = [*METRICS, ROW_LOSSES, BEFORE]
    return session.commit(unit, attempt, arrays, summary=fit_summary(fit), may_hold_nan=holes)


def _checked_row_losses(losses: Any, rows: int) -> np.ndarray:
    """fp32 [epochs, N]; InputError for another shape."""
    found = np.asarray(losses, dtype=np.float32)
    if found.ndim != 2 or found.shape[1] != rows:
        raise InputError(
            f"task: fit()'s row_losses are {found.shape}; give one value an epoch for each of the "
            f"{rows} rows that it trained on, [epochs, {rows}]"
        )
    return found


def fitted_together(
    session: Session,
    collective: Collective,
    wanted: Sequence[Unit],
    rows_of: Callable[[Unit], np.ndarray],
) -> Iterator[tuple[Unit, Fit]]:
    """On every rank: train those of the gang's that are not committed, in order, and give each to
    rank 0."""
    devices = session.settings.train.devices
    if collective.size != devices:
        raise Interrupted(
            f"train.devices: {devices} workers share a training and {collective.size} are there; "
            "run the same command when the others are back, or begin a run with fewer"
        )
    if collective.share is not None:
        wanted = [unit for unit in wanted if unit.id in collective.share]
    for unit, is_done in zip(wanted, done_for_all(session, collective, wanted), strict=True):
        folder = f"{CHECKPOINTS}/{unit.id}"
        if not is_done:
            fit = fitted(session, unit, rows_of(unit), Gang(collective, session.blobs, folder))
            if collective.rank == 0:
                yield unit, fit
        if collective.rank == 0:
            for name in session.blobs.names(folder):
                session.blobs.delete(name)


def fitted(session: Session, unit: Unit, rows: np.ndarray, gang: Gang | None = None) -> Fit:
    """Train the unit's cell on `rows`; of a gang, rank 0 has the weights."""
    name = unit.job["cell"]
    task = session.task(name)
    if not isinstance(task, Trainable):
        raise InputError(f"train: cell '{name}' cannot be trained")
    session.tell(unit, 0.0)
    queries = np.arange(session.cell(name).rows[QUERY])
    session.in_hand = [InHand(task, TRAIN, rows), InHand(task, QUERY, queries)]
    recipe, tell = session.settings.train, partial(session.tell, unit)
    if gang is None:
        fit = task.fit(rows, recipe, session.device, tell)
    else:
        assert isinstance(task, Shared)  # see check
        fit = task.fit_together(rows, recipe, session.device, tell, gang)
    checked_fit(fit, session.settings.train.selected_epoch)
    if not np.isfinite(fit.history["query_loss"][fit.best]):
        raise InputError(f"train: the queries' loss of cell '{name}' is not finite; lower train.lr")
    return fit


def checked_fit(fit: Any, rule: Epoch = "least_query_loss") -> None:
    """InputError if what a task's fit returned is not as Fit has it, or of another epoch than
    `rule` asks for."""
    if not isinstance(fit, Fit):
        raise InputError(f"task: fit() returned a {type(fit).__name__}, not a Fit")
    if "query_loss" not in fit.history:
        known = ", ".join(map(str, fit.history)) or "nothing"
        raise InputError(f"task: fit()'s history has {known}; give query_loss, one value an epoch")
    epochs = {}
    for name in (name for name in METRICS if name in fit.history):
        try:
            values = np.asarray(fit.history[name], dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"task: fit()'s history of {name} holds no numbers") from None
        epochs[name] = values.shape
    if len(set(epochs.values())) > 1 or len(epochs["query_loss"]) != 1:
        told = ", ".join(f"{name} {shape}" for name, shape in epochs.items())
        raise InputError(f"task: fit()'s histories are not one value an epoch each: {told}")
    if not 0 <= fit.best < epochs["query_loss"][0]:
        raise InputError(
            f"task: fit()'s best epoch is {fit.best}, of epochs 0 to {epochs['query_loss'][0] - 1}"
        )
    _check_epoch(fit, rule)


def _check_epoch(fit: Fit, rule: Epoch) -> None:
    """InputError if the weights are those of another epoch; of equally good ones any will do."""
    if rule == "best_query_accuracy" and "query_accuracy" not in fit.history:
        raise InputError(
            "train.selected_epoch: best_query_accuracy needs query_accuracy in the history of the "
            "task's fit(); take least_query_loss or last"
        )
    wanted = selected_epoch(fit.history, rule)
    key = {"least_query_loss": "query_loss", "best_query_accuracy": "query_accuracy"}.get(rule)
    equal = key is not None and fit.history[key][fit.best] == fit.history[key][wanted]
    if fit.best != wanted and not equal:
        raise InputError(
            f"task: fit() kept the weights of epoch {fit.best}, and train.selected_epoch={rule} "
            f"asks for epoch {wanted}; let it go by recipe.selected_epoch"
        )


def history_arrays(fit: Fit) -> dict[str, np.ndarray]:
    """METRICS that were measured, [epochs] each, and the best epoch."""
    found = {k: np.asarray(v, dtype=np.float64) for k, v in fit.history.items() if k in METRICS}
    return {**found, "best": np.asarray(fit.best)}


def curves(session: Session, unit: Unit) -> dict[str, np.ndarray]:
    """METRICS by epoch, of the cell, and of a retraining by what it kept."""
    name = "/".join(filter(None, (unit.job["cell"], unit.job.get("kept", "")[:8])))
    group = open_group(session.blobs, session.manifest(unit))
    return {f"{key}/{name}": group[key].values() for key in METRICS if key in group}


def fit_summary(fit: Fit) -> dict[str, float]:
    """The last word on a training: its best epoch, and the best test accuracy of all epochs."""
    found = {"best": fit.best, "query_loss": float(fit.history["query_loss"][fit.best])}
    if "test_accuracy" in fit.history:
        found["test_accuracy"] = float(max(fit.history["test_accuracy"]))
    return found


def _unit(cell: Cell) -> Unit:
    return Unit(NAME, cell.keys[NAME], job={"cell": cell.name})


def stored_fit(session: Session, name: str) -> dict[str, np.ndarray]:
    """What `body` committed for a cell; {} for one that is not trained."""
    cell = session.cell(name)
    return session.arrays(_unit(cell)) if cell.trained else {}


def trained_model(session: Session, name: str) -> nn.Module:
    """The cell's model as trained, in evaluation mode, on this worker's device; one is kept."""
    found: nn.Module = session.latest("model", name, lambda: _loaded(session, name))
    return found


def _loaded(session: Session, name: str) -> nn.Module:
    stored = stored_fit(session, name)
    weights = {k.removeprefix(WEIGHT): v for k, v in stored.items() if k.startswith(WEIGHT)}
    model = with_weights(session, name, weights)
    if session.settings.gradients.checkpointing:
        recompute_blocks(model)
    return model


def with_weights(session: Session, name: str, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The cell's model with these parameters, in evaluation mode, on this worker's device."""
    model = session.model_of(session.task(name), name)
    load_weights(model, weights)
    spread(session, model)
    # A quantised model is on its device already, and must not be moved.
    there = getattr(model, "is_quantized", False)
    return (model if there else model.to(session.device)).eval()


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Write stored parameters into the model, in place; InputError for one that does not fit."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, values in weights.items():
            found, given = parameters.get(name), np.asarray(values)
            if found is None or given.shape != tuple(found.shape):
                has = "none" if found is None else f"{tuple(found.shape)}"
                raise InputError(
                    f"task: fit()'s weights have '{name}' {given.shape}, where model() has {has}"
                )
            found.copy_(torch.from_numpy(np.array(given)).to(found.dtype))


STAGE = Stage(
    NAME, "train", needs=(DATA,),
    reads=("train", "-train.evaluation_batch", "-train.checkpoint_every"),
    uncounted=("train.checkpoint_every",), units=units, run=run, ranks=gang_size,
    sharing="train.devices", curves=curves,
)  # fmt: skip
