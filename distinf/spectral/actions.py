"""Stage actions: fine-tune on chosen rows, as a grid of small jobs, and measure what it did.

A job starts from the trained weights with BatchNorm frozen (evaluation mode), takes a few steps on
rows drawn from its pool, and measures its targets after every step and other evaluation rows after
the last.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from distinf.engine.session import draw, row_ranges, to_device
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.microbatch import from_the_start, rows_at_once
from distinf.numerics.adapters import add_adapters
from distinf.numerics.losses import sum_gradient
from distinf.numerics.parameters import Layout
from distinf.numerics.variants import damped_inverse
from distinf.runtime import Cost, Lever, Unit
from distinf.runtime.ledger import Record
from distinf.spectral.arms import NAME, Arm, arm_of, families, jobs
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.evaluate import chosen_targets, columns, conditions, evaluated, evaluation
from distinf.spectral.gradients import scored_rows
from distinf.spectral.pools import job_ranks, job_rows, near_by, signs
from distinf.spectral.preconditioning import rooted
from distinf.spectral.session import Outline, Session
from distinf.spectral.spectra import damped_spectrum
from distinf.spectral.train import trained_model, trained_optimizer
from distinf.tasks.checkpoint import unfrozen
from distinf.tasks.task import Batch, GeneratingTask, RedrawingTask, StoredTask

Step = Callable[[np.ndarray], None]  # rows -> the model is updated
BATCH = "actions.batch_size"


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """The grid's jobs, as many as the targets asked for."""
    others = outline.settings.actions.non_targets or outline.rows["evaluation"]
    return [(job, _cost(outline, arm_of(job), others)) for job in jobs(outline)]


