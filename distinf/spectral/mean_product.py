"""The mean curvature over drawn training rows, times a vector, its samples shared by ranks."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.engine.session import draw, row_ranges
from distinf.errors import InputError
from distinf.microbatch import each_part, from_the_start, rows_at_once
from distinf.numerics.curvature import hessian_product, microbatch_rows, sharded_mean_product
from distinf.numerics.krylov import Matvec
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges, precision
from distinf.runtime import Lever
from distinf.runtime.activity import HERE, SHARD
from distinf.spectral import preconditioning
from distinf.spectral.session import Outline, Session
from distinf.tasks.task import Batch

MEMORY = "curvature.memory_mb"
LIVE = 3.0  # of the activations that a backward pass keeps, in a product


def summed_bytes(outline: Outline) -> float:
    """Cost.summed of one product."""
    settings = outline.settings.curvature
    times = settings.shards if settings.reduction == "ordered" else 2
    return times * outline.vector


def product_bytes(outline: Outline) -> tuple[float, Lever]:
    """What a product's passes hold: the budget, or a whole shard; and what that goes by."""
    settings, shapes = outline.settings.curvature, outline.shapes
    samples = min(settings.samples, outline.training_rows)
    row = LIVE * shapes.activation_bytes_per_sample
    held = min(settings.memory_mb * 2**20, -(-samples // settings.shards) * row)
    return held, Lever("curvature.memory_mb", held / 2**20, held, least=row / 2**20 + 1)


def mean_product(
    session: Session,
    collective: Collective,
    model: nn.Module,
    layout: Layout,
    ids: np.ndarray,
) -> Matvec:
    """v -> mean curvature over the training rows `ids`, times v; preconditioned where asked for."""
    settings = session.settings.curvature
    most = microbatch(session.outline)
    loss = next(iter(session.task.losses.values()))
    pieces = np.array_split(ids, settings.shards)

    def product(shard: int) -> Matvec:
        def exact(vector_P: Tensor) -> Tensor:
            rows = rows_at_once(MEMORY, min(most, len(pieces[shard])))
            batches = _Microbatches(session, pieces[shard], rows)
            return hessian_product(model, loss, batches, layout, settings.kind)(vector_P)

        def matvec(vector_P: Tensor) -> Tensor:
            with HERE.doing(SHARD), precision(settings.precision, session.device):
                return from_the_start(partial(exact, vector_P), MEMORY)

        return matvec

    products = {shard: product(shard) for shard in collective.owned(settings.shards)}
    mean = sharded_mean_product(
        products, count=len(ids), collective=collective, reduction=settings.reduction
    )
    return preconditioning.product(session, mean)


def microbatch(outline: Outline) -> int:
    """Rows of one microbatch; InputError if not one row fits the budget."""
    settings = outline.settings.curvature
    per_row = max(1, int(LIVE * outline.shapes.activation_bytes_per_sample))
    try:
        return microbatch_rows(per_row, int(settings.memory_mb * 2**20))
    except InputError as error:
        raise InputError(f"curvature.memory_mb: {error}") from None


def drawn_rows(session: Session, step: int | None = None) -> np.ndarray:
    """The training rows that a product is to be over, sorted: the run's, or a fresh step's."""
    purpose = "curvature rows" if step is None else f"curvature rows of step {step}"
    rows = session.outline.training_rows
    return np.sort(draw(session.seed, purpose, rows, session.settings.curvature.samples))


def product_rows(
    session: Session, collective: Collective, model: nn.Module, step: int | None = None
) -> np.ndarray:
    """Those of the drawn rows whose loss is a number: one forward pass, shared by the ranks."""
    settings, ids = session.settings.curvature, drawn_rows(session, step)
    loss = next(iter(session.task.losses.values()))
    pieces = np.array_split(ids, settings.shards)
    flags = [torch.zeros(0, dtype=torch.int32, device=session.device)]

    def finite_of(mine: np.ndarray) -> Tensor:
        with precision(settings.precision, session.device), float_edges(model):
            return torch.isfinite(loss(model, session.batch("train", mine))).int()

    for shard in collective.owned(settings.shards):
        made = each_part(pieces[shard], finite_of, MEMORY, microbatch(session.outline))
        flags += [part for _, part in made]
    finite = collective.all_gather(torch.cat(flags)).cpu().numpy().astype(bool)
    if not finite.any():
        raise InputError(f"curvature: the loss of none of {len(ids)} training rows is finite")
    return ids[finite]


class _Microbatches(Sequence[Batch]):
    """The microbatches of one shard, read when they are used: a product outweighs the reading."""

    def __init__(self, session: Session, ids: np.ndarray, rows: int):
        self._session = session
        self._ids = [ids[a:b] for a, b in row_ranges(len(ids), rows)]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        return self._session.batch("train", self._ids[index])
