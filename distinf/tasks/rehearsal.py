"""Everything that a task has, tried once on a row or two before hours depend on it.

What cannot be tried cheaply, a training, is checked where its first result comes in.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.naming import refuse_names
from distinf.numerics.batches import rows as batch_rows
from distinf.tasks.identity import rows_of
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import SPLITS, Task, Wording, check_losses, error_context, kind_of
from distinf.tasks.warm import looking

BY_SPLIT = ("truncated", "empty", "texts_shared_with_train", "largest_class")


def skeleton_of(task: Task) -> nn.Module:
    """A model without values, where the task has one, else its model."""
    skeleton: Callable[[], nn.Module] = getattr(task, "skeleton", task.model)
    with error_context("model()"):
        return skeleton()


def rehearse(task: Task) -> nn.Module:
    """The model, each loss, the metric and the optimizer on two rows (one, where there is one),
    and what the task can say of its rows. For a task whose data are there.

    InputError says what failed, or what is not as the protocol has it. Returns the model.
    """
    _check_names(task)
    if rows_of(task, "train") < 2:
        raise InputError(
            "task: one training row has no others to be ranked among; give two or more"
        )
    with error_context("model()"), looking():
        model = task.model()
    if not isinstance(model, nn.Module):
        raise InputError(f"task: model() returned {kind_of(model)}, not a torch.nn.Module")
    if callable(getattr(task, "fit", None)):  # what it returns is stored by these names
        refuse_names("task: model()'s parameters", dict(model.named_parameters()), cased=True)
    for split in SPLITS:
        rows = rows_of(task, split)
        for ids in ([0, 1], [rows - 1]):
            _try_rows(task, model.eval(), split, np.array(ids[:rows]))
    with error_context("optimizer()"):
        optimizer = task.optimizer(model.parameters(), lr=1e-3, weight_decay=0.0)
    if not callable(getattr(optimizer, "step", None)):
        raise InputError(f"task: optimizer() returned {kind_of(optimizer)}, which has no step()")
    rehearse_words(task)
    return model


def few_rows(task: Any) -> None:
    """Give a generating task the first rows of each split, made here; for one built anew."""
    for split in SPLITS:
        stop = min(2, rows_of(task, split))
        with error_context(f"generate('{split}', 0, {stop})"):
            arrays = {k: np.asarray(v) for k, v in task.generate(split, 0, stop).items()}
        refuse_names(f"task: generate()'s arrays of '{split}'", arrays)
        lengths = {name: len(values) for name, values in arrays.items()}
        if set(lengths.values()) != {stop}:
            raise InputError(
                f"task: generate('{split}', 0, {stop}) returned arrays of {lengths} rows"
            )
        with error_context(f"attach('{split}', rows)"):
            task.attach(split, _Few(arrays))


class _Few:
    """Rows in memory, as a RowSource."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        last = len(next(iter(self._arrays.values()))) - 1
        return {name: values[np.minimum(ids, last)] for name, values in self._arrays.items()}


def _check_names(task: Task) -> None:
    check_losses(task)
    if not isinstance(task.metric, str):
        raise InputError(f"task: metric is {task.metric!r}; name a column of evaluate()")
    words = getattr(task, "wording", None)
    if words is None:
        return
    if not isinstance(words, Wording):
        raise InputError(f"task: wording is {kind_of(words)}, not a distinf.tasks.task.Wording")
    for name in ("question", "noun", "metric"):
        if not isinstance(getattr(words, name), str):
            raise InputError(f"task: wording.{name} is {kind_of(getattr(words, name))}; say it")


def _try_rows(task: Task, model: nn.Module, split: str, ids: np.ndarray) -> None:
    where = f"on {'two rows' if len(ids) > 1 else 'one row'} of '{split}'"
    with error_context(f"batch('{split}', {ids.tolist()})"):
        batch = task.batch(split, ids)
    if batch_rows(batch) != len(ids):
        raise InputError(
            f"task: batch('{split}', {ids.tolist()}) has {batch_rows(batch)} rows; return the "
            "rows that are asked for, in that order"
        )
    words = getattr(task, "wording", None)
    for name in words.columns if words else ():
        if isinstance(batch, Mapping) and name in batch:
            _check_rows(f"wording.columns' '{name}'", batch[name], len(ids))
    for name, loss in task.losses.items():
        with error_context(f"loss '{name}' {where}"), torch.enable_grad():
            values = loss(model, batch)
        _check_rows(f"loss '{name}'", values, len(ids))
        if not values.is_floating_point():
            raise InputError(f"task: loss '{name}' is of {values.dtype}, which has no gradient")
    if split == "evaluation":
        with error_context(f"evaluate() {where}"), torch.no_grad():
            columns = task.evaluate(model, batch)
        _check_columns(task, columns, len(ids))


