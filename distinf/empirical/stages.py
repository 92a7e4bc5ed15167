"""The stages of the empirical recipe.

base    one unit: the weights that everything starts from, and the losses [E] under them
tuning  units of rows: fine-tune on each, by itself, from the base -> the losses [n, E] after it

What is stored is the loss itself; influence is before minus after (see matrix.py).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.empirical.task import (
    EVALUATION,
    TRAIN,
    Based,
    Place,
    Prompted,
    places,
    relations,
)
from distinf.engine.session import Outline, Session, row_ranges, to_device
from distinf.engine.stage import Stage
from distinf.errors import InputError
from distinf.numerics.curvature import Parameters, twice_differentiable
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.numerics.tuning import (
    Losses,
    Tuned,
    Updates,
    first_order,
    losses_of,
    parameters_of,
    tuned,
)
from distinf.numerics.updates import updates_of
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.tasks.identity import has_own_rows
from distinf.tasks.rehearsal import rehearse
from distinf.tasks.task import error_context

BASE, TUNING = "base", "tuning"
PROMPT = "prompt"
TRIED = 8  # rows whose steps are tried before any is measured
WEIGHT = "weight."
HALF = (torch.float16, torch.bfloat16)
BACKWARD, SLOPE = 2.0, 2.0  # forward passes: of a gradient, beside its own; of a derivative


def base_units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    shapes, rows = outline.shapes, outline.rows[EVALUATION]
    cost = Cost(
        flops=shapes.flops_per_sample * rows,
        bytes=4.0 * shapes.parameters + 8.0 * rows,
        memory=4.0 * shapes.parameters,
        device=_peak(outline),
        levers=(_lever(outline),),
        work={"forward": rows},
    )
    return [(Unit(BASE, outline.keys[BASE]), cost)]


def tuning_units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    settings, shapes, columns = outline.settings.tune, outline.shapes, outline.rows[EVALUATION]
    passes = settings.steps * (1 + BACKWARD) + columns
    passes += SLOPE * columns if settings.first_order else 0.0
    return [
        (
            Unit(TUNING, outline.keys[TUNING], start, stop),
            Cost(
                flops=shapes.flops_per_sample * passes * (stop - start),
                bytes=8.0 * columns * (stop - start) * (1 + settings.first_order),
                device=_peak(outline),
                staged=4.0 * shapes.parameters,
                levers=(_lever(outline),),
                work={"forward": passes * (stop - start)},
            ),
        )
        for start, stop in row_ranges(outline.rows[TRAIN], settings.rows_per_unit)
    ]


def _batch_bytes(outline: Outline) -> float:
    batch: int = min(outline.settings.tune.evaluation_batch, outline.rows[EVALUATION])
    return outline.shapes.activation_bytes_per_sample * batch


def _lever(outline: Outline) -> Lever:
    batch = outline.settings.tune.evaluation_batch
    return Lever("tune.evaluation_batch", batch, _batch_bytes(outline))


def _peak(outline: Outline) -> float:
    """The base, what is tuned, its gradient and state in two precisions, a batch's activations."""
    return 40.0 * outline.shapes.parameters + _batch_bytes(outline)


def check(session: Session) -> str:
    """InputError for what can only fail later -> no method of gradients to choose."""
    if not has_own_rows(session.task):
        raise InputError("task: the empirical recipe takes tasks whose rows are there, not made")
    model = rehearse(session.task)
    settings = session.settings.tune
    if settings.optimizer == PROMPT and not isinstance(session.task, Prompted):
        raise InputError(
            "tune.optimizer: prompt needs a task with prompted(model, row, ids); see "
            "distinf/empirical/task.py"
        )
    mine, others = (set(places(relations(session.task, split))) for split in (TRAIN, EVALUATION))
    if mine - others:
        matrix, draw = min(mine - others)
        raise InputError(f"task: no evaluation row is of the matrix '{matrix}', draw {draw}")
    _updates(session, model, Layout.of(model, settings.blocks))
    return ""


