"""Two-sided projections: exact in the factors, unbiased in dot products, the same everywhere."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import distinf
from distinf.errors import InputError
from distinf.numerics.hooks import block_gradients
from distinf.numerics.parameters import Layout
from distinf.numerics.projection import TwoSided
from distinf.numerics.sparse import SparseRows


def loss(model, batch):
    return model(batch).tanh().square().flatten(1).sum(1)


class Shared(nn.Module):
    """Words, a layer used twice and another with its weight, one never used, a convolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.first = nn.Embedding(9, 12), nn.Linear(12, 12)
        self.second, self.unused = nn.Linear(12, 12, bias=False), nn.Linear(30, 10)
        self.second.weight = self.first.weight
        self.small, self.conv = nn.Linear(12, 2), nn.Conv1d(2, 20, 2)

    def forward(self, tokens):
        hidden = self.first(self.words(tokens)).tanh()
        hidden = self.second(hidden) + self.first(hidden)
        return self.conv(self.small(hidden).mT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_projected_weight_is_left_times_its_gradient_times_right(dtype):
    model, batch = Shared().to(dtype), torch.arange(24).view(4, 6) % 9
    layout, project = Layout.of(model), TwoSided(seed=3, rank=4)
    whole = block_gradients(model, loss, batch, layout)
    found = block_gradients(model, loss, batch, layout, project=project, least=30)
    shrunk = [name for name in layout.names if found[name].__class__ is torch.Tensor
              and found[name].shape != whole[name].shape]  # fmt: skip
    assert shrunk == ["first.weight", "unused.weight"]
    grads = whole["first.weight"].double().view(4, 12, 12)
    left, right = project.factors("first.weight", (12, 12), dtype=torch.float64)
    expected = (left @ grads @ right).flatten(1)
    error = (found["first.weight"] - expected).abs().max() / expected.abs().max()
    assert error < (1e-14 if dtype == torch.float64 else 1e-5)
    assert torch.equal(found["unused.weight"], torch.zeros(4, 16).to(found["unused.weight"]))
    assert isinstance(found["words.weight"], SparseRows)
    for name in ("first.bias", "small.weight", "conv.weight"):
        assert torch.equal(found[name], whole[name])


def test_under_autocast_projections_are_still_products_in_float32():
    torch.manual_seed(0)
    model, batch = nn.Linear(64, 8), torch.rand(2, 200, 64)
    layout, project = Layout.of(model, "weight"), TwoSided(seed=0, rank=8)
    with torch.autocast("cpu", torch.bfloat16):
        found = block_gradients(model, lambda m, x: m(x).flatten(1).float().sum(1), batch, layout,
                                project=project)["weight"]  # fmt: skip
    left, right = project.factors("weight", (8, 64))
    expected = left.sum(1)[:, None] * (batch.sum(1) @ right)[:, None]
    torch.testing.assert_close(found, expected.flatten(1), rtol=1e-5, atol=1e-4)


def test_transformers_conv1d_is_projected_in_its_own_orientation():
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model, batch = Conv1D(14, 8).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    layout, project = Layout.of(model), TwoSided(seed=0, rank=3)
    grads = block_gradients(model, loss, batch, layout)["weight"].view(3, 8, 14)
    loop = distinf.per_sample_gradients(model, loss, batch, method="loop")["weight"]
    torch.testing.assert_close(grads.flatten(1), loop)
    left, right = project.factors("weight", (8, 14), dtype=torch.float64)
    found = block_gradients(model, loss, batch, layout, project=project)["weight"]
    torch.testing.assert_close(found, (left @ grads @ right).flatten(1))


def test_the_outer_product_is_never_formed_and_the_whole_input_not_kept():
    model = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 40), nn.Tanh())
    batch, layout = torch.randn(5, 3, 32), Layout.of(model, "weight")
    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest[0] = max(largest[0], result.numel())
            return result

    project = TwoSided(seed=0, rank=4)
    block_gradients(model, loss, batch, layout, project=project)  # the factors are drawn
    with Watch():
        block_gradients(model, loss, batch, layout, project=project)
    assert largest[0] <= 48 * 40  # a weight, seen in one; 5 of them without projection
    with Watch():
        block_gradients(model, loss, batch, layout)
    assert largest[0] == 5 * 48 * 40


def test_dot_products_are_unbiased_over_seeds():
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 9, dtype=torch.float64)
    exact, square = float((first * second).sum()), float(first.square().sum())
    dots, squares = [], []
    for seed in range(3000):
        left, right = TwoSided(seed, 3).factors("w", (6, 9), dtype=torch.float64)
        a, b = left @ first @ right, left @ second @ right
        dots.append(float((a * b).sum()))
        squares.append(float(a.square().sum()))
    for found, expected in ((dots, exact), (squares, square)):
        values = torch.tensor(found)
        error = float(values.std()) / len(found) ** 0.5
        assert abs(float(values.mean()) - expected) < 4 * error
        assert error < 0.05 * square


def test_factors_are_signs_that_depend_on_seed_name_and_row_alone():
    project = TwoSided(seed=1, rank=5)
    left, right = project.factors("a", (40, 30), dtype=torch.float64)
    assert left.shape == (5, 40)
    assert right.shape == (30, 5)
    assert left.abs().eq(5**-0.5).all()
    small_left, small_right = project.factors("a", (7, 11))
    assert torch.equal(small_left, left[:, :7].float())
    assert torch.equal(small_right, right[:11].float())
    assert not torch.equal(left[:, :30].T, right)  # the sides, names and seeds are independent
    assert not torch.equal(project.factors("b", (40, 30))[0], left.float())
    assert not torch.equal(TwoSided(2, 5).factors("a", (40, 30))[0], left.float())
    assert abs(float(left.sum())) < 4 * 200**0.5 * 5**-0.5


def test_only_matrices_that_get_smaller_are_projected():
    project = TwoSided(seed=0, rank=4)
    assert project.shrinks((5, 4))
    assert not project.shrinks((4, 4))
    assert not project.shrinks((30,))
    assert not project.shrinks((2, 5, 5))
    assert not project.shrinks((5, 4), least=20)
    with pytest.raises(InputError, match="rank 0 must be at least 1"):
        TwoSided(seed=0, rank=0)


def test_the_public_form_projects():
    model, batch = Shared(), torch.arange(24).view(4, 6) % 9
    found = distinf.per_sample_gradients(model, loss, batch, project=TwoSided(0, 3), chunk=3)
    assert {name: grads.shape for name, grads in found.items() if name.endswith("t.weight")} == {
        "first.weight": (4, 9)
    }
    scores = distinf.influence(found, found, "datainf", damping=0.1)
    assert scores["first.weight"].shape == (4, 4)
