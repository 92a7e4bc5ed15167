"""Stage base: one unit, the weights that everything starts from and the losses [E] under them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.empirical.session import Outline, Session
from distinf.empirical.task import EVALUATION, Based, Pieced, Place, places, relations
from distinf.engine.session import row_ranges, to_device
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.microbatch import from_the_start, rows_at_once
from distinf.numerics.curvature import twice_differentiable
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.numerics.tuning import FOLLOWED, Losses, losses_of, of_pieces, parameters_of
from distinf.runtime import Cost, Lever, Unit
from distinf.runtime.ledger import Record
from distinf.tasks.task import error_context

NAME = "base"
WEIGHT = "weight."
BATCH = "tune.evaluation_batch"
GRADIENTS = 2  # of a parameter at once: its uses', before they are added up
LIVE = 0.5  # of the activations that a backward pass keeps, in an evaluation and a derivative
HALF = (torch.float16, torch.bfloat16)


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    shapes, rows = outline.shapes, outline.rows[EVALUATION]
    work = {"model": 1.0, "forward": outline.evaluated}
    cost = Cost(
        flops=shapes.flops_per_sample * outline.evaluated,
        bytes=4.0 * shapes.parameters * outline.is_based + 8.0 * rows,
        memory=4.0 * shapes.parameters * outline.is_based + shapes.kept_bytes,
        device={"weights": 4.0 * shapes.parameters, "activations": _batch_bytes(outline)},
        staged=4.0 * shapes.parameters,
        levers=(batch_lever(outline),),
        work={"base": 1.0, **work} if outline.is_based else work,
        loaded={"model": shapes.model_bytes},
    )
    return [(Unit(NAME, outline.keys[NAME]), cost)]


def _batch_bytes(outline: Outline) -> float:
    batch: int = min(outline.settings.tune.evaluation_batch, outline.most)
    return LIVE * outline.shapes.activation_bytes_per_sample * batch


def batch_lever(outline: Outline) -> Lever:
    batch = outline.settings.tune.evaluation_batch
    return Lever("tune.evaluation_batch", batch, _batch_bytes(outline))


def peak_bytes(outline: Outline) -> dict[str, float]:
    """By part: the model in float32, which stays, and a batch that is evaluated; where there are
    steps, also what is tuned (the derivative's step is in its memory) and what `Tuning` follows of
    it, and while one is taken a row's activations, and the gradient and the optimizer's state of
    one parameter. Of several steps the states of all parameters stay. All that the task trains is
    taken to be tuned, though tune.blocks may name less.
    """
    tune, shapes = outline.settings.tune, outline.shapes
    model, batch = 4.0 * shapes.parameters, _batch_bytes(outline)
    if tune.optimizer == "prompt":
        return {"weights": model, "activations": batch}
    trained = shapes.tuned
    states = 2 if tune.optimizer == "adamw" else int(tune.momentum > 0)
    staying = states if outline.steps_often else 0
    step = 4.0 * (GRADIENTS + states - staying) * (shapes.largest or trained)
    followed = 8.0 * (2 + states) * min(trained, 2 * FOLLOWED)
    found = {"weights": model + 4.0 * trained, "optimizer": 4.0 * trained * staying + followed}
    if batch > shapes.activation_bytes_per_sample + step:
        return {**found, "activations": batch}
    return {**found, "activations": shapes.activation_bytes_per_sample, "gradients": step}


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: losses fp64 [E]; weight.<name> where the task trains a base of its own."""
    task, weights = session.task, dict[str, np.ndarray]()
    model = session.model_of(task)
    if isinstance(task, Based):
        session.tell(unit, 0.0)
        with error_context("base()"):
            weights = _arrays(task.base(session.device, partial(session.tell, unit)))
        _load(model, weights)
    model = ready(session, model)
    layout = Layout.of(model, session.settings.tune.blocks)
    losses_E = torch.empty(session.outline.rows[EVALUATION], dtype=torch.float64)

    def before(place: Place) -> torch.Tensor:
        return evaluation(session, model, place)[0](parameters_of(model, layout)).cpu()

    with measuring(session, model), torch.no_grad():
        for place in _columns(session):
            losses_E[_columns(session)[place]] = from_the_start(partial(before, place), BATCH)
    if not torch.isfinite(losses_E).all():
        bad = int((~torch.isfinite(losses_E)).sum())
        raise InputError(f"base: {bad} of {len(losses_E)} evaluation losses are not finite")
    stored = {f"{WEIGHT}{name}": values for name, values in weights.items()}
    return session.commit(unit, attempt, {"losses": losses_E.numpy(), **stored})


def based_model(session: Session) -> nn.Module:
    """The model that is tuned, in evaluation mode, on this worker's device."""
    model = session.model_of(session.task)
    stored = session.arrays(units(session.outline)[0][0])
    weights = {k.removeprefix(WEIGHT): v for k, v in stored.items() if k.startswith(WEIGHT)}
    if weights:
        _load(model, weights)
    return ready(session, model)


def ready(session: Session, model: nn.Module) -> nn.Module:
    """On the device, in evaluation mode; half precision becomes float32, and what is not tuned has
    no gradients."""
    model._apply(lambda values: values.float() if values.dtype in HALF else values)
    tuned_ones = {*Layout.of(model, session.settings.tune.blocks).names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tuned_ones)
    return model.to(session.device).eval()


def _arrays(weights: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """As base() is to give them, or tensors as in a state_dict."""
    found = {}
    for name, values in weights.items():
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype in HALF else values).numpy()
        found[name] = np.asarray(values)
        if found[name].dtype.kind not in "fiub":
            raise InputError(f"task: base()'s {name!r} is of {found[name].dtype}, not of numbers")
    return found


def _load(model: nn.Module, weights: Any) -> None:
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in weights.items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"task: base()'s weights are not model()'s: {reason:.200}") from None


