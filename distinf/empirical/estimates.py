"""Stage estimates: one unit, what estimators say of every training row and evaluation row, to be
held against what was measured.

Each is [N, E], > 0 where training on the row is to lower the evaluation row's loss, and of the rows
of a matrix and draw together: training gradients of other matrices play no part in it. Estimators
of gradients stand once for each of the spaces of parameters, named estimator@space.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from distinf.empirical import base, tuning
from distinf.empirical.base import BATCH, based_model, evaluation, measuring, tuning_loss
from distinf.empirical.session import Outline, Session
from distinf.empirical.settings import OF_GRADIENTS, StageSettings
from distinf.empirical.task import (
    EVALUATION,
    TRAIN,
    Embedded,
    Place,
    Prompted,
    Worded,
    places,
    relations,
)  # fmt: skip
from distinf.engine.session import row_ranges, to_device
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.microbatch import from_the_start, rows_at_once
from distinf.numerics.batches import Batch
from distinf.numerics.capture import per_sample_gradients
from distinf.numerics.curvature import hessian_product
from distinf.numerics.ekfac import ekfac
from distinf.numerics.estimators.exact import MOST
from distinf.numerics.influence import influence
from distinf.numerics.parameters import Layout
from distinf.numerics.randomness import generator
from distinf.numerics.text_baselines import Words, bm25, of_norm_1
from distinf.numerics.tuning import first_order
from distinf.runtime import Cost, Unit
from distinf.runtime.ledger import Record
from distinf.tasks.factors import check_sampling, sampled_loss
from distinf.tasks.task import error_context

NAME = "estimates"
AT = "@"  # between an estimator and its space
SPLIT = (TRAIN, EVALUATION)
Gradients = Mapping[str, Tensor]
Found = dict[str, np.ndarray]


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    if not outline.settings.estimates.estimators:
        return []
    shapes, rows = outline.shapes, sum(outline.rows.values())
    given = _spaces(outline.settings)
    spaces = len(given)
    whole = "all" in given.values() and set(outline.settings.estimates.estimators) & {*OF_GRADIENTS}
    cost = Cost(
        flops=3.0 * shapes.flops_per_sample * rows * spaces,
        bytes=8.0 * outline.rows[TRAIN] * outline.rows[EVALUATION],
        memory=shapes.parameters * (4.0 + (8.0 * rows if whole else 0.0)) + shapes.kept_bytes,
        device=base.peak_bytes(outline),
        staged=4.0 * shapes.parameters,
        work={"forward": 3.0 * rows * spaces},
        loaded=outline.loaded,
    )
    return [(Unit(NAME, outline.keys[NAME]), cost)]


def check(session: Session, model: nn.Module) -> None:
    """InputError for estimators that the task has nothing for, and spaces of no parameters."""
    settings, task = session.settings.estimates, session.task
    needed = {"bm25": Worded, "length": Worded, "embeddings": Embedded, "prompt": Prompted}
    for name in settings.estimators:
        if name in needed and not isinstance(task, needed[name]):
            has = {Worded: "words(split)", Embedded: "embeddings(model, batch)"}
            raise InputError(
                f"estimates.estimators: {name} needs a task with "
                f"{has.get(needed[name], 'prompted(model, row, ids)')}; see "
                "distinf/empirical/task.py, or leave it out"
            )
    if "ekfac" in settings.estimators:
        check_sampling(task)
    if set(settings.estimators) & set(OF_GRADIENTS):
        for space, blocks in _spaces(session.settings).items():
            _refuse_embedding(model, space, Layout.of(model, blocks))


def _refuse_embedding(model: nn.Module, space: str, layout: Layout) -> None:
    for name in layout.names:
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding):
            raise InputError(
                f"estimates.spaces: {space} holds the embedding {name}, whose gradients of all "
                "rows are too large; give spaces without it, such as one layer"
            )


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays by estimator: fp64 [N, E], NaN of pairs of different matrices or draws, and where an
    exact solve is not to be had (too many parameters, or not positive definite)."""
    model = session.cached("base", lambda: based_model(session))
    rows, columns = (places(relations(session.task, split)) for split in SPLIT)
    every = list(dict.fromkeys(rows))
    arrays: Found = {}
    with measuring(session, model):
        for done, place in enumerate(every):
            session.tell(unit, done / len(every))
            ids = [np.flatnonzero([at == place for at in of]) for of in (rows, columns)]
            for name, values in _of_place(session, model, place, ids):
                whole = arrays.setdefault(name, np.full((len(rows), len(columns)), np.nan))
                whole[np.ix_(*ids)] = values
    return session.commit(unit, attempt, arrays, may_hold_nan=[*arrays])


