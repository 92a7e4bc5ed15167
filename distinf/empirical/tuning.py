"""Stage tuning: units of rows; fine-tune on each, by itself, from the base, and measure the losses
[n, E] after it; or on all rows but it, and measure what its absence does.

What is stored is the loss itself; influence is before minus after (see matrix.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import nn

from distinf.empirical import base
from distinf.empirical.base import (
    BATCH,
    based_model,
    batch_lever,
    evaluation,
    measuring,
    peak_bytes,
    tuning_loss,
)  # fmt: skip
from distinf.empirical.session import Outline, Session
from distinf.empirical.settings import TuneSettings
from distinf.empirical.task import (
    EVALUATION,
    TRAIN,
    Parted,
    Place,
    Prompted,
    PromptsChecked,
    places,
    relations,
)  # fmt: skip
from distinf.engine.session import row_ranges, to_device
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.microbatch import from_the_start
from distinf.numerics.curvature import Parameters
from distinf.numerics.parameters import Layout
from distinf.numerics.randomness import generator
from distinf.numerics.tuning import (
    Losses,
    Tuned,
    Tuning,
    first_order,
    losses_of,
    parameters_of,
)  # fmt: skip
from distinf.runtime import Cost, Unit
from distinf.runtime.ledger import Record
from distinf.tasks.identity import has_own_rows
from distinf.tasks.rehearsal import rehearse
from distinf.tasks.task import error_context

NAME = "tuning"
PROMPT = "prompt"
TRIED = 8  # rows whose steps are tried before any is measured
# In forward passes of a row of mean length: a step; a row evaluated; a derivative along the step;
# and, assumed, a row evaluated after two prompts, read once for all, with the sample and without.
FORWARDS = {"step": 3.0, "forward": 1.0, "derivative": 2.0, "prompted": 5.0}

Found = tuple[float, dict[str, torch.Tensor]]


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    settings, columns = outline.settings.tune, outline.rows[EVALUATION]
    alike_N = outline.alike_N - 1 if settings.leave_one_out else np.ones(outline.rows[TRAIN])
    found = []
    for start, stop in row_ranges(outline.rows[TRAIN], settings.rows_per_unit):
        measured = float(outline.measured_N[start:stop].sum())
        if settings.optimizer == PROMPT:
            work = {"prompted": measured}
        else:
            work = {"step": settings.steps * float(alike_N[start:stop].sum()), "forward": measured}
        if settings.first_order:
            work["derivative"] = measured
        stored = 8.0 * columns * (stop - start) * (1 + settings.first_order)
        found.append((Unit(NAME, outline.keys[NAME], start, stop), cost_of(outline, work, stored)))
    return found


def cost_of(outline: Outline, work: Mapping[str, float], stored: float) -> Cost:
    """Of tuning and measuring: work in FORWARDS, and the bytes that it stores."""
    passes = sum(FORWARDS[name] * count for name, count in work.items())
    return Cost(
        flops=outline.shapes.flops_per_sample * passes,
        bytes=stored,
        memory=outline.shapes.kept_bytes,
        device=peak_bytes(outline),
        staged=4.0 * outline.shapes.parameters,
        levers=(batch_lever(outline),),
        work=work,
        loaded=outline.loaded,
    )


def check(session: Session) -> nn.Module:
    """InputError for what can only fail later -> the rehearsed model."""
    if not has_own_rows(session.task):
        raise InputError("task: the empirical recipe takes tasks whose rows are there, not made")
    model = rehearse(session.task)
    settings = session.settings.tune
    if settings.optimizer == PROMPT and not isinstance(session.task, Prompted):
        raise InputError(
            "tune.optimizer: prompt needs a task with prompted(model, row, ids); see "
            "distinf/empirical/task.py"
        )
    prompts = PROMPT in (settings.optimizer, *session.settings.estimates.estimators)
    if prompts and isinstance(session.task, PromptsChecked):
        session.task.check_prompts()
    mine, others = (set(places(relations(session.task, split))) for split in (TRAIN, EVALUATION))
    if mine - others:
        matrix, draw = min(mine - others)
        raise InputError(f"task: no evaluation row is of the matrix '{matrix}', draw {draw}")
    Layout.of(model, settings.blocks)
    return model


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays of the unit's rows: losses fp64 [n, E] after each, NaN of evaluation rows of another
    matrix or draw; taken [n], how much of its step; first_order [n, E] if it is asked for; and
    without [n, E], the losses that `losses` are to be held against where those are not the base's:
    with something unrelated in the prompt, or tuned on all rows but this one. What a row made
    infinite is kept as it is."""
    model: nn.Module = session.cached("base", lambda: based_model(session))
    count, columns = unit.stop - unit.start, session.outline.rows[EVALUATION]
    arrays: dict[str, np.ndarray] = {"taken": np.full(count, np.nan)}
    step = _measure(session)
    of_rows = session.cached(TRAIN, lambda: places(relations(session.task, TRAIN)))

    def measured(row: int) -> tuple[np.ndarray, float, dict[str, torch.Tensor]]:
        losses, ids = evaluation(session, model, of_rows[row])
        return ids, *step(session, model, row, losses, ids)

    with measuring(session, model):
        for k, row in enumerate(range(unit.start, unit.stop)):
            ids, taken, found = from_the_start(partial(measured, row), BATCH)
            arrays["taken"][k] = taken
            for name, values in found.items():
                whole = arrays.setdefault(name, np.full((count, columns), np.nan))
                whole[k, ids] = values.double().cpu().numpy()
            session.tell(unit, (k + 1) / count)
    return session.commit(unit, attempt, arrays, may_hold_nan=[*arrays])


