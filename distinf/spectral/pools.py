"""The rows that a fine-tuning job draws from, and in which order it takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distinf.errors import InputError
from distinf.numerics.randomness import generator
from distinf.runtime import Unit
from distinf.spectral.arms import ALL_TARGETS, arm_of
from distinf.spectral.evaluate import chosen_targets, evaluation
from distinf.spectral.gradients import scored_rows
from distinf.spectral.scores import stored_scores
from distinf.spectral.session import Session, split_units
from distinf.store import Rows
from distinf.tasks.task import GeneratingTask, StoredTask, Task


@dataclass(frozen=True)
class Pool:
    """Rows to draw from: ids [M], most extreme first, and the scores [M] that say so.

    pairs: bool [T, M], for which of the job's targets a row was chosen. usable: ids of all rows
    that have a finite score for each of them.
    """

    rows: np.ndarray
    scores: np.ndarray
    pairs: np.ndarray
    usable: np.ndarray


def job_ranks(job: Unit) -> list[int]:
    """Which targets, by rank, a job acts on and measures."""
    rank = job.job["target"]
    return list(range(job.job["among"])) if rank == ALL_TARGETS else [rank]


def pool_rows(session: Session, job: Unit) -> Pool:
    """What a job draws from: extreme scores, the union of several targets', rows at random of the
    same classes, or any row."""
    arm, ranks = arm_of(job), job_ranks(job)
    scores_TN = stored_scores(session, arm.loss, arm.variant or "classic")[ranks]
    usable = np.flatnonzero(np.isfinite(scores_TN).all(0))
    if len(usable) < arm.pool:
        raise InputError(
            f"actions.pool: only {len(usable)} rows have a finite {arm.variant} score, fewer "
            f"than {arm.pool}; see the report's warnings, or lower actions.pool"
        )
    if arm.selection == "random":
        pairs_TN = np.ones((len(ranks), len(usable)), bool)
        return Pool(usable, np.ones(len(usable)), pairs_TN, usable)
    if arm.selection == "nearest":
        scores_TN = nearness(session)[ranks]
    signed_TN = scores_TN[:, usable] * (-1.0 if arm.selection == "harmful" else 1.0)
    # Targets count alike: each one's scores in units of their root mean square.
    size_T = np.sqrt(np.mean(signed_TN**2, axis=1))
    joint_N = (signed_TN / np.where(size_T > 0, size_T, 1.0)[:, None]).sum(0)
    if arm.selection == "group":
        chosen = np.argsort(-joint_N, kind="stable")[: min(arm.pool * len(ranks), len(usable))]
        pairs_TN = np.ones(signed_TN.shape, bool)
    else:
        tops = np.argsort(-signed_TN, axis=1, kind="stable")[:, : arm.pool]
        pairs_TN = np.zeros(signed_TN.shape, bool)
        np.put_along_axis(pairs_TN, tops, True, axis=1)
        union = np.unique(tops)
        chosen = union[np.argsort(-joint_N[union], kind="stable")]
    if arm.selection == "matched":
        rows = _matched(session, job, usable, usable[chosen])
        return Pool(rows, np.ones(len(rows)), np.ones((len(ranks), len(rows)), bool), usable)
    return Pool(usable[chosen], joint_N[chosen], pairs_TN[:, chosen], usable)


def _matched(session: Session, job: Unit, usable: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Rows at random among the usable ones, as many of each class (or set of them) as in `like`."""
    found = classes_of_rows(session)
    if not found:
        raise InputError(
            "actions.selections: matched goes by classes of stored rows, and these have none; "
            "leave it out"
        )
    every = np.stack([places_N for _, places_N in found.values()], 1)
    classes_N = np.unique(every, axis=0, return_inverse=True)[1].reshape(-1)
    random = generator(session.seed, f"matched {job.job['target']} {job.job['seed']}")
    counts = zip(*np.unique(classes_N[like], return_counts=True), strict=True)
    parts = [
        random.choice(usable[classes_N[usable] == each], size=many, replace=False)
        for each, many in counts
    ]
    return np.concatenate(parts)