def _check_columns(task: Task, columns: Any, rows: int) -> None:
    if not isinstance(columns, Mapping):
        raise InputError(f"task: evaluate() returned {kind_of(columns)}, not columns by name")
    refuse_names("task: evaluate()'s columns", columns)
    for name, values in columns.items():
        _check_rows(f"evaluate()'s column '{name}'", values, rows)
        if values.is_complex():
            raise InputError(f"task: evaluate()'s column '{name}' is complex; return its size")
    for role in ("metric", "reference", "axis"):
        name = getattr(task, role)
        if name is not None and name not in columns:
            known = ", ".join(map(str, columns)) or "none"
            raise InputError(
                f"task: evaluate() returned no column '{name}', which is the task's {role} "
                f"(columns: {known})"
            )
    correct = columns.get("correct")
    if correct is not None and not torch.isin(correct.double().cpu(), torch.tensor([0.0, 1])).all():
        raise InputError("task: evaluate()'s column 'correct' is neither 0 nor 1; make it bool")


def _check_rows(what: str, values: Any, rows: int) -> None:
    if not isinstance(values, Tensor):
        raise InputError(f"task: {what} is {kind_of(values)}, not a tensor [N]")
    if tuple(values.shape) != (rows,):
        told = "two rows" if rows > 1 else "one row"
        raise InputError(
            f"task: {what} has shape {tuple(values.shape)} for {told}; return one value per "
            "sample, [N] (no mean over samples)"
        )


def rehearse_words(task: Any) -> None:
    """What a task may say of its rows: lengths, numbers, known wrong labels."""
    for split in SPLITS:
        rows = rows_of(task, split)
        for name in ("lengths", "numbers"):
            if callable(getattr(task, name, None)):
                with error_context(f"{name}('{split}')"):
                    values = np.asarray(getattr(task, name)(split))
                if values.shape != (rows,) or values.dtype.kind not in "iu":
                    raise InputError(
                        f"task: {name}('{split}') is {values.dtype} {values.shape}; return an "
                        f"integer for each of the {rows} rows"
                    )
    rows = rows_of(task, "train")
    if callable(getattr(task, "flipped", None)):
        with error_context("flipped()"):
            found = task.flipped()
            flips = None if found is None else np.asarray(found)
        if flips is not None and (flips.shape != (rows,) or not np.isin(flips, [0, 1]).all()):
            raise InputError(
                f"task: flipped() is {flips.dtype} {flips.shape}; return true or false for each of "
                f"the {rows} training rows, or None"
            )
    if callable(getattr(task, "summary", None)):
        _check_summary(task)
    if callable(getattr(task, "fit", None)):
        _check_call("fit", task.fit, "kept", "recipe", "device", "tell")


def _check_summary(task: Any) -> None:
    with error_context("summary()"):
        found = task.summary()
    if not isinstance(found, Mapping):
        raise InputError(f"task: summary() returned {kind_of(found)}, not a mapping")
    for name in BY_SPLIT:
        by_split = found.get(name) or {}
        numbers = isinstance(by_split, Mapping) and all(
            isinstance(v, int | float | np.number) for v in by_split.values()
        )
        if not numbers:
            raise InputError(f"task: summary()'s '{name}' is {by_split!r:.60}; give it by split")


def _check_call(name: str, function: Any, *arguments: str) -> None:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise InputError(
            f"task: {name} cannot be called as {name}({', '.join(arguments)}): {error}"
        ) from None
    except ValueError:
        return  # built in, and says nothing of its arguments


def checked_shapes(task: Task) -> Shapes:
    """The task's shapes(); InputError if they are none."""
    with error_context("shapes()"):
        found = task.shapes()
    if not isinstance(found, Shapes):
        raise InputError(f"task: shapes() returned {kind_of(found)}, not a distinf Shapes")
    for part in fields(found)[:3]:
        value = getattr(found, part.name)
        if not isinstance(value, int | float | np.number) or not 0 <= value < math.inf:
            raise InputError(f"task: shapes().{part.name} is {value!r:.40}; give a number from 0")
    return found
