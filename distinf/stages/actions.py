"""Stage actions: fine-tune on helpful, harmful and random rows, as a grid of small jobs.

A job starts from the trained weights with BatchNorm frozen (evaluation mode) and a fresh
optimizer, takes a few first-order steps on rows drawn from its pool, and measures the target after
every step and other evaluation rows after the last.
"""

from collections.abc import Sequence

import numpy as np
from torch import nn

from distinf.errors import InputError
from distinf.runtime import Cost, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.stages.evaluate import chosen_targets, columns, evaluated, evaluation
from distinf.stages.gradients import scored_rows
from distinf.stages.scores import stored_scores
from distinf.stages.session import Outline, Session, draw, generator
from distinf.stages.train import trained_model, trained_optimizer

NAME = "actions"


def jobs(outline: Outline, targets: int | None = None) -> list[Unit]:
    """One per target (by rank), selection and seed; `targets`: how many there turned out to be."""
    settings = outline.settings.actions
    count = outline.settings.targets.count if targets is None else targets
    return [
        Unit(NAME, outline.basis[NAME], job={"target": rank, "selection": s, "seed": seed})
        for rank in range(count)
        for s in settings.selections
        for seed in range(settings.seeds)
    ]


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """The grid's jobs, as many as the targets asked for."""
    settings, shapes = outline.settings.actions, outline.shapes
    passes = 3 * settings.steps * settings.batch_size + settings.steps + 1 + settings.non_targets
    memory = shapes.activation_bytes_per_sample * max(settings.batch_size, 1)
    cost = Cost(shapes.flops_per_sample * passes, 8.0 * settings.non_targets, memory)
    return [(job, cost) for job in jobs(outline)]


def is_done(session: Session) -> bool:
    if not evaluated(session):
        return False
    wanted = chosen_jobs(session)
    return len(session.done(wanted)) == len(wanted)


def run(session: Session, runtime: Runtime) -> None:
    wanted = chosen_jobs(session)
    work = session.work("distinf.stages.actions:body")
    runtime.grid(work, wanted, session.ledger(NAME))


def check(outline: Outline) -> None:
    """InputError for settings that can only fail here, hours into the run."""
    settings = outline.settings.actions
    if settings.loss and settings.loss not in outline.losses:
        known = ", ".join(outline.losses)
        raise InputError(f"actions.loss: '{settings.loss}' is not a loss of this task ({known})")
    rows, evaluation = scored_rows(outline), outline.rows["evaluation"]
    if settings.pool > rows:
        raise InputError(
            f"actions.pool: {settings.pool} is more than the {rows} rows that are scored"
        )
    if evaluation <= outline.settings.targets.count:
        raise InputError(
            f"targets.count: {outline.settings.targets.count} of {evaluation} evaluation rows "
            "leave none to measure side effects; lower it"
        )


def chosen_jobs(session: Session) -> list[Unit]:
    """The jobs of the targets that exist."""
    return jobs(session.outline, len(chosen_targets(session).ids))


def non_target_ids(session: Session) -> np.ndarray:
    """Evaluation rows, none of them a target, that measure side effects; sorted."""
    targets = chosen_targets(session).ids
    order = draw(session.seed, "non-targets", session.outline.rows["evaluation"], None)
    return np.sort(order[~np.isin(order, targets)][: session.settings.actions.non_targets])


def pool_rows(session: Session, rank: int, selection: str) -> np.ndarray:
    """Rows to draw from: the highest or lowest scores of the target, or any row with a score."""
    settings = session.settings.actions
    scores_N = stored_scores(session, settings.loss, settings.variant)[rank]
    usable = np.flatnonzero(np.isfinite(scores_N))
    if len(usable) < settings.pool:
        raise InputError(
            f"actions.pool: only {len(usable)} rows have a finite {settings.variant} score, fewer "
            f"than {settings.pool}; see the report's warnings, or lower actions.pool"
        )
    if selection == "random":
        return usable
    signed = scores_N[usable] if selection == "harmful" else -scores_N[usable]
    return usable[np.argsort(signed, kind="stable")[: settings.pool]]


def job_rows(session: Session, job: Unit) -> np.ndarray:
    """[steps, batch_size] rows: the pool in random order, and again when it is used up."""
    settings = session.settings.actions
    pool = pool_rows(session, job.job["target"], job.job["selection"])
    purpose = " ".join(["fine-tune", *(str(job.job[k]) for k in ("target", "selection", "seed"))])
    random = generator(session.seed, purpose)
    needed = settings.steps * settings.batch_size
    rounds = [random.permutation(pool) for _ in range(-(-needed // len(pool)))]
    return np.concatenate(rounds)[:needed].reshape(settings.steps, settings.batch_size)


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: metric_by_step [steps + 1] of the target, others [non_targets] after the last."""
    settings, task = session.settings.actions, session.task
    model = trained_model(session)
    optimizer = task.optimizer(model.parameters(), settings.lr, settings.weight_decay)
    if settings.optimizer == "kept":
        trained_optimizer(session, model, optimizer)
    target = chosen_targets(session).ids[unit.job["target"]][None]
    metric = [_metric(session, model, target)]
    for rows in job_rows(session, unit):
        loss = next(iter(task.losses.values()))
        model.zero_grad()
        loss(model.eval(), session.batch("train", rows)).mean().backward()
        optimizer.step()
        metric.append(_metric(session, model, target))
    others = columns(session, model, non_target_ids(session))[task.metric]
    arrays = {"metric_by_step": np.concatenate(metric), "others": others}
    return session.commit(unit, attempt, arrays, may_hold_nan=list(arrays))


def _metric(session: Session, model: nn.Module, ids: np.ndarray) -> np.ndarray:
    found = columns(session, model, ids)[session.task.metric]
    return found.astype(np.float64)


def non_targets_before(session: Session) -> np.ndarray:
    """The metric of `non_target_ids` before any fine-tuning."""
    return evaluation(session)[session.task.metric][non_target_ids(session)]