def nearness(session: Session) -> np.ndarray:
    """fp64 [targets, rows]: minus the squared distance of a row's conditions from the target's,
    each condition in units of its standard deviation over the training rows."""
    return session.cached("nearness", lambda: _nearness(session))


def _nearness(session: Session) -> np.ndarray:
    count, ids, total_TN = scored_rows(session.outline), chosen_targets(session).ids, np.zeros(1)
    for name, train_N in stored_rows(session).columns(near_by(session.task)).items():
        apart_TN = evaluation(session)[name][ids][:, None] - train_N[None, :count].astype(float)
        total_TN = total_TN - np.square(apart_TN / (train_N.astype(float).std() or 1.0))
    return total_TN


def stored_rows(session: Session) -> Rows:
    """The training rows of a task that generates or has stored them."""
    made = split_units(session.outline, "train")
    return session.rows(made) if made else session.task.stored("train")  # type: ignore[attr-defined]


def near_by(task: Task) -> list[str]:
    """The conditions by which rows are near each other: those that are numbers, no classes."""
    labels = getattr(task, "labels", {})
    return [name for name in getattr(task, "conditions", ()) if name not in labels]


def classes_of_rows(session: Session) -> dict[str, tuple[Sequence[str], np.ndarray]]:
    """By label of the task (a channel model, say): its names, and each scored row's place
    among them, int64 [N]; {} where none is stored."""
    task, labels = session.task, getattr(session.task, "labels", {})
    if not labels or not isinstance(task, GeneratingTask | StoredTask):
        return {}
    rows, count = stored_rows(session), scored_rows(session.outline)
    found = rows.columns([*(labels.keys() & rows.take(np.arange(1)).keys())])
    return {name: (labels[name], values[:count].astype(np.int64)) for name, values in found.items()}


def job_rows(session: Session, job: Unit) -> np.ndarray:
    """[steps, batch_size] rows: the pool in the arm's order, and again when it is used up."""
    arm = arm_of(job)
    pool = pool_rows(session, job)
    names = (str(job.job["target"]), arm.selection, str(job.job["seed"]))
    random = generator(session.seed, " ".join(["fine-tune", *names]))
    needed = arm.steps * arm.batch_size
    rounds = [_round(pool, arm.order, random) for _ in range(-(-needed // len(pool.rows)))]
    rows = np.concatenate(rounds)[:needed].reshape(arm.steps, arm.batch_size)
    kept = round(arm.retain * arm.batch_size)
    if kept:
        rows[:, -kept:] = random.choice(pool.usable, size=(arm.steps, kept))
    return rows


def _round(pool: Pool, order: str, random: np.random.Generator) -> np.ndarray:
    """The pool's rows once: at random, by rank, or by score at random (Efraimidis, Spirakis)."""
    if order == "rank":
        return pool.rows
    if order == "random":
        return random.permutation(pool.rows)
    weights = np.maximum(np.abs(pool.scores), np.finfo(np.float64).tiny)
    return pool.rows[np.argsort(random.exponential(size=len(weights)) / weights, kind="stable")]


def signs(session: Session, job: Unit) -> np.ndarray:
    """fp32 [scored rows]: each row's signs summed over the pairs (target, row) of Eq. 16."""
    arm = arm_of(job)
    signs_TN = np.sign(stored_scores(session, arm.loss, "classic")[job_ranks(job)])
    if arm.newton_pairs == "chosen":
        pool, paired_TN = pool_rows(session, job), np.zeros(signs_TN.shape, bool)
        paired_TN[:, pool.rows] = pool.pairs
        signs_TN = np.where(paired_TN, signs_TN, 0.0)
    return signs_TN.sum(0).astype(np.float32)
