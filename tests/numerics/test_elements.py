"""Elements' shares of a score against one gradient per element, in float64."""

import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.elements import element_shares
from distinf.numerics.parameters import Layout


def grids(samples=5):
    """A small network from slots to one number per element, and targets with holes in them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 1, 1)
    ).double()
    batch = {
        "x": torch.randn(samples, 2, 3, 4, dtype=torch.float64),
        "y": torch.randn(samples, 3, 4, dtype=torch.float64),
        "mask": torch.rand(samples, 3, 4) < 0.7,
    }
    model(batch["x"])
    return model, batch


def parts(model, batch):
    errors = (model(batch["x"])[:, 0] - batch["y"]).square() / batch["mask"].sum((1, 2), True)
    return torch.where(batch["mask"], errors, torch.nan)


def loss(model, batch):
    return parts(model, batch).nansum((1, 2))


def gradient(value, model, layout):
    names = dict(model.named_parameters())
    grads = torch.autograd.grad(value, [names[n] for n in layout.names], retain_graph=True)
    return torch.cat([g.reshape(-1) for g in grads])


@pytest.mark.parametrize("blocks", ["all", r"^0\."])
def test_each_share_is_the_elements_own_gradient_along_the_direction(blocks):
    model, batch = grids()
    layout = Layout.of(model, blocks)
    direction_P = torch.randn(layout.size, dtype=torch.float64)
    shares = element_shares(model, parts, batch, layout, direction_P)
    assert model.training
    model.eval()
    values = parts(model, batch)
    for n in range(5):
        for s in range(3):
            for f in range(4):
                if not batch["mask"][n, s, f]:
                    assert torch.isnan(shares[n, s, f])
                    continue
                expected = gradient(values[n, s, f], model, layout) @ direction_P
                torch.testing.assert_close(shares[n, s, f], expected)
    whole = torch.stack([gradient(v, model, layout) @ direction_P for v in loss(model, batch)])
    torch.testing.assert_close(shares.nansum((1, 2)), whole)


def test_parts_that_are_not_per_sample_are_refused():
    model, batch = grids()
    layout = Layout.of(model)
    with pytest.raises(InputError, match=r"parts\(\) returned shape \(5,\) for 5 samples"):
        element_shares(model, loss, batch, layout, torch.zeros(layout.size, dtype=torch.float64))
