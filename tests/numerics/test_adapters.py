"""Low-rank adapters: nothing changes when they are put in, and only they are trained."""

import copy

import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.adapters import add_adapters
from distinf.numerics.capture import flat_gradients
from distinf.numerics.parameters import Layout
from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig
from distinf.studies.receiver.lamb import Lamb
from tests.numerics.cases import CrossEntropy, classifier


def receiver(widths=(8, 12, 8)):
    """A small DeepRx whose BatchNorm has seen data, and slots for it."""
    torch.manual_seed(0)
    model = DeepRx(DeepRxConfig(widths=widths))
    inputs = torch.randn(3, 10, 14, 24).contiguous(memory_format=torch.channels_last)
    model(inputs)
    return model.eval(), inputs


def test_the_model_computes_what_it_did_to_the_last_bit():
    model, inputs = receiver()
    before = model(inputs).detach()
    add_adapters(model, rank=3, seed=0)
    assert torch.equal(model(inputs).detach(), before)
    weight = model.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_only_adapters_on_full_layers_are_trainable():
    model, _ = receiver()
    trained = add_adapters(model, rank=3, seed=0)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in names.values()} == {id(p) for p in trained}
    layers = {name.split(".parametrizations")[0] for name in names}
    expected = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1}
    assert layers == expected
    assert {"conv_in", "blocks.0.conv1.pointwise", "blocks.1.shortcut", "conv_out"} <= layers
    assert not any("depthwise" in name or "norm" in name for name in layers)
    # Rank 3 of 8 outputs and 10 inputs with a 3x3 kernel; the four outputs allow no more than 4.
    assert names["conv_in.parametrizations.weight.0.lora_A"].shape == (3, 90)
    assert names["conv_in.parametrizations.weight.0.lora_B"].shape == (8 * 3,)
    assert Layout.of(model, "lora").size == sum(p.numel() for p in trained)


def test_rank_is_at_most_the_layers_own():
    model, _ = receiver()
    add_adapters(model, rank=50, seed=0)
    assert model.get_parameter("conv_out.parametrizations.weight.0.lora_A").shape == (4, 8)


def test_values_depend_on_the_seed_and_the_layers_name_alone():
    def first(seed, **changes):
        model = nn.ModuleDict({"one": nn.Linear(5, 4), "two": nn.Linear(5, 4), **changes})
        add_adapters(model, 2, seed)
        return {n: p.detach() for n, p in model.named_parameters() if n.endswith("lora_A")}

    torch.manual_seed(7)
    one, again, other = first(0), first(0, more=nn.Linear(3, 3)), first(1)
    name = "one.parametrizations.weight.0.lora_A"
    torch.testing.assert_close(one[name], again[name], rtol=0, atol=0)
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one[name.replace("one", "two")])
    assert one[name].abs().max() <= 5**-0.5


def test_gradients_are_those_of_the_low_rank_factors():
    """d loss / d B = G A^T and d loss / d A = B^T G, G being the gradient of the full weight."""
    model, batch = classifier()
    model.eval()
    plain = copy.deepcopy(model)
    trained = add_adapters(model, rank=2, seed=0)
    with torch.no_grad():
        trained[1].copy_(torch.randn_like(trained[1]))
    down_RI, up_OR = trained[0].detach(), trained[1].detach().view(4, 2)
    with torch.no_grad():
        plain[0].weight += up_OR @ down_RI
    torch.testing.assert_close(model(batch["x"]), plain(batch["x"]))
    CrossEntropy()(plain, batch).sum().backward()
    CrossEntropy()(model, batch).sum().backward()
    full_OI = plain[0].weight.grad
    torch.testing.assert_close(trained[0].grad, up_OR.T @ full_OI)
    torch.testing.assert_close(trained[1].grad, (full_OI @ down_RI.T).view(-1))


def test_per_sample_gradients_pass_through_adapters():
    model, batch = classifier()
    add_adapters(model, rank=2, seed=0)
    layout = Layout.of(model)
    found = flat_gradients(model, CrossEntropy(), batch, layout)
    loop = flat_gradients(model, CrossEntropy(), batch, layout, method="loop")
    assert found.shape == (12, 2 * (3 + 4) + 2 * (4 + 3))
    torch.testing.assert_close(found, loop)


def test_training_leaves_the_rest_alone():
    model, inputs = receiver()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trained = add_adapters(model, rank=2, seed=0)
    optimizer = Lamb(trained, lr=1e-2, weight_decay=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        if "lora_" not in name:
            plain = name.replace("parametrizations.weight.original", "weight")
            assert torch.equal(value, start.pop(plain)), name
    assert not start
    assert all(float(p.detach().norm()) > 0 for p in trained)


def test_lamb_moves_the_adapters_at_every_step():
    """From zero, a matrix under LAMB's trust ratio would take one step and then hardly move."""
    model, inputs = receiver()
    trained = add_adapters(model, rank=2, seed=0)
    optimizer = Lamb(trained, lr=1e-2)
    sizes = []
    for _ in range(4):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        sizes.append(float(trained[1].detach().norm()))
    assert sizes[3] > 3 * sizes[0]


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(InputError, match="rank 0 must be at least 1"):
        add_adapters(nn.Linear(2, 2), 0, 0)
    with pytest.raises(InputError, match="there is neither"):
        add_adapters(nn.Conv2d(4, 4, 3, groups=4), 2, 0)
    model = nn.Sequential(nn.Linear(2, 2))
    add_adapters(model, 1, 0)
    with pytest.raises(InputError, match="weight of '0' is parametrized already"):
        add_adapters(model, 1, 0)
