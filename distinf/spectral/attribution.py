"""Stage attribution: which elements of a training row drive its influence on a target.

For the rows that the headline score ranks first and last, each element's share of the classic
score x_q . g_i with x_q = (H + damping)^-1 g_q: see numerics/elements.py. A refined x_q is used
where its solve converged, and the query's gradient is of the headline's loss (cross-loss).
Sign: a share > 0 means that training on the element helps the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import row_ranges
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.microbatch import each_part
from distinf.numerics.elements import element_shares
from distinf.numerics.variants import damped_inverse
from distinf.runtime import Cost, Lever, Unit
from distinf.runtime.ledger import Record
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.evaluate import chosen_targets, evaluated
from distinf.spectral.gradients import scored_rows
from distinf.spectral.preconditioning import rooted
from distinf.spectral.queries import query_gradients
from distinf.spectral.scores import stored_scores
from distinf.spectral.session import Outline, Session
from distinf.spectral.solves import converged_solutions
from distinf.spectral.spectra import damped_spectrum
from distinf.spectral.train import trained_layers
from distinf.tasks.task import ElementTask, GeneratingTask, error_context

NAME = "attribution"
PASSES = 7.0  # forward passes a row: five for the derivative (measured 5.2), two for the check
TOLERANCE = 1e-3  # of the parts' sum against the loss, relative: float32 sums of many elements


@dataclass(frozen=True)
class Attribution:
    """What each element of a training sample adds to its classic score for a target.

    parts_SF, over the two `axes`: sums to `score`; NaN where the sample has no loss.
    """

    target: int
    id: int
    rank: int  # 1, 2, … most helpful; -1, -2, … most harmful
    score: float
    parts_SF: np.ndarray
    axes: tuple[str, str] = ("row", "column")


def target_units(outline: Outline, count: int) -> list[Unit]:
    """One unit per target, by rank, of the first `count` targets."""
    settings = outline.settings.attribution
    wanted = min(settings.targets, count) if settings.rows else 0
    return [Unit(NAME, outline.keys[NAME], job={"target": rank}) for rank in range(wanted)]


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """As many as the targets asked for; none where no rows are asked for."""
    settings, shapes = outline.settings, outline.shapes
    rows = 2 * settings.attribution.rows
    passed = 2 * shapes.activation_bytes_per_sample * settings.gradients.chunk
    cost = Cost(
        flops=PASSES * shapes.flops_per_sample * rows,
        bytes=rows * shapes.row_bytes.get("train", 0.0),
        memory={"directions": outline.vector * settings.curvature.keep},
        device={
            "weights": shapes.model_bytes,
            "activations": passed,
            "directions": 4 * outline.vector,
        },
        staged=shapes.model_bytes,
        levers=(Lever("gradients.chunk", settings.gradients.chunk, passed),),
        work={"forward": PASSES * rows},
        loaded={**outline.loaded, "directions": outline.vector * settings.curvature.keep},
    )
    return [(unit, cost) for unit in target_units(outline, settings.targets.count)]


def check(session: Session) -> None:
    """InputError for what rules attribution out, before anything is computed."""
    settings, outline = session.settings.attribution, session.outline
    if not settings.rows:
        return
    if not isinstance(session.task, ElementTask):
        raise InputError(
            "attribution.rows: this task has no parts(model, batch) -> [N, ...], the elements' "
            "shares of its training loss; add it, or set attribution.rows to 0"
        )
    if 2 * settings.rows > scored_rows(outline):
        raise InputError(
            f"attribution.rows: {settings.rows} most helpful and as many most harmful rows are "
            f"more than the {scored_rows(outline)} rows that are scored; lower it"
        )
    if not isinstance(session.task, GeneratingTask):
        with error_context("parts() on two rows of 'train'"):
            _refuse_other_sum(session, np.arange(2), session.fresh_model().eval())


def is_done(session: Session) -> bool:
    if not session.settings.attribution.rows:
        return True
    if not evaluated(session):
        return False
    wanted = chosen_units(session)
    return len(session.done(wanted)) == len(wanted)


def chosen_units(session: Session) -> list[Unit]:
    """The units of targets that exist: there may be fewer than were asked for."""
    if not session.settings.attribution.rows:
        return []
    return target_units(session.outline, len(chosen_targets(session).ids))


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: ids and ranks [R], their classic scores [R], parts [R, A, B] that sum to them."""
    rank = unit.job["target"]
    model, layout = trained_layers(session)
    direction_P = _direction(session, rank)
    ids, ranks = extreme_rows(session, rank)
    task = session.task
    assert isinstance(task, ElementTask)

    def shares(mine: np.ndarray) -> np.ndarray:
        batch = session.batch("train", mine)
        return element_shares(model, task.parts, batch, layout, direction_P).cpu().numpy()

    found: list[np.ndarray] = []
    for a, b in row_ranges(len(ids), session.settings.gradients.chunk):
        _refuse_other_sum(session, ids[a:b], model)
        found += [part for _, part in each_part(ids[a:b], shares, "gradients.chunk")]
    parts = np.concatenate(found)
    classic_N = stored_scores(session, session.settings.actions.loss, "classic")[rank]
    arrays = {"ids": ids, "ranks": ranks, "scores": classic_N[ids]}
    arrays["parts"] = parts.reshape(len(ids), -1, parts.shape[-1])
    return session.commit(unit, attempt, arrays, may_hold_nan=["parts"])


