import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distinf.errors import InputError
from distinf.numerics.parameters import Layout


def model() -> nn.Module:
    net = nn.ModuleDict({"body": nn.Linear(3, 2), "lora_A": nn.Linear(3, 1, bias=False)})
    net["head"] = nn.Linear(2, 2)
    net["head"].bias.requires_grad_(False)
    return net


def test_all_takes_trainable_parameters_in_model_order():
    layout = Layout.of(model())
    assert layout.names == ("body.weight", "body.bias", "lora_A.weight", "head.weight")
    assert layout.size == 6 + 2 + 3 + 4
    assert layout.spans["lora_A.weight"] == slice(8, 11)


def test_blocks_are_lora_or_a_regex_and_no_match_says_so():
    assert Layout.of(model(), "lora").names == ("lora_A.weight",)
    assert Layout.of(model(), r"weight$").names == ("body.weight", "lora_A.weight", "head.weight")
    with pytest.raises(InputError, match="matches no trainable parameter"):
        Layout.of(model(), "head.bias")
    with pytest.raises(InputError, match="not a valid regex"):
        Layout.of(model(), "(")


def test_a_tied_parameter_appears_once():
    net = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    net["head"].weight = net["embed"].weight
    assert Layout.of(net).names == ("embed.weight",)


@given(st.integers(0, 2**31))
def test_flat_vector_and_model_agree_both_ways(seed):
    net = model()
    layout = Layout.of(net)
    vector = torch.randn(layout.size, generator=torch.Generator().manual_seed(seed))
    layout.scatter_(net, vector)
    assert torch.equal(layout.gather(net), vector)
    assert torch.equal(layout.flatten(layout.unflatten(vector)), vector)
    assert torch.equal(net["lora_A"].weight.detach().view(-1), vector[8:11])


def test_unflatten_gives_views_and_refuses_another_length():
    layout = Layout.of(model())
    vector = torch.zeros(layout.size)
    layout.unflatten(vector)["body.bias"].fill_(1.0)
    assert vector.sum() == 2.0
    with pytest.raises(InputError, match="does not fit a layout of 15"):
        layout.unflatten(torch.zeros(14))