def estimated(session: Session) -> Found:
    """What is stored; nothing where no estimator was asked for."""
    wanted = STAGE.wanted_units(session)
    return session.arrays(wanted[0]) if wanted else {}


def _spaces(settings: StageSettings) -> Mapping[str, str]:
    return settings.estimates.spaces or {"tuned": settings.tune.blocks}


def _of_place(
    session: Session, model: nn.Module, place: Place, ids: Sequence[np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each estimate [n, e] of the rows and evaluation rows `ids`, by name."""
    chosen = session.settings.estimates.estimators
    for name in chosen:
        if name not in OF_GRADIENTS:
            found = partial(_without_gradients, session, model, place, ids, name)
            yield name, from_the_start(found, BATCH)
    if not set(chosen) & set(OF_GRADIENTS):
        return
    for space, blocks in _spaces(session.settings).items():
        with _only(model, Layout.of(model, blocks)):
            each = [partial(_gradients, session, model, *of, blocks) for of in zip(SPLIT, ids)]
            grads = [from_the_start(made, BATCH) for made in each]
            for name in chosen:
                if name in OF_GRADIENTS:
                    scores = partial(_by_gradients, session, model, ids[0], grads, blocks, name)
                    found_EN = from_the_start(scores, BATCH)
                    yield f"{name}{AT}{space}", found_EN.T.double().cpu().numpy()


@contextmanager
def _only(model: nn.Module, layout: Layout) -> Iterator[None]:
    """No other parameter has a gradient: none is computed."""
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in layout.names)
    try:
        yield
    finally:
        for parameter in tuned:
            parameter.requires_grad_()


def _without_gradients(
    session: Session, model: nn.Module, place: Place, ids: Sequence[np.ndarray], name: str
) -> np.ndarray:
    shape = tuple(map(len, ids))
    if name == "random":
        return generator(session.seed, f"random estimate {place}").random(shape)
    if name == "loss":
        losses = [tuning_loss(session)(model, batch) for batch in _batches(session, TRAIN, ids[0])]
        return np.broadcast_to(torch.cat(losses).detach().double().cpu()[:, None], shape)
    if name in ("length", "bm25"):
        words = [_words(session, *of) for of in zip(SPLIT, ids)]
        if name == "length":
            return np.broadcast_to(np.diff(words[0][1])[:, None].astype(float), shape)
        return bm25(words[0], words[1], 1 + max(int(ids.max(initial=0)) for ids, _ in words)).T
    if name == "embeddings":
        units = [of_norm_1(_embedded(session, model, *of)) for of in zip(SPLIT, ids)]
        return (units[0] @ units[1].T).numpy()
    return np.stack([_by_step(session, model, place, int(row), name) for row in ids[0]])


def _by_step(session: Session, model: nn.Module, place: Place, row: int, name: str) -> np.ndarray:
    """[e]: of the row's prompt, or to first order of the optimizer's first step on it."""
    losses, ids = evaluation(session, model, place)
    if name == "prompt":
        _, found = tuning.after_prompt(session, model, row, losses, ids)
        values = found["without"] - found["losses"]
    else:
        made = tuning.tuned_on(session, model, [row])
        values = first_order(losses, tuning.start_of(session, model), made.parameters)
    return values.double().cpu().numpy()


def _by_gradients(
    session: Session,
    model: nn.Module,
    rows: np.ndarray,
    grads: Sequence[Gradients],
    blocks: str,
    name: str,
) -> Tensor:
    """[e, n]: blocks' scores added up, or of all blocks together."""
    if name == "exact":
        return _exact(session, model, rows, grads, blocks)
    if name in ("tracin", "cosine", "fisher-joint"):
        flat = [torch.cat([*each.values()], 1) for each in grads]
        return influence(flat[0], flat[1], estimator=name.removesuffix("-joint"))
    curvature = None
    if name == "ekfac":
        batches = list(_batches(session, TRAIN, rows, numbered=True))
        curvature = ekfac(model, partial(_sampled, session), batches, blocks)
    found = influence(grads[0], grads[1], estimator=name, curvature=curvature)
    return torch.stack([*found.values()]).sum(0)


def _exact(
    session: Session, model: nn.Module, rows: np.ndarray, grads: Sequence[Gradients], blocks: str
) -> Tensor:
    """By the rows' mean Hessian; NaN where it can't be solved for."""
    layout = Layout.of(model, blocks)
    nothing = torch.full((len(next(iter(grads[1].values()))), len(rows)), torch.nan)
    if layout.size > MOST:
        return nothing
    total = hessian_product(model, tuning_loss(session), [*_batches(session, TRAIN, rows)], layout)
    try:
        found = influence(
            grads[0], grads[1], estimator="exact", curvature=lambda v: total(v) / len(rows)
        )
    except InputError:  # not positive definite
        return nothing
    return found["all"]


def _sampled(session: Session, model: nn.Module, batch: Batch) -> Tensor:
    rows = batch["numbers"].cpu().numpy()
    losses: Tensor = sampled_loss(session.task, rows, session.seed)(model, batch["rows"])
    return losses


def _gradients(
    session: Session, model: nn.Module, split: str, ids: np.ndarray, blocks: str
) -> Gradients:
    parts: dict[str, list[Tensor]] = {}
    for batch in _batches(session, split, ids):
        found = per_sample_gradients(model, tuning_loss(session), batch, blocks, progress=False)
        for name, rows in found.items():
            assert isinstance(rows, Tensor), "embeddings are refused"
            parts.setdefault(name, []).append(rows.detach().flatten(1))
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _batches(
    session: Session, split: str, ids: np.ndarray, numbered: bool = False
) -> Iterator[Batch]:
    size = rows_at_once(BATCH, session.settings.tune.evaluation_batch)
    for start, stop in row_ranges(len(ids), size):
        batch = to_device(session.task.batch(split, ids[start:stop]), session.device)
        numbers = torch.from_numpy(ids[start:stop])
        yield {"rows": batch, "numbers": numbers} if numbered else batch


def _embedded(session: Session, model: nn.Module, split: str, ids: np.ndarray) -> Tensor:
    with error_context("embeddings()"), torch.no_grad():
        parts = [session.task.embeddings(model, b) for b in _batches(session, split, ids)]
    return torch.cat(parts).flatten(1).double().cpu()


def _words(session: Session, split: str, ids: np.ndarray) -> Words:
    with error_context(f"words('{split}')"):
        numbers, begins = map(np.asarray, session.task.words(split))
    mine = [numbers[begins[row] : begins[row + 1]] for row in ids]
    return np.concatenate(mine), np.cumsum([0, *map(len, mine)])


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "estimates of influence", needs=(base.NAME,), units=units, run=run,
    reads=("estimates", "tune", "-tune.rows_per_unit", "-tune.least_taken", "-tune.leave_one_out",
           "-tune.first_order", "-tune.steps", "-tune.sweep"),
)  # fmt: skip