def tuning_loss(session: Session) -> Any:
    """The training loss, the task's first: what is tuned on, and what is measured."""
    return next(iter(session.task.losses.values()))


def evaluation(session: Session, model: nn.Module, place: Place) -> tuple[Losses, np.ndarray]:
    """The losses of a matrix's evaluation rows, and their ids; in batches that are the same before
    and after."""
    ids, task = _columns(session)[place], session.task
    size = rows_at_once(BATCH, session.settings.tune.evaluation_batch)

    def made() -> tuple[list[Any], np.ndarray | None]:
        shares_EP = None
        if isinstance(task, Pieced):
            with error_context("pieces()"):
                batches, shares_EP = task.pieces(ids, size)
        else:
            batches = [task.batch(EVALUATION, ids[a:b]) for a, b in row_ranges(len(ids), size)]
        return [to_device(batch, session.device) for batch in batches], shares_EP

    batches, shares_EP = session.latest("batches", (place, size), made)
    losses = losses_of(model, tuning_loss(session), batches)
    if shares_EP is None:
        return losses, ids
    return lambda parameters: of_pieces(losses(parameters), shares_EP), ids


def _columns(session: Session) -> dict[Place, np.ndarray]:
    """The evaluation rows of each matrix and draw."""

    def found() -> dict[Place, np.ndarray]:
        mine: dict[Place, list[int]] = {}
        for row, place in enumerate(places(relations(session.task, EVALUATION))):
            mine.setdefault(place, []).append(row)
        return {place: np.array(rows) for place, rows in mine.items()}

    return session.cached(EVALUATION, found)


@contextmanager
def measuring(session: Session, model: nn.Module) -> Iterator[None]:
    """Evaluation mode at the run's precision, by kernels with derivatives of both kinds."""
    with (
        twice_differentiable(model),
        precision(session.settings.tune.precision, session.device),
    ):
        yield


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "base model", units=units, run=run,
    reads=("task", "seed", "tune.blocks", "tune.precision", "tune.evaluation_batch"),
)  # fmt: skip
