"""Which row a loss fails on, where it fails on some alone."""

import time

import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.batches import Batch, copied, rows, take
from distinf.numerics.losses import Loss, evaluating
from distinf.numerics.undisturbed import undisturbed

TRY_S = 20.0  # a search takes no longer: the error is told without the row, too


def refuse_failing_row(model: nn.Module, loss: Loss, batch: Batch, error: Exception) -> None:
    """InputError, caused by `error`, for the first row that the loss raises an error on by itself.

    Nothing where that is every row: then it is no row's fault.
    """
    until, passed = time.monotonic() + TRY_S, False
    failed: tuple[int, Exception] | None = None
    with undisturbed(model), evaluating(model), torch.enable_grad():
        for row in range(rows(batch)):
            try:
                loss(model, copied(take(batch, slice(row, row + 1))))
                passed = True
            except Exception as raised:
                failed = failed or (row, raised)
            if (passed and failed) or (failed and row > 1) or time.monotonic() > until:
                break
    if passed and failed:
        place, alone = failed
        said = (str(alone).strip().splitlines() or [""])[0]
        raise InputError(
            f"the loss fails on row {place} of the batch ({type(alone).__name__}: {said}); mend "
            "that row, or leave it out"
        ) from error