def _run(stage: str, session: Session, runtime: Runtime) -> None:
    wanted = next(s for s in STAGES if s.name == stage).wanted_units(session)
    work = session.work(f"distinf.empirical.stages:{stage}_body")
    runtime.pool(work, wanted, session.ledger(stage))


def base_body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: losses fp64 [E]; weight.<name> where the task trains a base of its own."""
    task, weights = session.task, dict[str, np.ndarray]()
    model = session.model_of(task)
    if isinstance(task, Based):
        session.tell(unit, 0.0)
        with error_context("base()"):
            weights = _arrays(task.base(session.device, partial(session.tell, unit)))
        _load(model, weights)
    model = _ready(session, model)
    layout = Layout.of(model, session.settings.tune.blocks)
    losses_E = torch.empty(session.outline.rows[EVALUATION], dtype=torch.float64)
    with _measuring(session, model), torch.no_grad():
        for place in _columns(session):
            losses, ids = _evaluation(session, model, place)
            losses_E[ids] = losses(parameters_of(model, layout)).cpu()
    if not torch.isfinite(losses_E).all():
        bad = int((~torch.isfinite(losses_E)).sum())
        raise InputError(f"base: {bad} of {len(losses_E)} evaluation losses are not finite")
    stored = {f"{WEIGHT}{name}": values for name, values in weights.items()}
    return session.commit(unit, attempt, {"losses": losses_E.numpy(), **stored})


def tuning_body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays of the unit's rows: losses fp64 [n, E] after each, NaN of evaluation rows of another
    matrix or draw; taken [n], how much of its step; first_order [n, E] if it is asked for, and
    under tune.optimizer prompt unprompted [n, E]. What a row made infinite is kept as it is."""
    model: nn.Module = session.cached("base", lambda: based_model(session))
    count, columns = unit.stop - unit.start, session.outline.rows[EVALUATION]
    arrays: dict[str, np.ndarray] = {"taken": np.full(count, np.nan)}
    step = _after_prompt if session.settings.tune.optimizer == PROMPT else _after_tuning
    with _measuring(session, model):
        for k, row in enumerate(range(unit.start, unit.stop)):
            place = places(session.cached(TRAIN, lambda: relations(session.task, TRAIN)))[row]
            losses, ids = _evaluation(session, model, place)
            taken, found = step(session, model, row, losses, ids)
            arrays["taken"][k] = taken
            for name, values in found.items():
                whole = arrays.setdefault(name, np.full((count, columns), np.nan))
                whole[k, ids] = values.double().cpu().numpy()
            session.tell(unit, (k + 1) / count)
    return session.commit(unit, attempt, arrays, may_hold_nan=[*arrays])


Found = tuple[float, dict[str, torch.Tensor]]


def _after_tuning(
    session: Session, model: nn.Module, row: int, losses: Losses, ids: np.ndarray
) -> Found:
    settings, start = session.settings.tune, _start(session, model)
    session.cached("tried", lambda: _refuse_lost_steps(session, model))
    made = _tuned_on(session, model, row)
    with torch.no_grad():
        found = {"losses": losses(made.parameters)}
    if settings.first_order:
        found["first_order"] = first_order(losses, start, made.parameters)
    return made.taken, found


def _after_prompt(
    session: Session, model: nn.Module, row: int, losses: Losses, ids: np.ndarray
) -> Found:
    with error_context(f"prompted(row {row})"):
        pair = [torch.as_tensor(losses) for losses in session.task.prompted(model, row, ids)]
        shapes = [tuple(losses.shape) for losses in pair]
        if shapes != [(len(ids),)] * 2:
            raise InputError(
                f"task: prompted(row {row}) returned shapes {shapes}; give two losses [{len(ids)}]"
            )
    return math.nan, {"losses": pair[0].detach(), "unprompted": pair[1].detach()}


def _start(session: Session, model: nn.Module) -> Parameters:
    return parameters_of(model, Layout.of(model, session.settings.tune.blocks))


def _tuned_on(session: Session, model: nn.Module, row: int) -> Tuned:
    settings, layout = session.settings.tune, Layout.of(model, session.settings.tune.blocks)
    batch = session.read(session.task, TRAIN, np.array([row]))
    own, updates = losses_of(model, _loss(session), [batch]), _updates(session, model, layout)
    return tuned(own, _start(session, model), updates, settings.lr, settings.steps)


