"""The row that a loss fails on is named; a loss that fails on every row raises its own error."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from distinf.errors import InputError
from distinf.numerics.capture import per_sample_gradients

ROWS = 6


def loss(model, batch):
    return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def data():
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(ROWS, 4, generator=generator), "y": torch.arange(ROWS) % 3}


@pytest.mark.parametrize("method", [None, "hooks", "vmap", "loop"])
@pytest.mark.parametrize("row", [0, 1, ROWS - 1])
def test_one_label_outside_the_classes_is_told_with_its_row(method, row):
    batch = data()
    batch["y"][row] = 3
    with pytest.raises(InputError, match=f"fails on row {row} of the batch .IndexError.*leave it"):
        per_sample_gradients(nn.Linear(4, 3), loss, batch, method=method)


def test_a_loss_that_fails_on_every_row_raises_its_own_error():
    with pytest.raises(ZeroDivisionError):
        per_sample_gradients(nn.Linear(4, 3), lambda model, batch: 1 / 0, data())


def test_a_loss_that_takes_no_single_row_is_told_so():
    def normalised(model, batch):
        normed = functional.batch_norm(batch["x"], None, None, training=True)
        return loss(model, batch | {"x": normed})

    with pytest.raises(InputError, match=r"fails on a row by itself .*but not among others"):
        per_sample_gradients(nn.Linear(4, 3), normalised, data())


def test_a_loss_that_passes_but_not_its_gradient_is_told_so():
    class InPlace(nn.Linear):
        def forward(self, x):
            return super().forward(x).exp().mul_(2)

    with pytest.raises(
        InputError, match=r"row \d cannot be differentiated .RuntimeError: .*inplace"
    ):
        per_sample_gradients(InPlace(4, 3), loss, data())
