"""Stage gradients: every sample's gradient in every block, once, stored as it is.

Per unit of rows: one array per slab, the embedding's rows of each sample, their losses, which
rows are finite, and of training rows the probabilities of classes where a task tells them. A row
whose loss or gradient is not finite is stored as zeros, marked, and scored as nothing.

Shape legend: n rows of a unit, P entries of a slab.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.engine.session import done_for_all
from distinf.engine.stage import Names, Stage, Values, pooled
from distinf.errors import InputError
from distinf.gram.blocks import SPARSE
from distinf.gram.said import predicted_classes, right_queries
from distinf.gram.session import QUERY, TRAIN, Cell, Outline, Session, layout_of
from distinf.gram.settings import GradientSettings
from distinf.gram.spread import (
    batch_setting,
    each_row_batch,
    gang_size,
    gathered,
    gathered_words,
    in_parts,
    moved,
    row_batches,
    saving,
    shared,
)
from distinf.gram.stored_gradients import NAME, SAYS_RIGHT, WORDS, split_units
from distinf.gram.stored_gradients import as_tensor as as_tensor  # by its former place
from distinf.gram.train import trained_model
from distinf.numerics.batches import rows as rows_in
from distinf.numerics.capture import Method, Methods, block_gradients, flat_gradients
from distinf.numerics.losses import noting
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges, precision
from distinf.numerics.projection import TwoSided
from distinf.numerics.sparse import SparseRows
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.runtime.units import Parts, by_part
from distinf.tasks.methods import Pass, agree, in_a_run, rehearsed_method
from distinf.tasks.task import Batch, PerSampleLoss, Task

PREDICTED = "probabilities"
WORDS_PER_ROW = 64.0  # distinct tokens of a row, for what the embedding's rows will take


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Row ranges of each cell's training and query rows."""
    return [
        (unit, _cost(outline, cell, unit.stop - unit.start))
        for cell in outline.cells.values()
        for split in (QUERY, TRAIN)
        if split in cell.rows
        for unit in split_units(outline.settings, cell, split)
    ]


def rehearsed(session: Session, task: Task, model: nn.Module, methods: Methods) -> Method:
    """The first of `methods` that agrees with one row at a time on the cell's rows."""
    settings = session.settings.gradients
    name = next(iter(task.losses))
    passes = [Pass(name, split, settings.rows_per_batch) for split in (TRAIN, QUERY)]
    if settings.checkpointing:  # which vmap does not pass
        methods = tuple(method for method in methods if method != "vmap")
    layout = layout_of(model, settings)
    return rehearsed_method(task, model, layout, settings, passes, methods)


def _cost(outline: Outline, cell: Cell, rows: int) -> Cost:
    settings = outline.settings.gradients
    stored = sum(block.width for block in cell.blocks.dense)
    per_row = sum(row_bytes(settings, cell, slab) for slab in cell.blocks.slabs)
    together = 4.0 * stored * rows + 2 * per_row * rows  # of a unit: in float32, stored, read back
    unit = Lever("gradients.rows_per_unit", rows, together, where="host")
    saved, device = saving(settings, cell)
    cost = pass_cost(
        outline, cell, rows, stored=per_row * rows, held={"gradients": together},
        on_device={"weights": -saved}, levers=(unit, *([device] if device else [])),
    )  # fmt: skip
    return replace(cost, summed=moved(settings, cell, rows / at_once(settings, cell, rows)))


def row_bytes(settings: GradientSettings, cell: Cell, slab: int) -> float:
    """What is stored of a row's gradients in a slab."""
    width = cell.blocks.width(slab)
    if slab == SPARSE:
        return (4.0 * width + 4.0) * WORDS_PER_ROW
    return (2.0 if settings.store == "bfloat16" else 4.0) * width


