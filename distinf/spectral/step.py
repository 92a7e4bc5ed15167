"""One step of training: each shard's pass and gradient, their ordered sums, the optimizer.

Where memory runs out a shard's rows are passed in parts. Those that depend on each other, as by
batch norms, are never cut: that would be another training.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.digest import digest
from distinf.engine.session import row_ranges
from distinf.errors import InputError
from distinf.microbatch import MICROBATCHES, rows_at_once
from distinf.numerics.losses import per_sample
from distinf.numerics.precision import float_edges, precision
from distinf.runtime.activity import HERE, SHARD
from distinf.spectral.session import Session
from distinf.tasks.task import Batch, PerSampleLoss

SETTING = "train.batch_size"
ALIKE = 1e-4  # relative: a row's loss beside another row, and alone


def take_step(
    session: Session,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[np.ndarray],
    step: int,
    collective: Collective,
    seed: int = 0,
) -> float:
    """One optimizer step -> the sum of the losses over train.batch_size, the same on every rank.

    rows  of each shard. seed: of what the model draws in training, beside the run's own
    """
    shards = len(rows)
    buffers = dict(model.named_buffers())
    start = {name: value.clone() for name, value in buffers.items()}
    parts = []
    model.train()
    for shard in collective.owned(shards):
        ids, drawn = rows[shard], partial(_seeded, session, step, shard, seed)
        total = in_parts(
            len(ids),
            partial(_pass, session, model, ids, start, drawn),
            partial(_rows_are_apart, session, model, ids),
        )
        parts.append(_pack(model, buffers, shards, total))
    width = sum(p.numel() + 1 for p in model.parameters() if p.requires_grad) + 1
    width += sum(value.numel() for value in buffers.values())
    local = (
        torch.stack(parts)
        if parts
        else torch.zeros(0, width, dtype=torch.float64, device=session.device)
    )
    summed = collective.ordered_sum(local)
    if not torch.isfinite(summed).all():
        raise InputError(
            f"train: the loss or a gradient is not finite at step {step}; lower train.lr or look "
            f"for bad rows among {np.concatenate(rows)[:8].tolist()}…"
        )
    _unpack(model, buffers, summed)
    optimizer.step()
    return float(summed[-1])


def _pass(
    session: Session,
    model: nn.Module,
    ids: np.ndarray,
    buffers: Mapping[str, Tensor],
    drawn: Callable[[], AbstractContextManager[None]],
    at_once: int,
) -> Tensor:
    """The rows' sum of losses over train.batch_size; its gradients are the model's afterwards.

    The model begins with these buffers. drawn: where its random numbers come from
    """
    settings, loss = session.settings.train, next(iter(session.task.losses.values()))
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    model.zero_grad()
    parts = []
    with HERE.doing(SHARD), drawn():
        for a, b in row_ranges(len(ids), at_once):
            batch = session.batch("train", ids[a:b])
            with precision(settings.precision, session.device), float_edges(model):
                part = per_sample(loss(model, batch), batch).sum() / settings.batch_size
                part.backward()
            parts.append(part.detach())
    return torch.stack(parts).sum()


def _rows_are_apart(session: Session, model: nn.Module, ids: np.ndarray) -> bool:
    def told() -> bool:
        loss = next(iter(session.task.losses.values()))
        pair, single = (session.batch("train", ids[:n]) for n in (2, 1))
        return rows_are_apart(model, loss, pair, single)

    return session.cached("rows are apart", told)


@contextmanager
def _seeded(session: Session, step: int, shard: int, seed: int) -> Iterator[None]:
    """torch's random numbers (dropout, say) from (seeds, step, shard), on whichever rank."""
    devices = [session.device] if session.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        named = [session.seed, "train", step, shard, *([seed] if seed else [])]
        torch.manual_seed(int(digest(named)[:15], 16))
        yield


def in_parts(rows: int, passed: Callable[[int], Tensor], apart: Callable[[], bool]) -> Tensor:
    """passed(rows at once): of all, or, if apart(), of half each time that memory ran out."""
    size = rows_at_once(SETTING, rows)
    if size < rows and not apart():
        MICROBATCHES.lowered.pop(SETTING)
        return passed(rows)
    is_done, found = MICROBATCHES.tried(SETTING, partial(passed, size), size)
    return found if is_done else in_parts(rows, passed, apart)


@torch.no_grad()
def rows_are_apart(model: nn.Module, loss: PerSampleLoss, pair: Batch, single: Batch) -> bool:
    """Whether the first row of a pair has in training the loss that it has alone, dropout aside.

    Buffers, modes and random numbers are as before afterwards.
    """
    before = {name: value.clone() for name, value in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    model.train()
    for module in modes:
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    with ExitStack() as stack:
        stack.callback(_restore, model, before, modes)
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(float_edges(model))
        try:
            beside, alone = loss(model, pair)[:1], loss(model, single)
        except (ValueError, RuntimeError):  # a batch norm takes no single value
            return False
    return torch.allclose(beside.float(), alone.float(), rtol=ALIKE, atol=0.0)


def _restore(
    model: nn.Module, buffers: Mapping[str, Tensor], modes: Mapping[nn.Module, bool]
) -> None:
    for name, value in model.named_buffers():
        value.copy_(buffers[name])
    for module, training in modes.items():
        module.training = training


def _pack(model: nn.Module, buffers: Mapping[str, Tensor], shards: int, loss: Tensor) -> Tensor:
    """fp64: which parameters have gradients, the gradients, buffers, and the loss."""
    trained = [p for p in model.parameters() if p.requires_grad]
    grads = [gradient_of(p).reshape(-1) for p in trained]
    used = torch.tensor([p.grad is not None for p in trained], device=loss.device)
    # Running statistics are averaged over the shards; counters are the same in each.
    averaged = [value.reshape(-1).double() / shards for value in buffers.values()]
    pieces = [used, *grads, *averaged, loss.detach().reshape(1)]
    return torch.cat([piece.double() for piece in pieces])


def gradient_of(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


def _unpack(model: nn.Module, buffers: Mapping[str, Tensor], summed: Tensor) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    offset = len(trained)
    for parameter, is_used in zip(trained, summed[:offset].tolist(), strict=True):
        piece = summed[offset : offset + parameter.numel()]
        # One that no loss depends on is left alone by torch's optimizers: not decayed either.
        parameter.grad = piece.view_as(parameter).to(parameter.dtype) if is_used else None
        offset += parameter.numel()
    for value in buffers.values():
        mean = summed[offset : offset + value.numel()].view_as(value)
        value.copy_(mean if value.is_floating_point() else mean.round())
        offset += value.numel()
