"""Stage actions: fine-tune on chosen rows, as a grid of small jobs, and measure what it did.

A job starts from the trained weights with BatchNorm frozen (evaluation mode), takes a few steps on
rows drawn from its pool, and measures its targets after every step and other evaluation rows after
the last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.adapters import add_adapters
from distinf.numerics.curvature import sum_gradient
from distinf.numerics.parameters import Layout
from distinf.numerics.variants import damped_inverse
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.stages.basis.arms import ALL_TARGETS, NAME, Arm, arm_of, families, jobs
from distinf.stages.basis.curvature import stored_pairs
from distinf.stages.basis.evaluate import chosen_targets, columns, evaluated, evaluation
from distinf.stages.basis.gradients import scored_rows
from distinf.stages.basis.queries import damped_spectrum
from distinf.stages.basis.scores import stored_scores
from distinf.stages.basis.session import Outline, Session
from distinf.stages.basis.train import trained_model, trained_optimizer
from distinf.stages.session import draw, generator
from distinf.stages.task import Batch

Step = Callable[[Batch, np.ndarray], None]  # (rows' batch, rows) -> the model is updated


@dataclass(frozen=True)
class Pool:
    """Rows to draw from: ids [M], most extreme first, and the scores [M] that say so."""

    rows: np.ndarray
    scores: np.ndarray


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """The grid's jobs, as many as the targets asked for."""
    others = outline.settings.actions.non_targets or outline.rows["evaluation"]
    return [(job, _cost(outline, arm_of(job), others)) for job in jobs(outline)]