def _measure(session: Session) -> Callable[..., Found]:
    settings = session.settings.tune
    if settings.optimizer == PROMPT:
        return after_prompt
    return _without if settings.leave_one_out else _after_tuning


def _after_tuning(
    session: Session, model: nn.Module, row: int, losses: Losses, ids: np.ndarray
) -> Found:
    settings, start = session.settings.tune, start_of(session, model)
    session.cached("tried", lambda: _refuse_lost_steps(session, model))
    made = tuned_on(session, model, [row] * settings.steps)
    with torch.no_grad():
        found = {"losses": losses(made.parameters)}
    if settings.first_order:
        found["first_order"] = first_order(losses, start, made.parameters)
    return made.taken, found


def _without(
    session: Session, model: nn.Module, row: int, losses: Losses, ids: np.ndarray
) -> Found:
    """Eq. 4 of Matelsky et al. as they define it: tuned on all rows of the matrix and draw, and on
    all but this one, in the same order."""
    session.cached("tried", lambda: _refuse_lost_steps(session, model))
    place = places(relations(session.task, TRAIN))[row]
    order = session.cached(("order", place), lambda: _order(session, place))

    def after(rows: Sequence[int]) -> tuple[float, torch.Tensor]:
        made = tuned_on(session, model, rows)
        with torch.no_grad():
            return made.taken, losses(made.parameters)

    _, whole = session.latest("whole", place, lambda: after(order))
    taken, without = after([other for other in order if other != row])
    return taken, {"losses": whole, "without": without}


def _order(session: Session, place: Place) -> list[int]:
    """Of the rows of a matrix and draw, anew in each pass."""
    mine = [row for row, at in enumerate(places(relations(session.task, TRAIN))) if at == place]
    passes = range(session.settings.tune.steps)
    random = [generator(session.seed, f"order {place} {each}") for each in passes]
    return [int(row) for each in random for row in each.permutation(mine)]


def after_prompt(
    session: Session, model: nn.Module, row: int, losses: Losses, ids: np.ndarray
) -> Found:
    with error_context(f"prompted(row {row})"):
        pair = [torch.as_tensor(losses) for losses in session.task.prompted(model, row, ids)]
        shapes = [tuple(losses.shape) for losses in pair]
        if shapes != [(len(ids),)] * 2:
            raise InputError(
                f"task: prompted(row {row}) returned shapes {shapes}; give two losses [{len(ids)}]"
            )
    return math.nan, {"losses": pair[0].detach(), "without": pair[1].detach()}


def start_of(session: Session, model: nn.Module) -> Parameters:
    return parameters_of(model, Layout.of(model, session.settings.tune.blocks))


def tuned_on(
    session: Session, model: nn.Module, rows: Sequence[int], rate: float | None = None
) -> Tuned:
    """A step on each of these rows, or of their parts, at another rate if it is given; the next
    call overwrites the parameters."""
    settings = session.settings.tune
    rate = settings.lr if rate is None else rate

    def losses(row: int) -> list[Losses]:  # of one step Tuning keeps no state: see steps_often
        parts = [session.read(session.task, TRAIN, np.array([row]))]
        if isinstance(session.task, Parted):
            parts = [to_device(part, session.device) for part in session.task.parts(row)]
        return [losses_of(model, tuning_loss(session), [part]) for part in parts]

    def made() -> Tuning:
        return Tuning(start_of(session, model), partial(_optimizer, replace(settings, lr=rate)))

    each = losses(rows[0]) if len(rows) == 1 else chain.from_iterable(map(losses, rows))
    return session.latest("tuning", (model, rate), made).on(each)


def tried(session: Session) -> list[int]:
    """A few rows from all over the task."""
    return tried_of(session.outline)


def tried_of(outline: Outline) -> list[int]:
    spread = np.linspace(0, outline.rows[TRAIN] - 1, TRIED)
    return [int(row) for row in np.unique(spread.astype(int))]


def _refuse_lost_steps(session: Session, model: nn.Module) -> None:
    """InputError where rounding swallows the steps of some rows, taken together: of a row that the
    model knows already the step is small, and nothing is lost with it."""
    settings = session.settings.tune
    every = [tuned_on(session, model, [row] * settings.steps) for row in tried(session)]
    made = [m for m in every if math.isfinite(m.asked) and math.isfinite(m.along)]
    asked, along = sum(m.asked for m in made), sum(m.along for m in made)
    if along < settings.least_taken * asked:
        raise InputError(
            f"tune.lr: steps at {settings.lr:g} are too small for the weights: after rounding "
            f"{100 * along / asked:.0f} % of them is left on {len(made)} rows; raise tune.lr or "
            "tune.steps"
        )


def _optimizer(settings: TuneSettings, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    lr, decay, momentum = settings.lr, settings.weight_decay, settings.momentum
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)
    return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=momentum, fused=True)


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "fine-tuning on each row", needs=(base.NAME,), units=units, run=run,
    reads=("tune", "-tune.rows_per_unit", "-tune.least_taken", "-tune.sweep"),
    uncounted=("tune.rows_per_unit", "tune.least_taken"),
)  # fmt: skip
