"""Fine-tuning on one row: as torch's optimizers do it, and to first order."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from distinf.numerics.curvature import twice_differentiable
from distinf.numerics.parameters import Layout
from distinf.numerics.tuning import first_order, losses_of, parameters_of, tuned
from distinf.numerics.updates import updates_of


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh(), nn.Linear(5, 3)
    ).to(dtype)  # fmt: skip


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def rows(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return {"x": x, "y": torch.randint(3, (count,), generator=generator)}


OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1),
}


def made(model, kind, lr, steps, batch, every):
    layout = Layout.of(model, "all")
    start = parameters_of(model, layout)
    updates = updates_of(OPTIMIZERS[kind](model.parameters(), lr), dict(model.named_parameters()))
    with twice_differentiable(model):
        found = tuned([losses_of(model, loss, [batch])] * steps, start, updates, lr)
        losses = losses_of(model, loss, every)
        return (
            found,
            losses(start),
            losses(found.parameters),
            first_order(losses, start, found.parameters),
        )


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_losses_are_those_after_torchs_own_steps(kind, steps):
    model, batch, every = network(), rows(1, 1), [rows(4, 2), rows(3, 3)]
    before = copy.deepcopy(model.state_dict())
    found, base_E, after_E, _ = made(model, kind, 0.05, steps, batch, every)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert found.taken == pytest.approx(1.0, abs=1e-12)
    again = copy.deepcopy(model)
    optimizer = OPTIMIZERS[kind](again.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(again, batch).mean().backward()
        optimizer.step()
    for of, values_E in ((model, base_E), (again, after_E)):
        expected_E = torch.cat([loss(of, each) for each in every]).detach()
        torch.testing.assert_close(values_E, expected_E, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_error_of_the_first_order_falls_as_the_rate_does(kind):
    """Eq. 2: relative to the influence, with a log-log slope of 1."""
    rates, errors = np.array([1e-5, 3e-5, 1e-4, 3e-4]), []
    for rate in rates:
        _, before_E, after_E, slope_E = made(network(), kind, rate, 1, rows(1, 1), [rows(20, 2)])
        influence_E = before_E - after_E
        errors.append(float((influence_E - slope_E).norm() / influence_E.norm()))
    slope = np.polyfit(np.log(rates), np.log(errors), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.05)


def test_a_step_that_the_weights_cannot_hold_is_told():
    few = rows(1, 1, torch.float32)
    whole, *_ = made(network(torch.float32), "sgd", 0.1, 1, few, [few])
    lost, *_ = made(network(torch.float32), "sgd", 1e-9, 1, few, [few])
    assert whole.taken == pytest.approx(1.0, abs=1e-4)
    assert lost.taken < 0.5


def test_weights_of_a_lower_precision_are_tuned_in_float32():
    model = network(torch.bfloat16)
    assert {p.dtype for p in parameters_of(model, Layout.of(model, "all")).values()} == {
        torch.float32
    }


def test_no_gradient_asks_for_no_step():
    model, batch = network(), rows(1, 1)
    layout = Layout.of(model, "all")
    updates = updates_of(OPTIMIZERS["sgd"](model.parameters(), 0.1), dict(model.named_parameters()))
    flat = losses_of(model, lambda m, b: 0.0 * loss(m, b), [batch])
    assert np.isnan(tuned([flat], parameters_of(model, layout), updates, 0.1).taken)