def pass_cost(
    outline: Outline,
    cell: Cell,
    rows: int,
    *,
    stored: float,
    held: Parts,
    on_device: Parts = {},  # noqa: B006 (not changed)
    flops: float = 0.0,
    levers: Sequence[Lever] = (),
) -> Cost:
    """Of per-sample gradients of `rows` rows, and what is made of them beside."""
    settings, shapes = outline.settings.gradients, cell.shapes
    wide = 4.0 * sum(block.entries for block in cell.blocks.dense)
    value = together = at_once(settings, cell, rows)
    name, least = "rows", 1.0
    if shapes.tokens_per_row:
        name, value, least = "tokens", together * shapes.tokens_per_row, shapes.tokens_per_row
    again = settings.checkpointing
    kept, captured = together * shapes.activations(again), together * wide
    device = {"weights": shapes.model_bytes, "activations": kept, "gradients": captured}
    return Cost(
        flops=(2.0 + again) * shapes.flops_per_sample * rows + flops,
        bytes=stored,
        memory=held,
        device=by_part(device, on_device),
        staged=shapes.model_bytes,
        levers=(Lever(f"gradients.{name}_per_batch", value, kept + captured, least), *levers),
        work={"gradient": rows},
        loaded=cell.loaded,
    )


def at_once(settings: GradientSettings, cell: Cell, rows: int) -> float:
    """Rows of one pass."""
    tokens = cell.shapes.tokens_per_row
    if tokens:
        return min(float(rows), max(settings.tokens_per_batch / tokens, 1.0))
    return float(min(rows, settings.rows_per_batch))


def body(session: Session, unit: Unit, attempt: str) -> Record:
    arrays, summary = _computed(session, unit)
    return session.commit(unit, attempt, arrays, summary=summary, may_hold_nan=["loss", PREDICTED])


def gang(session: Session, collective: Collective, attempt: str) -> None:
    """As `body`, of each unit that is this gang's: rank 0 commits it."""
    share = collective.share
    wanted = [u for u, _ in units(session.outline) if share is None or u.id in share]
    with shared(session, collective):
        for unit, is_done in zip(wanted, done_for_all(session, collective, wanted), strict=True):
            if is_done:
                continue
            if collective.size > 1:
                _agree_first(session, unit)
            arrays, summary = _computed(session, unit)
            if collective.rank == 0:
                summary["ranks"] = collective.size
                holes = ["loss", PREDICTED]
                session.commit(unit, attempt, arrays, summary=summary, may_hold_nan=holes)


