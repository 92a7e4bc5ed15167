"""Which row an error of the task comes from: the rows that were in hand, tried one at a time."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.errors import DistinfError
from distinf.runtime import faults
from distinf.tasks.task import PerSampleLoss, Task

TRY_S = 20.0  # a search for the row takes no longer: the error is told without it, too
NAMES = {"train": "training", "evaluation": "evaluation"}


@dataclass(frozen=True)
class InHand:
    """Rows of a split that the task was asked for last."""

    task: Task
    split: str
    ids: np.ndarray


def failing_row(
    held: Sequence[InHand],
    model: nn.Module,
    read: Callable[[Task, str, np.ndarray], Any],
    error: BaseException,
) -> str:
    """ "loss 'a' failed on training row 77 at mine.py:12: IndexError: …": the first row that alone
    raises an error of the same type (of any, where ours took its place), by the user's own number
    where the task has some; "" where none does."""
    kind = Exception if isinstance(error, DistinfError) else type(error)
    until = time.monotonic() + TRY_S
    for rows in held:
        for row in rows.ids.tolist():
            if time.monotonic() > until:
                return ""
            failed = _failed_on(rows, row, model.eval(), read, kind)
            if failed:
                what, alone = failed
                where = f"{NAMES[rows.split]} row {_number(rows, row)}"
                return f"{what} failed on {where} {faults.told(alone)}"
    return ""


def _failed_on(
    rows: InHand,
    row: int,
    model: nn.Module,
    read: Callable[[Task, str, np.ndarray], Any],
    kind: type[BaseException],
) -> tuple[str, BaseException] | None:
    def batch() -> Any:
        return read(rows.task, rows.split, np.array([row]))

    for what, call in (("batch()", batch), *_uses(rows, model, batch)):
        try:
            call()
        except kind as error:
            return what, error
        except Exception:  # another error, of a row alone: not the one that is looked for
            continue
    return None


def _uses(
    rows: InHand, model: nn.Module, batch: Callable[[], Any]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, loss in rows.task.losses.items():
        yield f"loss '{name}'", partial(_differentiated, loss, model, batch)
    if rows.split == "evaluation":
        yield "evaluate()", lambda: rows.task.evaluate(model, batch())


def _differentiated(loss: PerSampleLoss, model: nn.Module, batch: Callable[[], Any]) -> None:
    wanted = [p for p in model.parameters() if p.requires_grad]
    torch.autograd.grad(loss(model, batch()).sum(), wanted, allow_unused=True)


def _number(rows: InHand, row: int) -> int:
    numbers = getattr(rows.task, "numbers", None)
    return int(numbers(rows.split)[row]) if callable(numbers) else row
