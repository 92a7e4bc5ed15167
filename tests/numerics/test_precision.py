from contextlib import suppress

import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.capture import flat_gradients
from distinf.numerics.curvature import hessian_product
from distinf.numerics.hooks import projected_gradients
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges, precision
from distinf.studies.receiver.losses import CapacityBce
from tests.numerics.test_hooks import normal, receiver

CPU = torch.device("cpu")
METHODS = ("vmap", "loop", "hooks")
KINDS = ("hessian", "hessian-double-backward", "gauss-newton")


class Wary(CapacityBce):
    """Refuses outputs in less than float32."""

    def from_outputs(self, outputs, batch):
        assert outputs.dtype == torch.float32
        return super().from_outputs(outputs, batch)


@pytest.fixture(scope="module")
def passes():
    """Name -> a pass over a small receiver, giving a float32 tensor."""
    model, batch = receiver()
    layout, loss = Layout.of(model), Wary()
    vector = normal(layout.size, dtype=torch.float32)

    def gradients(method):
        return lambda: flat_gradients(model, loss, batch, layout, method=method)

    def product(kind):
        return lambda: hessian_product(model, loss, [batch], layout, kind)(vector)

    return {m: gradients(m) for m in METHODS} | {k: product(k) for k in KINDS}


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", [*METHODS, *KINDS])
def test_float32_is_what_it_was_to_the_bit_and_bfloat16_is_close_and_still_float32(passes, name):
    call = passes[name]
    plain = call()
    with precision("float32", CPU):
        assert torch.equal(call(), plain)
    with precision("tf32", CPU):
        assert torch.equal(call(), plain)
    with precision("bfloat16", CPU):
        low = call()
        with precision("float32", CPU):
            assert torch.equal(call(), plain)
    assert low.dtype == torch.float32
    assert 1e-4 < relative(low, plain) < 0.05
    assert torch.equal(call(), plain)  # all switched back


def test_projections_are_taken_in_float32():
    """Of bfloat16 gradients, that is: what is summed over them never is."""
    model, batch = receiver()
    layout = Layout.of(model)
    directions = normal(5, layout.size, dtype=torch.float32)
    with precision("bfloat16", CPU):
        grads = flat_gradients(model, CapacityBce(), batch, layout, method="hooks")
        found, _ = projected_gradients(model, CapacityBce(), batch, layout, directions)
    assert found.dtype == torch.float32
    assert relative(found, grads @ directions.T) < 1e-5


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(6), nn.LayerNorm(6), nn.GroupNorm(2, 6)])
def test_transforms_pass_normalisation_layers_in_bfloat16(norm):
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 2)).eval()
    batch, layout = normal(5, 4, dtype=torch.float32), Layout.of(model)

    def loss(m, x):
        return m(x).square().sum(1)

    product = hessian_product(model, loss, [batch], layout)
    vector = normal(layout.size, dtype=torch.float32)
    calls = [lambda: flat_gradients(model, loss, batch, layout)]
    if not isinstance(norm, nn.GroupNorm):  # torch has no forward derivative of its backward
        calls.append(lambda: product(vector))
    for call in calls:
        with precision("bfloat16", CPU):
            low = call()
        assert relative(low, call()) < 0.05


def test_training_keeps_weights_and_losses_in_float32():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    batch = normal(5, 4, dtype=torch.float32)
    with precision("bfloat16", CPU), float_edges(model):
        outputs = model(batch)
        outputs.square().sum().backward()
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, outputs.bfloat16().float())  # the products were not
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    with float_edges(model):
        assert model(batch).dtype == torch.float32
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.bfloat16()  # of its own accord, not by autocast
    with float_edges(model):
        assert model(batch.bfloat16()).dtype == torch.bfloat16


SWITCHES = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
)


@pytest.fixture(params=[False, True])
def legacy(request):
    """TF32 off or on by torch's older switches, which come back after the test."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.filterwarnings("ignore:.*CUDA")  # no GPU is needed to turn its switches
def test_tf32_is_switched_on_cuda_only_and_what_was_set_comes_back(legacy):
    before = [switch.fp32_precision for switch in SWITCHES]
    for kind, expected in (("tf32", "tf32"), ("float32", "ieee"), ("bfloat16", "ieee")):
        with suppress(KeyError), precision(kind, torch.device("cuda")):
            assert [switch.fp32_precision for switch in SWITCHES] == [expected] * 3
            raise KeyError  # what was set comes back then too
        assert [switch.fp32_precision for switch in SWITCHES] == before
        assert not torch.is_autocast_enabled("cuda")
        assert torch.backends.cuda.matmul.allow_tf32 == legacy
        assert torch.backends.cudnn.allow_tf32 == legacy
        with precision(kind, CPU):
            assert [switch.fp32_precision for switch in SWITCHES] == before


def test_an_unknown_precision_is_refused():
    message = "'fp16' is unknown; use one of float32, tf32, bfloat16"
    with pytest.raises(InputError, match=message), precision("fp16", CPU):
        pass
