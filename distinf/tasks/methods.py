"""By which method a run takes its per-sample gradients: chosen, and checked on a few rows.

The driver chooses, once, before anything is begun; the choice is part of the configuration that is
stored and of the stages' keys, so that workers and resumed runs have the same. Workers check it
again on the trained model: before training some gradients are zero (an adapter's), and the rows of
some tasks are not there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.errors import InputError, OtherMethod
from distinf.microbatch import from_the_start, rows_at_once
from distinf.numerics.batches import take
from distinf.numerics.capture import METHOD_ORDER, Method, Methods, settled_method
from distinf.numerics.hooks import known_layers
from distinf.numerics.losses import refuse_without_gradient
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.numerics.projection import TwoSided
from distinf.tasks.task import Batch, PerSampleLoss, Task, error_context

REHEARSAL = "rows of a pass that is tried before a run"
UNTRIED: Method = "loop"  # where hooks cannot and there are no rows to try another method on


@dataclass(frozen=True)
class Pass:
    """A loss that is differentiated, on which rows, and how many rows at once."""

    loss: str
    split: str
    rows: int


@contextmanager
def in_a_run() -> Iterator[None]:
    """What asks for another method names the run's key."""
    try:
        yield
    except OtherMethod as error:
        raise error.in_a_run() from None


def method_by_layers(model: nn.Module, layout: Layout, *, only_hooks: bool = False) -> Method:
    """Hooks where they know every layer, of at most one embedding; else what passes any."""
    if only_hooks:
        return "hooks"
    try:
        known_layers(model, layout)
    except InputError:
        return UNTRIED
    owners = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    wanted = {id(model.get_parameter(name)) for name in layout.names}
    return UNTRIED if len({id(m.weight) for m in owners} & wanted) > 1 else "hooks"


def methods_to_try(asked: Method | None, by_layers: Method) -> Methods:
    """Those that a run may take: the one that it asks for, or all that its layers allow."""
    if asked is not None:
        return (asked,)
    return METHOD_ORDER if by_layers == "hooks" else METHOD_ORDER[1:]


def rehearsed_method(
    task: Task,
    model: nn.Module,
    layout: Layout,
    settings: Any,
    passes: Sequence[Pass],
    methods: Methods,
) -> Method:
    """The first of `methods` that agrees with one row at a time in every pass.

    settings: a recipe's GradientSettings. InputError, by the run's keys, where none does.
    """
    if getattr(settings, "embeddings", False) or _projection(settings):
        methods = ("hooks",)
    before: Methods = ()

    def tried(each: Pass, methods: Methods) -> Method:
        rows = rows_at_once(REHEARSAL, each.rows)
        batch = task.batch(each.split, np.arange(min(task.rows(each.split), max(rows, 3))))
        loss = task.losses[each.loss]
        agreed = agree(model, loss, batch, layout, settings, methods, rows=rows)
        refuse_without_gradient(model, loss, [take(batch, slice(3))], layout)
        return agreed

    with in_a_run(), error_context("gradients of a few rows"):
        while methods != before:  # what a later pass needs, the earlier ones can take
            before = methods
            for each in passes:
                agreed = from_the_start(partial(tried, each, methods), REHEARSAL)
                methods = methods[methods.index(agreed) :]
    return methods[0]


def agree(
    model: nn.Module,
    loss: PerSampleLoss,
    batch: Batch,
    layout: Layout,
    settings: Any,
    methods: Methods,
    *,
    rows: int,
    seed: int = 0,
) -> Method:
    """numerics' settled_method by a recipe's GradientSettings, `rows` at once."""
    device = next(model.parameters()).device
    project = TwoSided(seed, _projection(settings)) if _projection(settings) else None
    with precision(settings.precision, torch.device(device.type)):
        return settled_method(
            model, loss, batch, layout, methods, chunk=rows, project=project,
            least=getattr(settings, "project_above", 0), check=settings.check,
        )  # fmt: skip


def _projection(settings: Any) -> int:
    return int(getattr(settings, "projection", 0))