def _cost(outline: Outline, arm: Arm, others: int) -> Cost:
    shapes = outline.shapes
    targets = outline.settings.targets.count if arm.aim == "multi-target" else 1
    trained = arm.steps * arm.batch_size
    again = outline.settings.actions.fresh_draws * targets
    guard = 0 if arm.stop is None else arm.steps * outline.settings.actions.guard
    measured = (arm.steps + 1) * targets + others + again + guard
    flops = shapes.flops_per_sample * (3 * trained + measured)
    passed = shapes.activation_bytes_per_sample * arm.batch_size
    return Cost(
        flops=flops,
        bytes=8.0 * others,
        memory={"weights": shapes.model_bytes},
        device={**outline.state, "activations": passed, "gradients": 4.0 * shapes.tuned},
        staged=shapes.model_bytes,
        levers=(Lever("actions.batch_size", arm.batch_size, passed),),
        work={"train": trained, "forward": measured, "model": 1},
        loaded=outline.loaded,
        calls={
            "train": arm.steps,
            "forward": arm.steps + 1 + -(-others // outline.settings.evaluate.batch_size),
        },
    )


def is_done(session: Session) -> bool:
    if not evaluated(session):
        return False
    wanted = chosen_jobs(session)
    return len(session.done(wanted)) == len(wanted)


def check(session: Session) -> None:
    """InputError for settings that can only fail here, hours into the run."""
    outline = session.outline
    made = isinstance(session.task, GeneratingTask | StoredTask)
    known = {"nearest": made and bool(near_by(session.task))}
    known["matched"] = made and bool(getattr(session.task, "labels", {}))
    rows, evaluation = scored_rows(outline), outline.rows["evaluation"]
    for family in families(outline.settings.actions, outline.losses):
        prefix = f"actions.also.{family.name}" if family.name else "actions"
        for arm, _, _ in family.members:
            if not known.get(arm.selection, True):
                goes_by = {"nearest": "conditions", "matched": "classes"}[arm.selection]
                raise InputError(
                    f"{prefix}.selections: {arm.selection} goes by {goes_by} of stored rows, and "
                    "this task has none; leave it out"
                )
            if arm.pool > rows:
                raise InputError(
                    f"{prefix}.pool: {arm.pool} is more than the {rows} rows that are scored"
                )
            if arm.variant == "tracin" and not outline.settings.trajectory.checkpoints:
                raise InputError(
                    f"{prefix}.variant: tracin sums over checkpoints of training; set "
                    "trajectory.checkpoints to at least 1"
                )
            if arm.variant == "ekfac" and not outline.settings.scores.ekfac:
                raise InputError(f"{prefix}.variant: ekfac needs scores.ekfac: true")
            measured = outline.settings.actions.non_targets or evaluation
            if arm.stop is not None and evaluation <= outline.settings.targets.count + measured:
                raise InputError(
                    f"{prefix}.stop: with {measured} of {evaluation} evaluation rows to measure by "
                    "(actions.non_targets) none is left to decide the stop; measure by fewer"
                )
    if outline.settings.actions.seeds and evaluation <= outline.settings.targets.count:
        raise InputError(
            f"targets.count: {outline.settings.targets.count} of {evaluation} evaluation rows "
            "leave none to measure side effects; lower it"
        )


def chosen_jobs(session: Session) -> list[Unit]:
    """The jobs of the targets that exist."""
    return jobs(session.outline, len(chosen_targets(session).ids))


def non_target_ids(session: Session) -> np.ndarray:
    """Evaluation rows, none of them a target, that measure side effects; sorted."""
    return np.sort(_other_ids(session)[: session.settings.actions.non_targets or None])


def guard_ids(session: Session) -> np.ndarray:
    """Evaluation rows that decide the stop and measure nothing: neither targets, nor rows under
    their conditions, nor `non_target_ids`; sorted."""
    settings, targets = session.settings.actions, chosen_targets(session)
    alike = np.isin(conditions(evaluation(session), session.task), targets.conditions)
    rest = _other_ids(session)[settings.non_targets :]
    return np.sort(rest[~alike[rest]][: settings.guard])


def sibling_ids(session: Session, rank: int) -> np.ndarray:
    """Evaluation rows under the conditions of a target, none of them a target."""
    targets = chosen_targets(session)
    alike = conditions(evaluation(session), session.task) == targets.conditions[rank]
    return np.setdiff1d(np.flatnonzero(alike), targets.ids)


def _other_ids(session: Session) -> np.ndarray:
    order = draw(session.seed, "non-targets", session.outline.rows["evaluation"], None)
    return order[~np.isin(order, chosen_targets(session).ids)]


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: metric_by_step [steps + 1, targets]; others [non_targets] after the last step;
    siblings and fresh [2, targets]: before and after, the mean over rows under a target's
    conditions, of the evaluation split and drawn anew; NaN where there are none.
    """
    model, arm, ranks = trained_model(session), arm_of(unit), job_ranks(unit)
    step = _stepper(session, unit, model)
    targets = chosen_targets(session).ids[ranks]
    metric = [_metric(session, model, targets)]
    before = session.cached(("around", *ranks), lambda: _around(session, model, ranks))
    guard = None if arm.stop is None else _Guard(session, model, arm.stop)
    for rows in job_rows(session, unit):
        step(rows)
        if guard is not None and guard.stops():
            break
        metric.append(_metric(session, model, targets))
    taken = len(metric) - 1
    metric += [metric[-1]] * (arm.steps - taken)
    after = _around(session, model, ranks)
    others = columns(session, model, non_target_ids(session))[session.task.metric]
    arrays = {"metric_by_step": np.stack(metric), "others": others}
    arrays |= {name: np.array([before[name], after[name]]) for name in before}
    return session.commit(
        unit, attempt, arrays, summary={"steps": taken}, may_hold_nan=list(arrays)
    )


class _Guard:
    """Takes back the step after which the guard rows' mean metric is too high, or no number, and
    stops there."""

    def __init__(self, session: Session, model: nn.Module, percent: float):
        ids = guard_ids(session)
        self._session, self._model = session, model
        self._ids = ids[np.isfinite(_metric(session, model, ids))]
        if not len(self._ids):
            raise InputError(
                f"actions.stop: the {session.task.metric} of none of the {len(ids)} rows that may "
                "decide it is finite; raise actions.guard, lower actions.non_targets, or set "
                "actions.stop to null"
            )
        before = self._mean()
        self._most = before + percent / 100 * abs(before)
        self._keep()

    def stops(self) -> bool:
        if self._mean() <= self._most:
            self._keep()
            return False
        self._model.load_state_dict(self._kept, strict=False)
        return True

    def _keep(self) -> None:
        self._kept = {name: t.clone() for name, t in unfrozen(self._model).items()}

    def _mean(self) -> float:
        return float(_metric(self._session, self._model, self._ids).mean())


def _around(session: Session, model: nn.Module, ranks: Sequence[int]) -> dict[str, list[float]]:
    """By target: the mean metric of rows under its conditions, siblings and fresh draws."""
    found: dict[str, list[float]] = {"siblings": [], "fresh": []}
    for rank in ranks:
        ids = session.cached(("siblings", rank), lambda rank=rank: sibling_ids(session, rank))  # type: ignore[misc]
        values = _metric(session, model, ids) if len(ids) else np.array([np.nan])
        found["siblings"].append(float(values.mean()))
        found["fresh"].append(_fresh(session, model, int(chosen_targets(session).ids[rank])))
    return found


def _fresh(session: Session, model: nn.Module, row: int) -> float:
    count = session.settings.actions.fresh_draws
    if not count or not isinstance(session.task, RedrawingTask):
        return float("nan")
    task = session.task
    drawn = session.cached(
        ("fresh", row), lambda: to_device(task.redrawn(row, count), session.device)
    )
    with torch.no_grad():
        return float(task.evaluate(model.eval(), drawn)[task.metric].double().mean())


def _stepper(session: Session, job: Unit, model: nn.Module) -> Step:
    """What one step does to the model."""
    arm, task = arm_of(job), session.task
    loss = next(iter(task.losses.values()))
    if arm.update == "second-order":
        return _newton(session, job, model)
    parameters = list(model.parameters())
    if arm.adapter:
        parameters = add_adapters(model, arm.adapter, seed=session.seed + job.job["seed"])
    optimizer = task.optimizer(parameters, arm.lr, arm.weight_decay)
    if arm.optimizer == "kept":
        trained_optimizer(session, model, optimizer)
    sign = -1.0 if arm.update == "ascent" else 1.0

    def step(rows: np.ndarray) -> None:
        def passed(batch: Batch, part: np.ndarray) -> None:
            mean = loss(model.eval(), batch).mean()
            (sign * mean * (len(part) / len(rows))).backward()

        _in_parts(session, rows, optimizer.zero_grad, passed)
        optimizer.step()

    return step


def _in_parts(
    session: Session, rows: np.ndarray, begin: Callable[[], None],
    passed: Callable[[Batch, np.ndarray], None],
) -> None:  # fmt: skip
    """begin(), then passed(batch, part) of all rows; anew in parts of half where memory ran out."""

    def whole() -> None:
        begin()
        for a, b in row_ranges(len(rows), rows_at_once(BATCH, len(rows))):
            passed(session.batch("train", rows[a:b]), rows[a:b])

    from_the_start(whole, BATCH)


def _newton(session: Session, job: Unit, model: nn.Module) -> Step:
    """Influence-aligned updates (Tuononen, Penttinen and Hautamäki, Eq. 11 and 16, in our sign).

    theta -= eta (H + damping)^-1 mean_k(w_k g_k): w_k sums the signs of row k's classic scores over
    the job's targets that it is paired with; g_k is taken anew at each step, or at the trained
    weights; the curvature is the stored one, its inverse the one that the scores use.
    """
    arm = arm_of(job)
    layout = Layout.of(model, session.settings.curvature.blocks)
    vectors_KP = session.cached(
        "ritz vectors", lambda: stored_pairs(session).vectors.to(session.device)
    )
    spectrum = session.cached("spectrum", lambda: damped_spectrum(session))
    loss = next(iter(session.task.losses.values()))
    weights_N = signs(session, job)
    trained_P = layout.gather(model)

    def step(rows: np.ndarray) -> None:
        found: list[torch.Tensor] = []

        def passed(batch: Batch, part: np.ndarray) -> None:
            weights = torch.from_numpy(weights_N[part]).to(session.device)

            def weighted(of: nn.Module, rows_of: Batch) -> torch.Tensor:
                return loss(of, rows_of) * weights

            found.append(sum_gradient(model, weighted, batch, layout))

        now_P = layout.gather(model)
        if arm.newton_solves == "stored":
            layout.scatter_(model, trained_P)
        _in_parts(session, rows, found.clear, passed)
        mean_P = torch.stack(found).sum(0) / len(rows)
        change_P = rooted(session, damped_inverse(rooted(session, mean_P), vectors_KP, spectrum))
        layout.scatter_(model, now_P - arm.newton_lr * change_P)

    return step


def _metric(session: Session, model: nn.Module, ids: np.ndarray) -> np.ndarray:
    found = columns(session, model, ids)[session.task.metric]
    return found.astype(np.float64)


def non_targets_before(session: Session) -> np.ndarray:
    """The metric of `non_target_ids` before any fine-tuning."""
    return evaluation(session)[session.task.metric][non_target_ids(session)]


run = pooled(f"{__name__}:body", NAME, wanted=chosen_jobs)
STAGE = Stage(
    NAME, "fine-tune", needs=("scores",),
    reads=("evaluate", "actions.non_targets", "actions.guard", "actions.fresh_draws"),
    uncounted=("actions", "trajectory"),
    units=units, run=run, done=is_done, is_jobs=True,
)  # fmt: skip