def _refuse_lost_steps(session: Session, model: nn.Module) -> None:
    """InputError where rounding swallows the steps of some rows, taken together: of a row that the
    model knows already the step is small, and nothing is lost with it."""
    settings, rows = session.settings.tune, session.outline.rows[TRAIN]
    tried = np.unique(np.linspace(0, rows - 1, TRIED).astype(int))
    every = [_tuned_on(session, model, int(row)) for row in tried]
    made = [m for m in every if math.isfinite(m.asked) and math.isfinite(m.along)]
    asked, along = sum(m.asked for m in made), sum(m.along for m in made)
    if along < settings.least_taken * asked:
        raise InputError(
            f"tune.lr: steps at {settings.lr:g} are too small for the weights: after rounding "
            f"{100 * along / asked:.0f} % of them is left on {len(made)} rows; raise tune.lr or "
            "tune.steps"
        )


def based_model(session: Session) -> nn.Module:
    """The model that is tuned, in evaluation mode, on this worker's device."""
    model = session.model_of(session.task)
    stored = session.arrays(base_units(session.outline)[0][0])
    weights = {k.removeprefix(WEIGHT): v for k, v in stored.items() if k.startswith(WEIGHT)}
    if weights:
        _load(model, weights)
    return _ready(session, model)


def _ready(session: Session, model: nn.Module) -> nn.Module:
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


def _loss(session: Session) -> Any:
    """The training loss, the task's first: what is tuned on, and what is measured."""
    return next(iter(session.task.losses.values()))


def _evaluation(session: Session, model: nn.Module, place: Place) -> tuple[Losses, np.ndarray]:
    """The losses of a matrix's evaluation rows, and their ids; in batches that are the same before
    and after."""
    ids = _columns(session)[place]

    def batches() -> list[Any]:
        ranges = row_ranges(len(ids), session.settings.tune.evaluation_batch)
        return [
            to_device(session.task.batch(EVALUATION, ids[a:b]), session.device) for a, b in ranges
        ]

    return losses_of(model, _loss(session), session.latest("batches", place, batches)), ids


def _columns(session: Session) -> dict[Place, np.ndarray]:
    """The evaluation rows of each matrix and draw."""

    def found() -> dict[Place, np.ndarray]:
        mine: dict[Place, list[int]] = {}
        for row, place in enumerate(places(relations(session.task, EVALUATION))):
            mine.setdefault(place, []).append(row)
        return {place: np.array(rows) for place, rows in mine.items()}

    return session.cached(EVALUATION, found)


@contextmanager
def _measuring(session: Session, model: nn.Module) -> Iterator[None]:
    """Evaluation mode at the run's precision, by kernels with derivatives of both kinds."""
    with (
        twice_differentiable(model),
        precision(session.settings.tune.precision, session.device),
    ):
        yield


def _updates(session: Session, model: nn.Module, layout: Layout) -> Updates:
    """The optimizer's, of every parameter that is tuned."""
    settings = session.settings.tune
    parameters = {name: model.get_parameter(name) for name in layout.names}
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    made: torch.optim.Optimizer = (
        torch.optim.AdamW(parameters.values(), **common)
        if settings.optimizer == "adamw"
        else torch.optim.SGD(parameters.values(), momentum=settings.momentum, **common)
    )
    return updates_of(made, parameters)


_OF_TUNING = ("tune", "-tune.rows_per_unit", "-tune.least_taken")
STAGES = (
    Stage(
        BASE, "base model", reads=("task", "seed", "tune.blocks", "tune.precision",
        "tune.evaluation_batch"), units=base_units, run=partial(_run, BASE),
    ),
    Stage(
        TUNING, "fine-tuning on each row", needs=(BASE,), reads=_OF_TUNING, units=tuning_units,
        uncounted=("tune.rows_per_unit", "tune.least_taken"), run=partial(_run, TUNING),
    ),
)  # fmt: skip