def _cost(outline: Outline, arm: Arm, others: int) -> Cost:
    shapes = outline.shapes
    targets = outline.settings.targets.count if arm.aim == "multi-target" else 1
    trained = arm.steps * arm.batch_size
    measured = (arm.steps + 1) * targets + others
    flops = shapes.flops_per_sample * (3 * trained + measured)
    passed = shapes.activation_bytes_per_sample * arm.batch_size
    return Cost(
        flops=flops,
        bytes=8.0 * others,
        memory=4.0 * shapes.parameters,
        device=passed + 16.0 * shapes.parameters,
        staged=4.0 * shapes.parameters,
        levers=(Lever("actions.batch_size", arm.batch_size, passed),),
        work={"train": trained, "forward": measured, "model": 1},
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


def run(session: Session, runtime: Runtime) -> None:
    runtime.grid(
        session.work("distinf.stages.basis.actions:body"),
        chosen_jobs(session),
        session.ledger(NAME),
    )


def check(outline: Outline) -> None:
    """InputError for settings that can only fail here, hours into the run."""
    rows, evaluation = scored_rows(outline), outline.rows["evaluation"]
    for family in families(outline.settings.actions, outline.losses):
        prefix = f"actions.also.{family.name}" if family.name else "actions"
        for arm, _, _ in family.members:
            if arm.pool > rows:
                raise InputError(
                    f"{prefix}.pool: {arm.pool} is more than the {rows} rows that are scored"
                )
            if arm.variant == "tracin" and not outline.settings.trajectory.checkpoints:
                raise InputError(
                    f"{prefix}.variant: tracin sums over checkpoints of training; set "
                    "trajectory.checkpoints to at least 1"
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
    return np.sort(order[~np.isin(order, targets)][: session.settings.actions.non_targets or None])


def job_ranks(job: Unit) -> list[int]:
    """Which targets, by rank, a job acts on and measures."""
    rank = job.job["target"]
    return list(range(job.job["among"])) if rank == ALL_TARGETS else [rank]


def pool_rows(session: Session, job: Unit) -> Pool:
    """What a job draws from: extreme scores, the union of several targets', or any row."""
    arm, ranks = arm_of(job), job_ranks(job)
    scores_TN = stored_scores(session, arm.loss, arm.variant or "classic")[ranks]
    usable = np.flatnonzero(np.isfinite(scores_TN).all(0))
    if len(usable) < arm.pool:
        raise InputError(
            f"actions.pool: only {len(usable)} rows have a finite {arm.variant} score, fewer "
            f"than {arm.pool}; see the report's warnings, or lower actions.pool"
        )
    if arm.selection == "random":
        return Pool(usable, np.ones(len(usable)))
    signed_TN = scores_TN[:, usable] * (-1.0 if arm.selection == "harmful" else 1.0)
    # Targets count alike: each one's scores in units of their root mean square.
    size_T = np.sqrt(np.mean(signed_TN**2, axis=1))
    joint_N = (signed_TN / np.where(size_T > 0, size_T, 1.0)[:, None]).sum(0)
    if arm.selection == "group":
        chosen = np.argsort(-joint_N, kind="stable")[: min(arm.pool * len(ranks), len(usable))]
    else:
        tops = [np.argsort(-scores_N, kind="stable")[: arm.pool] for scores_N in signed_TN]
        union = np.unique(np.concatenate(tops))
        chosen = union[np.argsort(-joint_N[union], kind="stable")]
    return Pool(usable[chosen], joint_N[chosen])


def job_rows(session: Session, job: Unit) -> np.ndarray:
    """[steps, batch_size] rows: the pool in the arm's order, and again when it is used up."""
    arm = arm_of(job)
    pool = pool_rows(session, job)
    names = (str(job.job["target"]), arm.selection, str(job.job["seed"]))
    random = generator(session.seed, " ".join(["fine-tune", *names]))
    needed = arm.steps * arm.batch_size
    rounds = [_round(pool, arm.order, random) for _ in range(-(-needed // len(pool.rows)))]
    return np.concatenate(rounds)[:needed].reshape(arm.steps, arm.batch_size)


def _round(pool: Pool, order: str, random: np.random.Generator) -> np.ndarray:
    """The pool's rows once: at random, by rank, or by score at random (Efraimidis, Spirakis)."""
    if order == "rank":
        return pool.rows
    if order == "random":
        return random.permutation(pool.rows)
    weights = np.maximum(np.abs(pool.scores), np.finfo(np.float64).tiny)
    return pool.rows[np.argsort(random.exponential(size=len(weights)) / weights, kind="stable")]


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: metric_by_step [steps + 1, targets]; others [non_targets] after the last step."""
    model = trained_model(session)
    step = _stepper(session, unit, model)
    targets = chosen_targets(session).ids[job_ranks(unit)]
    metric = [_metric(session, model, targets)]
    for rows in job_rows(session, unit):
        step(session.batch("train", rows), rows)
        metric.append(_metric(session, model, targets))
    others = columns(session, model, non_target_ids(session))[session.task.metric]
    arrays = {"metric_by_step": np.stack(metric), "others": others}
    return session.commit(unit, attempt, arrays, may_hold_nan=list(arrays))


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

    def step(batch: Batch, rows: np.ndarray) -> None:
        optimizer.zero_grad()
        (sign * loss(model.eval(), batch).mean()).backward()
        optimizer.step()

    return step


def _newton(session: Session, job: Unit, model: nn.Module) -> Step:
    """Influence-aligned updates (paper 000, Eq. 11 and 16, in our sign).

    theta -= eta (H + damping)^-1 mean_k(w_k g_k): w_k is the sign of row k's classic score, summed
    over the job's targets; g_k is taken anew at each step, the curvature is the stored one.
    """
    arm = arm_of(job)
    layout = Layout.of(model, session.settings.curvature.blocks)
    vectors_KP = session.cached(
        "ritz vectors", lambda: stored_pairs(session).vectors.to(session.device)
    )
    spectrum = session.cached("spectrum", lambda: damped_spectrum(session))
    loss = next(iter(session.task.losses.values()))
    signs_TN = np.sign(stored_scores(session, arm.loss, "classic")[job_ranks(job)])

    def step(batch: Batch, rows: np.ndarray) -> None:
        weights = torch.from_numpy(signs_TN[:, rows].sum(0).astype(np.float32)).to(session.device)

        def weighted(of: nn.Module, rows_of: Batch) -> torch.Tensor:
            return loss(of, rows_of) * weights

        mean_P = sum_gradient(model, weighted, batch, layout) / len(rows)
        change_P = damped_inverse(mean_P, vectors_KP, spectrum)
        layout.scatter_(model, layout.gather(model) - arm.newton_lr * change_P)

    return step


def _metric(session: Session, model: nn.Module, ids: np.ndarray) -> np.ndarray:
    found = columns(session, model, ids)[session.task.metric]
    return found.astype(np.float64)


def non_targets_before(session: Session) -> np.ndarray:
    """The metric of `non_target_ids` before any fine-tuning."""
    return evaluation(session)[session.task.metric][non_target_ids(session)]