def extreme_rows(session: Session, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the highest scores, then of the lowest, and their ranks 1, 2, … and -1, -2, …"""
    settings = session.settings.actions
    scores_N = stored_scores(session, settings.loss, settings.variant)[rank]
    usable = np.flatnonzero(np.isfinite(scores_N))
    order = usable[np.argsort(-scores_N[usable], kind="stable")]
    count = min(session.settings.attribution.rows, len(order) // 2)
    places = np.arange(1, count + 1)
    return np.concatenate([order[:count], order[::-1][:count]]), np.concatenate([places, -places])


def _direction(session: Session, rank: int) -> Tensor:
    """x_q [P] of the target: the refined solve where it converged, else from the Ritz pairs."""
    loss = session.settings.actions.loss or session.outline.losses[0]
    solved = converged_solutions(session).get((rank, loss))
    if solved is not None:
        return torch.from_numpy(solved).to(session.device)
    gradient_P = rooted(session, query_gradients(session)[loss][rank])
    vectors_KP = stored_pairs(session).vectors
    solved_P = damped_inverse(gradient_P, vectors_KP, damped_spectrum(session))
    return rooted(session, solved_P).to(session.device)


def _refuse_other_sum(session: Session, ids: np.ndarray, model: torch.nn.Module) -> None:
    """InputError unless the task's parts sum to its training loss, row by row."""
    task, batch = session.task, session.batch("train", ids)
    assert isinstance(task, ElementTask)
    name, loss = next(iter(task.losses.items()))
    parts, losses_N = task.parts(model, batch).detach(), loss(model, batch).detach().double()
    if parts.ndim not in (2, 3) or len(parts) != len(ids):
        raise InputError(
            f"task: parts() has shape {tuple(parts.shape)} for {len(ids)} rows; return [N, A, B] "
            "or [N, B]"
        )
    sums_N = parts.double().nansum(tuple(range(1, parts.ndim)))
    scale_N = parts.double().abs().nansum(tuple(range(1, parts.ndim)))
    off_N = ~((sums_N - losses_N).abs() <= TOLERANCE * scale_N)
    if off_N.any():
        place = int(torch.nonzero(off_N)[0])
        raise InputError(
            f"task: parts() of training row {ids[place]} sum to {sums_N[place]:.6g}, but its loss "
            f"'{name}' is {losses_N[place]:.6g}; they must be the same"
        )


def attributions(session: Session) -> list[Attribution]:
    """Per target and row, in rank order: the elements' shares of the row's classic score."""
    if not session.settings.attribution.rows:
        return []
    ids = chosen_targets(session).ids
    axes = getattr(session.task, "part_axes", ("row", "column"))
    found = []
    for unit in chosen_units(session):
        stored = session.arrays(unit)
        for row, rank, score, parts in zip(
            *(stored[name] for name in ("ids", "ranks", "scores", "parts")), strict=True
        ):
            target = int(ids[unit.job["target"]])
            found.append(Attribution(target, int(row), int(rank), float(score), parts, axes))
    return found


run = pooled(f"{__name__}:body", NAME, wanted=chosen_units)
STAGE = Stage(
    NAME, "what drives a row", needs=("scores", "tracin"),
    reads=("attribution.rows", "gradients.chunk", "actions.loss", "actions.variant"),
    uncounted=("attribution.targets",),
    units=units, run=run, done=is_done,
)  # fmt: skip
