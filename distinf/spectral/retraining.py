"""Training again on some of the rows, and what the targets' losses are then."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from distinf.collective import Collective
from distinf.digest import digest
from distinf.engine.recipe import Draws, Foretold, Trained
from distinf.engine.stage import Stage
from distinf.errors import InputError
from distinf.microbatch import each_part
from distinf.numerics.losses import dense_embeddings
from distinf.numerics.precision import float_edges, precision
from distinf.numerics.randomness import generator
from distinf.runtime import Cost, Unit, in_gradients
from distinf.spectral import baselines, curvature, factors, gradients, trajectory
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.scores import stored_scores, stored_variants
from distinf.spectral.session import Session
from distinf.spectral.solves import solves
from distinf.spectral.step import take_step
from distinf.spectral.train import starting_model, trained_model
from distinf.tasks.task import build_task, error_context

NAME = "retrain"
ALIGNED = 0.1  # share of rows up to which those left out leave a gap in the run's own batches


def foretold(session: Session) -> Iterator[Foretold]:
    """Evaluates.foretold: every loss and variant whose scores are stored, the gradients' plain
    products and cosines, which need no curvature, and what says the same of every target: own
    loss, gradient norm and self-influence."""
    outline = session.outline
    variants = [*stored_variants(outline)]
    variants += ["tracin"] if outline.settings.trajectory.checkpoints else []
    names = [(loss, variant) for loss in outline.losses for variant in variants]
    scores = {
        f"{loss}/{variant}": (loss, _of_every_row(session, loss, variant))
        for loss, variant in names
    }
    for loss in outline.losses:
        for name, found_QN in baselines.products(session, loss).items():
            scores[f"{loss}/{name}"] = (loss, _padded(session, found_QN))
    head, first = outline.settings.actions, outline.losses[0]
    ranking = f"{head.loss or first}/{head.variant if head.variant in variants else 'classic'}"
    flipped = getattr(session.task, "flipped", lambda: None)()
    wrong_N = None if flipped is None else np.asarray(flipped)[: outline.training_rows]
    queries = chosen_targets(session).ids
    for name, values_N in baselines.own_columns(session).items():
        same_QN = np.broadcast_to(-values_N, (len(queries), len(values_N)))
        scores[name.replace("_", " ")] = (head.loss or first, _padded(session, same_QN))
    costs = {name: _cost(session, name.rpartition("/")[2]) for name in scores}
    yield Foretold("", outline.training_rows, scores, ranking, queries, wrong_N, costs)


def _cost(session: Session, ranking: str) -> float:
    """Foretold.costs: of the stages that the ranking comes from, as planned; solves as they were
    taken."""
    outline = session.outline

    def of(units: Iterable[tuple[Unit, Cost]]) -> float:
        return in_gradients(cost for _, cost in units)

    one_pass = of(gradients.units(outline))
    if ranking == "own loss":
        return one_pass / 3  # a forward pass
    if ranking == "tracin":
        return of(trajectory.units(outline))
    if ranking in ("dot", "cosine", "gradient norm"):
        return one_pass
    if ranking == factors.EKFAC:
        return one_pass + of(factors.units(outline))
    solved = sum(record["summary"]["steps"] for record in solves(session).values())
    product = 3.0 * min(session.settings.curvature.samples, outline.training_rows)
    return one_pass + of(curvature.units(outline)) + solved * product


def _of_every_row(session: Session, loss: str, variant: str) -> np.ndarray:
    """fp64 [targets, N]; NaN where a training row is not scored."""
    return _padded(session, stored_scores(session, loss, variant))


def _padded(session: Session, found_QN: np.ndarray) -> np.ndarray:
    rest = session.outline.training_rows - found_QN.shape[1]
    return np.pad(found_QN, ((0, 0), (0, rest)), constant_values=np.nan)


def check(session: Session, draws: Draws) -> None:
    """InputError where nothing was trained, or the start is not one that can be drawn again."""
    if not session.settings.train.steps:
        raise InputError("evaluate: train.steps is 0, so there is no training to repeat")
    if draws.own_start and session.settings.train.checkpoint:
        raise InputError(
            "evaluate: train.checkpoint is where training starts; leave out --independent"
        )


def passed(session: Session, cell: str, kept: int) -> float:
    """Evaluates.passed."""
    settings = session.settings.train
    return settings.steps * settings.batch_size * kept / session.outline.training_rows


def losses(
    session: Session, cell: str, kept: np.ndarray, draws: Draws, tell: Callable[[float], None]
) -> Mapping[str, np.ndarray]:
    """Evaluates.losses: each loss [targets] of the model trained on the rows `kept`.

    As many epochs as the run took, by its own schedule. Rows left out of the run's own order
    (ALIGNED of them at most) leave a gap where they were, so that all else stays as it was: the
    sum of a batch's losses is over train.batch_size, whatever is missing. Other subsets go
    through an order of their own.
    """
    settings, whole = session.settings.train, session.outline.training_rows
    aligned = whole - len(kept) <= ALIGNED * whole
    steps = settings.steps if aligned else max(1, round(settings.steps * len(kept) / whole))
    schedule, collective = replace(settings, steps=steps), Collective()
    model = _other_start(session, draws.seed) if draws.own_start else starting_model(session)
    optimizer = session.task.optimizer(model.parameters(), settings.lr, settings.weight_decay)
    for step, pieces in enumerate(_batches(session, kept, draws.seed, steps, aligned)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        if pieces:
            take_step(session, model, optimizer, pieces, step, collective, draws.seed)
        tell((step + 1) / steps)
    return _target_losses(session, model.eval())


def trained(session: Session, cell: str) -> Trained:
    """Evaluates.trained."""
    ids = chosen_targets(session).ids
    return Trained(
        trained_model(session), session.settings.train.lr, session.task.losses,
        lambda rows: session.batch("train", rows),
        lambda queries: session.batch("evaluation", ids[queries]),
    )  # fmt: skip


def _other_start(session: Session, seed: int) -> nn.Module:
    """The model as a task of another seed starts it."""
    context, other = session.context, int(digest([session.seed, "start", seed])[:7], 16)
    with error_context("model()"):
        model = build_task(context["task"], context["task_settings"], other).model()
    dense_embeddings(model)
    return model.to(session.device)


def _batches(
    session: Session, kept: np.ndarray, seed: int, steps: int, aligned: bool
) -> Iterator[list[np.ndarray]]:
    """The rows of each shard of each step: epochs are permutations of all rows, less those that
    are left out."""
    shards = session.settings.train.shards
    size, count = session.settings.train.batch_size, session.outline.training_rows
    wanted = np.zeros(count, dtype=bool)
    wanted[kept] = True

    def epoch(number: int) -> np.ndarray:
        purpose = f"epoch {number}" + (f" of training {seed}" if seed else "")
        order = generator(session.seed, purpose).permutation(count)
        return order if aligned else order[wanted[order]]

    waiting, number = epoch(0), 0
    for _ in range(steps):
        while len(waiting) < size:
            number += 1
            waiting = np.concatenate([waiting, epoch(number)])
        rows, waiting = waiting[:size], waiting[size:]
        yield _filled([shard[wanted[shard]] for shard in np.split(rows, shards)], size // shards)


def _filled(pieces: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Shards of `size` rows less those left out: none is empty, and a single row that is left
    joins the shard before or after it, since of one row there are no batch statistics."""
    found: list[np.ndarray] = []
    for piece in (piece for piece in pieces if len(piece)):
        if found and size > 1 and 1 in (len(piece), len(found[-1])):
            found[-1] = np.concatenate([found[-1], piece])
        else:
            found.append(piece)
    return found


@torch.no_grad()
def _target_losses(session: Session, model: nn.Module) -> dict[str, np.ndarray]:
    ids, size = chosen_targets(session).ids, session.settings.evaluate.batch_size
    found: dict[str, list[np.ndarray]] = {name: [] for name in session.task.losses}

    def measured(mine: np.ndarray) -> dict[str, np.ndarray]:
        batch = session.batch("evaluation", mine)
        with precision(session.settings.train.precision, session.device), float_edges(model):
            losses = {name: loss(model, batch) for name, loss in session.task.losses.items()}
        return {name: values.double().cpu().numpy() for name, values in losses.items()}

    for _, values in each_part(ids, measured, "evaluate.batch_size", size):
        for name in found:
            found[name].append(values[name])
    return {name: np.concatenate(parts) for name, parts in found.items()}


STAGE = Stage(NAME, "training on subsets", needs=("train", "targets"))
