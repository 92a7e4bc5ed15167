"""Parameters that a model or a loss reaches otherwise than as their layer's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from distinf.errors import InputError
from distinf.numerics.capture import per_sample_gradients
from distinf.numerics.curvature import hessian_product
from distinf.numerics.parameters import Layout
from distinf.numerics.tuning import losses_of
from tests.numerics.test_agreement import assert_right, data, loss, mlp


class Kept(nn.Module):
    """A second use of a weight, from a list: no parameter of the module under any name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.kept = [self.layer.weight]

    def forward(self, x):
        return self.layer(x) + torch.tanh(functional.linear(x, self.kept[0]))


def decayed(model):
    """A loss with a decay of parameters that it holds itself."""
    held = [*model.parameters()]

    def with_decay(same, batch):
        return loss(same, batch) + 0.1 * sum(p.square().sum() for p in held)

    return with_decay


def subjects():
    torch.manual_seed(0)
    model = mlp()
    return {"in a list": (Kept(), loss), "in a closure": (model, decayed(model))}


@pytest.mark.parametrize("where", subjects())
def test_gradients_have_every_use(where):
    model, of = subjects()[where]
    assert_right(model, data(), loss=of)
    assert_right(model, data(), "loop", loss=of)


@pytest.mark.parametrize("where", subjects())
def test_what_puts_other_values_in_their_place_refuses_them(where):
    model, of = subjects()[where]
    layout = Layout.of(model)
    ways = {
        "vmap": lambda: per_sample_gradients(model, of, data(), method="vmap"),
        "vmap unchecked": lambda: per_sample_gradients(
            model, of, data(), method="vmap", check=False
        ),
        "curvature": lambda: hessian_product(model, of, [data()], layout)(torch.ones(layout.size)),
        "double backward": lambda: hessian_product(
            model, of, [data()], layout, "hessian-double-backward"
        )(torch.ones(layout.size)),
        "fine-tuning": lambda: losses_of(model, of, [data()])(layout.parameters(model)),
    }
    for way in ways.values():
        with pytest.raises(InputError, match="reached otherwise than as its layer's own") as caught:
            way()
        assert "\n" not in str(caught.value)


def test_other_parameters_that_are_trained_are_no_reason():
    model = mlp()
    found = per_sample_gradients(model, loss, data(), "0", method="vmap")
    layout = Layout.of(model, "0")
    assert hessian_product(model, loss, [data()], layout)(torch.ones(layout.size)).any()
    assert {name: block.requires_grad for name, block in found.items()} == {
        "0.weight": False,
        "0.bias": False,
    }


def test_a_hook_on_a_parameter_is_part_of_its_gradient():
    """Half of an output's weights held fixed by a mask, as in training."""
    model = mlp()
    mask = torch.tensor([1.0, 0, 1, 0, 1, 0])[:, None]
    model[0].weight.register_hook(lambda grad: grad * mask)
    assert_right(model, data())
    assert not per_sample_gradients(model, loss, data())["0.weight"].view(8, 6, 4)[:, 1].any()


def test_a_parameter_that_a_loss_freezes_has_no_gradient():
    def frozen(model, batch):
        model[0].weight.requires_grad_(False)
        return loss(model, batch)

    model = mlp()
    assert not per_sample_gradients(model, frozen, data())["0.weight"].any()
    assert model[0].weight.requires_grad
