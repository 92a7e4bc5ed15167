"""The basis route with queries of any size, and with embeddings whose gradients are sparse."""

import numpy as np
import pytest
import torch
from torch import nn

import distinf
from distinf.config import resolve
from distinf.numerics.hooks import projected_gradients
from distinf.numerics.parameters import Layout
from distinf.spectral.gradients import Scaled


@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e25])
def test_dot_products_with_queries_of_any_size_are_those_of_float64(unit):
    torch.manual_seed(0)
    model, x = nn.Linear(6, 2), torch.randn(5, 6)

    def loss(model, batch):
        return model(batch).square().sum(1) * unit

    layout = Layout.of(model)
    queries = torch.randn(3, layout.size) * torch.tensor([[unit], [1.0], [unit]])
    directions = Scaled.of(queries)
    dots, _ = projected_gradients(model, loss, x, layout, directions.rows_KP)
    found = directions.back(dots)
    whole, _ = projected_gradients(model.double(), loss, x.double(), layout, queries.double())
    assert (found != 0).all()
    torch.testing.assert_close(found.double(), whole, rtol=1e-4, atol=0)
    if unit == 1.0:
        assert directions.rows_KP is queries
        assert found.dtype == torch.float32


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 2, sparse=True)

    def forward(self, x):
        return self.words(x).mean(1)


def task(settings: dict, seed: int):
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    x = torch.randint(0, 9, (12, 4), generator=torch.Generator().manual_seed(0))
    data = {"x": x, "y": torch.arange(12) % 2}
    split = {"train": {k: v[:8] for k, v in data.items()}}
    split["evaluation"] = {k: v[8:] for k, v in data.items()}
    return distinf.TensorTask(Words, split, {"loss": loss}, seed=seed)


def test_a_run_trains_a_sparse_embedding(tmp_path):
    raw = {"task": f"{__name__}:task", "out": str(tmp_path), "runtime": {"kind": "local"}}
    session = resolve(raw).session(str(tmp_path), torch.device("cpu"))
    model, made = session.fresh_model(), task({}, 0)
    optimizer = made.optimizer(model.parameters(), lr=0.1, weight_decay=0.0)
    before = model.words.weight.detach().clone()
    made.losses["loss"](model, made.batch("train", np.arange(8))).sum().backward()
    optimizer.step()  # AdamW takes no sparse gradients
    assert not torch.equal(model.words.weight, before)
