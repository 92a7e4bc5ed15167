import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from distinf.errors import InputError
from distinf.numerics import layer_gradients
from distinf.numerics.capture import finite_rows, flat_gradients, per_sample_gradients
from distinf.numerics.hooks import projected_gradients
from distinf.numerics.parameters import Layout
from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig
from distinf.studies.receiver.losses import CapacityBce
from tests.numerics.cases import CrossEntropy, classifier


def loss(model, batch):
    """[N]: of any output, different for every sample."""
    return model(batch).tanh().square().flatten(1).sum(1)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def both(model, batch, loss=loss, blocks="all", **settings):
    """[N, P] by hooks and by vmap."""
    layout = Layout.of(model, blocks)
    hooks = flat_gradients(model, loss, batch, layout, method="hooks", **settings)
    return hooks, flat_gradients(model, loss, batch, layout, **settings)


def agree(model, batch, loss=loss, **settings):
    found, expected = both(model, batch, loss, **settings)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * expected.abs().max())


@st.composite
def convolutions(draw):
    """(a convolution, its input, the slab): groups, strides, dilations, paddings of all kinds."""
    axes = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    channels = groups * draw(st.integers(1, 2))
    sizes = st.tuples(*[st.integers(1, 3)] * axes)
    stride = draw(st.tuples(*[st.integers(1, 2)] * axes))
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "reflect"]))
    padding = draw(st.tuples(*[st.integers(0, 2)] * axes) | st.sampled_from(["same", "valid"]))
    kind = (nn.Conv1d, nn.Conv2d)[axes - 1]
    layer = kind(
        channels, groups * draw(st.integers(1, 3)), draw(sizes), groups=groups,
        stride=1 if padding == "same" else stride, dilation=draw(st.integers(1, 2)),
        padding=padding, padding_mode=mode, bias=draw(st.booleans()),
    ).double()  # fmt: skip
    samples, grid = draw(st.integers(1, 3)), draw(st.tuples(*[st.integers(5, 8)] * axes))
    batch = normal(samples, channels, *grid, seed=draw(st.integers(0, 9)))
    if axes == 2 and draw(st.booleans()):
        batch = batch.contiguous(memory_format=torch.channels_last)
    return layer, batch, draw(st.sampled_from([1, 10**9]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(convolutions())
def test_convolutions_of_any_shape_agree_with_vmap(case):
    layer, batch, slab = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_gradients, "SLAB", slab)
        agree(layer, batch)


NETS = {
    "linear": (nn.Linear(5, 4), (3, 5)),
    "linear without bias, of tokens": (nn.Linear(5, 4, bias=False), (3, 6, 5)),
    "linear of a grid": (nn.Linear(5, 4), (3, 2, 6, 5)),
    "batch norm of points": (nn.BatchNorm1d(4), (3, 4)),
    "batch norm of sequences": (nn.BatchNorm1d(4), (3, 4, 6)),
    "batch norm of images": (nn.BatchNorm2d(4), (3, 4, 5, 6)),
    "batch norm without weights": (
        nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 2, 1)),
        (3, 4, 5, 6),
    ),
    "layer norm": (nn.LayerNorm((6, 4)), (3, 5, 6, 4)),
    "layer norm without bias": (nn.LayerNorm(4, bias=False), (3, 4)),
    "rms norm": (nn.RMSNorm((6, 4)), (3, 5, 6, 4)),
    "rms norm of points": (nn.RMSNorm(4, eps=0.1), (3, 4)),
    "group norm": (nn.GroupNorm(2, 4), (3, 4, 5, 6)),
    "group norm of points": (nn.GroupNorm(2, 4), (3, 4)),
    "volumes": (nn.Sequential(nn.Conv3d(2, 4, 2, groups=2), nn.BatchNorm3d(4)), (2, 2, 3, 4, 3)),
    "in place": (nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), (3, 5)),
}