def _computed(session: Session, unit: Unit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A unit's arrays and summary, by all ranks that share the model."""
    name, split = unit.job["cell"], unit.job["split"]
    cell, settings = session.cell(name), session.settings.gradients
    rows = unit.stop - unit.start
    dense = {s: torch.zeros(rows, cell.blocks.width(s)) for s in cell.blocks.slabs if s != SPARSE}
    words: list[SparseRows] = []
    order: list[int] = []
    finite, losses = torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.float64)
    for places, (found, losses_m) in each_row_batch(
        session, name, split, unit, lambda p: _gradients(session, name, split, unit.start + p)
    ):
        losses[places] = losses_m
        finite[places] = keep = _finite(found) & torch.isfinite(losses_m)
        for block in cell.blocks.every:
            grads = found[block.name]
            if isinstance(grads, SparseRows):
                words.append(_kept(grads, keep))
            else:
                safe = torch.where(keep[:, None], grads.flatten(1).float(), 0.0)
                dense[block.slab][torch.from_numpy(places), block.span] = safe
        order += places.tolist()
    arrays = {
        f"dense.{slab:03d}": as_stored(gathered(session, order, grads), settings.store)
        for slab, grads in dense.items()
    }
    if embedding := cell.blocks.embedding:
        none = torch.zeros(0, dtype=torch.int64)
        no_rows = torch.zeros(0, embedding.width)
        start = SparseRows(none.new_zeros(1), none, no_rows, embedding.entries // embedding.width)
        every = gathered_words(session, order, SparseRows.cat([start, *words]))
        parts = (every.offsets, every.ids.to(torch.int32), every.rows.float())
        arrays |= {key: part.numpy() for key, part in zip(WORDS, parts, strict=True)}
    arrays["finite"] = gathered(session, order, finite.byte()).bool().numpy()
    arrays["loss"] = gathered(session, order, losses).numpy()
    quarantined = (unit.start + np.flatnonzero(~arrays["finite"])).tolist()
    summary: dict[str, Any] = {"quarantined": quarantined}
    tells = split == TRAIN and not session.of_candidates
    if tells and (predicted := predicted_classes(session, name, unit)) is not None:
        arrays[PREDICTED], summary[PREDICTED] = predicted, predicted.shape[1]
    if split == QUERY:
        told = right_queries(session, name, unit)
        arrays["correct"] = np.ones(rows, dtype=bool) if told is None else told
        summary[SAYS_RIGHT] = told is not None
    return arrays, summary


def _gradients(
    session: Session, name: str, split: str, ids: np.ndarray
) -> tuple[dict[str, Tensor | SparseRows], Tensor]:
    """{block: [m, width] or sparse rows} and losses fp64 [m] of the rows `ids`, on the CPU."""
    settings = session.settings.gradients
    model, batch = trained_model(session, name), session.batch(name, split, ids)
    layout = layout_of(model, settings)
    loss = next(iter(session.task(name).losses.values()))
    losses: list[Tensor] = []
    noted = noting(loss, losses)
    if session.sharing.size == 1:
        session.cached(("agreed", name), lambda: _agree(session, name, batch))
    found: dict[str, Tensor | SparseRows]
    with in_a_run(), precision(settings.precision, session.device):
        if settings.method == "hooks":
            project = TwoSided(session.seed, settings.projection) if settings.projection else None
            found = block_gradients(
                model, noted, batch, layout, project=project, least=settings.project_above
            )
        else:
            found = _flat(model, loss, batch, layout, settings)
            with torch.enable_grad(), float_edges(model):
                noted(model, batch)
    on_cpu = {key: grads.to("cpu") for key, grads in found.items()}
    return on_cpu, torch.cat(losses).double().cpu()


def _agree(session: Session, name: str, batch: Batch) -> Method:
    model, settings = trained_model(session, name), session.settings.gradients
    loss = next(iter(session.task(name).losses.values()))
    with in_a_run():
        return agree(
            model, loss, batch, layout_of(model, settings), settings, (settings.chosen,),
            rows=rows_in(batch), seed=session.seed,
        )  # fmt: skip


def _agree_first(session: Session, unit: Unit) -> None:
    """On the same rows on all ranks, which share each pass."""
    name, split = unit.job["cell"], unit.job["split"]
    batches = row_batches(session, name, split, unit)
    first = in_parts(batches, batch_setting(session, name))[0]
    _agree(session, name, session.batch(name, split, unit.start + first))


def _flat(
    model: nn.Module, loss: PerSampleLoss, batch: Batch, layout: Layout, settings: GradientSettings
) -> dict[str, Tensor | SparseRows]:
    grads = flat_gradients(
        model, loss, batch, layout, chunk=settings.rows_per_batch, method=settings.chosen
    )
    return {name: grads[:, span] for name, span in layout.spans.items()}


def _finite(found: Mapping[str, Tensor | SparseRows]) -> Tensor:
    """bool [m]: which samples' gradients are finite in every block, also in the float32 stored."""
    stored = (grads.to(torch.float32) for grads in found.values())
    return torch.stack(
        [g.finite() if isinstance(g, SparseRows) else torch.isfinite(g).all(1) for g in stored]
    ).all(0)


def _kept(words: SparseRows, keep: Tensor) -> SparseRows:
    """The same samples, those not to be kept without rows."""
    lengths = torch.where(keep, words.lengths, 0)
    inside = keep[words.samples]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return SparseRows(offsets, words.ids[inside], words.rows[inside], words.vocabulary)


# -- what was stored -----------------------------------------------------------------------


def as_stored(grads: Tensor, store: str) -> np.ndarray:
    """float32 as it is; bfloat16 as its 16 bits in uint16. InputError for complex ones."""
    if grads.is_complex():
        raise InputError("gradients: complex ones are not stored; leave them out of the blocks")
    if store == "float32":
        return grads.float().numpy()
    return grads.to(torch.bfloat16).view(torch.uint16).numpy()


def _reads(values: Values) -> Names:
    """The seed draws projections, where there are any."""
    seed = ("seed",) if values["gradients"]["projection"] else ()
    return ("gradients", "-gradients.check", "-gradients.devices", *seed)


def run(session: Session, runtime: Runtime) -> None:
    settings, wanted = session.settings.gradients, [unit for unit, _ in units(session.outline)]
    if settings.devices == 1:
        _pooled(session, runtime)
    elif len(session.done(wanted)) < len(wanted):
        work = session.work(f"{__name__}:gang")
        runtime.gang(work, settings.devices, session.ledger(NAME), wanted)


_pooled = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "per-sample gradients", needs=("train",), reads=_reads,
    uncounted=("gradients.devices",), units=units, run=run,
    ranks=lambda settings: gang_size(settings.gradients), sharing="gradients.devices",
)  # fmt: skip