@pytest.mark.smoke
@pytest.mark.parametrize("slab", [1, 10**9])
@pytest.mark.parametrize("name", NETS)
def test_layers_agree_with_vmap(name, slab, monkeypatch):
    monkeypatch.setattr(layer_gradients, "SLAB", slab)
    model, shape = NETS[name]
    for seed, tensor in enumerate(model.double().state_dict().values()):
        if tensor.is_floating_point():  # weights, and running statistics other than 0 and 1
            tensor.copy_(normal(*tensor.shape, seed=seed).abs() + 0.1)
    agree(model.train(), 0.3 * normal(*shape))


def receiver(widths=(6, 8, 6), blocks=1, rows=3):
    """A small DeepRx in training mode, and a batch for it."""
    torch.manual_seed(0)
    grid = (14, 12 * blocks)
    batch = {
        "inputs": torch.randn(rows, 10, *grid).contiguous(memory_format=torch.channels_last),
        "bits": torch.randint(0, 2, (rows, 4, *grid)).float(),
        "mask": torch.ones(rows, *grid, dtype=torch.bool),
        "snr_db": torch.full((rows,), 10.0),
    }
    return DeepRx(DeepRxConfig(widths=widths)).train(), batch


def test_the_receiver_agrees_in_both_dtypes_and_is_left_as_it_was():
    model, batch = receiver()
    model.conv_out.weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found, expected = both(model, batch, CapacityBce())
    assert float((found - expected).norm() / expected.norm()) < 2e-6
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks
               for m in model.modules())  # fmt: skip
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["conv_out.weight"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    agree(model.double(), {k: v.double() for k, v in batch.items()}, CapacityBce())


class Recurrent(nn.Module):
    """A layer used three times, one use without effect; two layers that share a weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(4, 2)

    def forward(self, x):
        y = self.first(x).tanh()
        self.first(y)
        return self.first(input=y).tanh() + self.second(x)


def test_contributions_of_every_use_add_up():
    model = Recurrent().double()
    batch = normal(5, 4)
    found, expected = both(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert (found[:, -10:] == 0).all()  # not used
    assert (found[:, :20] != 0).any()
    assert both(model, batch, blocks="unused")[0].abs().sum() == 0


def test_chunks_blocks_and_the_public_surface():
    model, batch = classifier()
    agree(model, batch, CrossEntropy(), chunk=5)
    found = per_sample_gradients(model, CrossEntropy(), batch, blocks=r"^4\.", method="hooks")
    expected = per_sample_gradients(model, CrossEntropy(), batch, blocks=r"^4\.")
    assert list(found) == ["4.weight", "4.bias"]
    torch.testing.assert_close(found, expected)
    none = {name: value[:0] for name, value in batch.items()}
    empty = per_sample_gradients(model, CrossEntropy(), none, method="hooks")
    assert empty["4.bias"].shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projections_are_those_of_the_flat_gradients(dtype):
    model, batch = receiver()
    model, batch = model.to(dtype), {k: v.to(dtype) for k, v in batch.items()}
    layout = Layout.of(model)
    directions = normal(7, layout.size, dtype=dtype)
    grads = flat_gradients(model, CapacityBce(), batch, layout)
    coordinates, sqnorm = projected_gradients(model, CapacityBce(), batch, layout, directions)
    assert sqnorm.dtype == torch.float64
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    expected = grads @ directions.T
    torch.testing.assert_close(coordinates, expected, rtol=0, atol=tolerance * expected.abs().max())
    torch.testing.assert_close(sqnorm, grads.double().square().sum(1), rtol=tolerance, atol=0)


def test_projecting_never_holds_more_than_one_parameters_gradients():
    model = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.Tanh())])
    batch, layout = normal(8, 16, dtype=torch.float32), Layout.of(model)
    largest = SimpleNamespace(entries=0)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest.entries = max(largest.entries, result.numel())
            return result

    with Watch():
        projected_gradients(model, loss, batch, layout, torch.ones(1, layout.size))
    assert largest.entries == 8 * 16 * 16  # of 8 * 6 * 272
    with Watch():
        flat_gradients(model, loss, batch, layout, method="hooks")
    assert largest.entries == 8 * layout.size


@pytest.mark.parametrize("slab", [1, 10**9])
def test_a_sample_without_a_finite_gradient_leaves_the_others_alone(slab, monkeypatch):
    monkeypatch.setattr(layer_gradients, "SLAB", slab)
    model, batch = receiver(rows=4)
    layout = Layout.of(model)
    directions = normal(3, layout.size, dtype=torch.float32)
    clean, clean_sqnorm = projected_gradients(model, CapacityBce(), batch, layout, directions)
    batch["inputs"][1, 0, 3, 5] = math.nan
    batch["snr_db"][2] = math.inf
    found, sqnorm = projected_gradients(model, CapacityBce(), batch, layout, directions)
    assert torch.isfinite(sqnorm).tolist() == [True, False, False, True]
    flat = flat_gradients(model, CapacityBce(), batch, layout, method="hooks")
    assert finite_rows(flat).tolist() == [True, False, False, True]
    for row in (0, 3):
        torch.testing.assert_close(found[row], clean[row], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sqnorm[row], clean_sqnorm[row])


def test_a_large_gradient_is_still_a_finite_one():
    model = nn.Linear(2, 1, bias=False)
    batch = torch.tensor([[1e25, 1.0], [1.0, 1.0]])
    _, sqnorm = projected_gradients(
        model, lambda m, x: m(x).sum(1), batch, Layout.of(model), torch.zeros(1, 2)
    )
    torch.testing.assert_close(sqnorm, torch.tensor([1e50, 2.0], dtype=torch.float64))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) @ self.layer.weight


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Changed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.first(x)
        z = self.second(y)
        y += 1
        return z


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.scale * self.layer(x)


class Turned(nn.Module):
    """Samples along the second dimension of the layer's input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x[:, None].expand(-1, 7, -1).transpose(0, 1)).transpose(0, 1)


REFUSED = {
    "an unknown layer": (Scaled(), "'scale'.*method='vmap' or 'loop'"),
    "a forward of its own": (nn.Sequential(Doubled(4, 4)), r"'0\.weight' \(weight of a Doubled\)"),
    "a weight tied by hand": (Tied(), r"'layer\.weight' is also used outside its layer"),
    "an input changed in place": (Changed(), r"input of the layer of 'second\.weight'"),
    "other rows than samples": (Turned(), r"'layer\.weight' sees 7 rows for 5 samples"),
    "batch statistics": (
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        "'1' normalises by the statistics of the batch",
    ),
    "attention": (
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        r"'self_attn\.in_proj_weight'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_hooks_cannot_do_is_refused_by_name(name):
    model, message = REFUSED[name]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(InputError, match=message):
        flat_gradients(model, loss, normal(5, 4, dtype=torch.float32), Layout.of(model),
                       method="hooks")  # fmt: skip
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_attention_weight_that_its_layer_never_applies_is_refused_not_zero():
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
    batch = normal(5, 3, 4, dtype=torch.float32)
    with pytest.raises(InputError, match=r"'self_attn\.out_proj\.weight' is also used outside"):
        both(model, batch, blocks="out_proj")
    found, expected = both(model, batch, blocks="linear|norm")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_layer_may_stand_outside_the_blocks():
    model = Scaled().double()
    found, expected = both(model, normal(5, 4), blocks="layer")
    torch.testing.assert_close(found, expected)


def test_directions_of_another_layout_and_a_mean_loss_are_refused():
    model, batch = classifier()
    layout = Layout.of(model)
    with pytest.raises(InputError, match=r"\[K, 39\]"):
        projected_gradients(model, CrossEntropy(), batch, layout, torch.ones(2, 38))
    with pytest.raises(InputError, match="one value per sample"):
        projected_gradients(
            model, lambda m, b: CrossEntropy()(m, b).mean(), batch, layout, torch.ones(2, 39)
        )
    with pytest.raises(InputError, match="method 'hook' must be one of"):
        flat_gradients(model, CrossEntropy(), batch, layout, method="hook")
