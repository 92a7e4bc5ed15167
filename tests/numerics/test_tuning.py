"""Fine-tuning on one row: as torch's optimizers do it, and to first order."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from distinf.numerics.curvature import twice_differentiable
from distinf.numerics.parameters import Layout
from distinf.numerics.tuning import (
    FOLLOWED,
    Tuning,
    first_order,
    losses_of,
    of_pieces,
    parameters_of,
)
from tests.support.tuned import all_together


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
    "sgd": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, weight_decay=0.1),
}


def made(model, kind, lr, steps, batch, every):
    start = parameters_of(model, Layout.of(model, "all"))
    tuning = Tuning(start, partial(OPTIMIZERS[kind], lr=lr, fused=True))
    with twice_differentiable(model):
        found = tuning.on([losses_of(model, loss, [batch])] * steps)
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
    optimizer = OPTIMIZERS[kind](again.parameters(), lr=0.05)
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


class Tied(nn.Module):
    """One weight is the embedding and the head; another is not in the loss at all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.between = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.head, self.beside = nn.Linear(4, 7, bias=False), nn.Linear(2, 2)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.between(self.embed(ids))))


class Detached(Tied):
    """A weight is read once more after its gradient is there."""

    def forward(self, ids):
        first = nn.functional.linear(self.embed(ids), self.between.weight.detach())
        return self.head(torch.tanh(self.between(first)))


def tied_loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("made_of", [Tied, Detached])
def test_a_parameter_at_a_time_is_all_at_once_bit_for_bit(kind, steps, made_of):
    model = made_of()
    start = parameters_of(model, Layout.of(model, "all"))
    assert "head.weight" not in start
    batches = [{"x": torch.tensor([k]), "y": torch.tensor([(k + 2) % 7])} for k in range(steps)]
    each = [losses_of(model, tied_loss, [batch]) for batch in batches]
    optimizer = partial(OPTIMIZERS[kind], lr=0.05, fused=True)
    tuning, wanted = Tuning(start, optimizer), all_together(start, optimizer, each)
    for _ in range(2):
        found = tuning.on(each).parameters
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert torch.equal(found["beside.weight"], start["beside.weight"])  # nor decayed
    assert not torch.equal(found["embed.weight"], start["embed.weight"])


def test_of_gradients_one_is_there_at_a_time_and_of_one_step_no_state_stays():
    model, made, seen = Tied(), [], []
    start = parameters_of(model, Layout.of(model, "all"))
    own = losses_of(model, tied_loss, [{"x": torch.tensor([1]), "y": torch.tensor([2])}])

    def before_a_step(stepping, *_):
        every = [value for each in made for value in each.param_groups[0]["params"]]
        grads = sum(value.grad is not None for value in every)
        seen.append((stepping, grads, sum(bool(each.state) for each in made)))

    def optimizer(parameters):
        made.append(torch.optim.AdamW(parameters, lr=0.1, fused=True))
        made[-1].register_step_pre_hook(before_a_step)
        return made[-1]

    tuning = Tuning(start, optimizer)
    tuning.on([own])
    used = [each for name, each in zip(start, made, strict=True) if "beside" not in name]
    assert sorted(id(stepped) for stepped, *_ in seen) == sorted(map(id, used))
    assert [counts for _, *counts in seen] == [[1, 0]] * len(used)
    assert not any(each.state for each in made)
    tuning.on([own, own])
    assert all(each.state for each in used)


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
    flat = losses_of(model, lambda m, b: 0.0 * loss(m, b), [batch])
    tuning = Tuning(parameters_of(model, Layout.of(model, "all")), partial(torch.optim.SGD, lr=0.1))
    assert np.isnan(tuning.on([flat]).taken)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("fused", [False, True])
def test_the_next_begins_where_the_first_did_bit_for_bit(kind, fused):
    """Whatever went before: other rows, other numbers of steps, or what diverged."""
    model = network(torch.float32)
    start = parameters_of(model, Layout.of(model, "all"))
    kept = {name: value.clone() for name, value in start.items()}
    optimizer = partial(OPTIMIZERS[kind], lr=0.05, fused=fused)
    own = losses_of(model, loss, [rows(1, 1, torch.float32)])
    others = [
        [losses_of(model, loss, [rows(1, 2, torch.float32)])] * 3,
        [losses_of(model, lambda m, b: 1e38 * loss(m, b) ** 3, [rows(1, 3, torch.float32)])] * 2,
    ]
    fresh = Tuning(start, optimizer).on([own, own])
    used = Tuning(start, optimizer)
    for other in others:
        used.on(other)
    again = used.on([own, own])
    assert (again.asked, again.along) == (fresh.asked, fresh.along)
    for name, value in fresh.parameters.items():
        assert torch.equal(again.parameters[name], value)
        assert torch.equal(start[name], kept[name])
        assert not torch.equal(value, kept[name])


def test_of_a_large_model_every_so_many_entries_are_followed():
    model = nn.Linear(2 * FOLLOWED, 1)
    x = torch.randn(1, 2 * FOLLOWED, generator=torch.Generator().manual_seed(1))
    squared = losses_of(model, lambda m, b: m(b)[:, 0] ** 2, [x])
    start = parameters_of(model, Layout.of(model, "all"))
    found = Tuning(start, partial(torch.optim.SGD, lr=1e-12)).on([squared])
    step = {name: found.parameters[name].double() - v.double() for name, v in start.items()}
    with torch.no_grad():
        asked = -2e-12 * model(x)[0, 0].double() * x[0].double()
    assert found.asked == pytest.approx(float(asked[::2].square().sum()), rel=1e-5)
    assert found.along == pytest.approx(float((asked * step["weight"][0])[::2].sum()), rel=1e-5)
    whole = float((asked * step["weight"][0]).sum() / asked.square().sum())
    assert found.taken == pytest.approx(whole, rel=0.01)
    assert whole < 0.98


def test_a_piece_that_is_not_finite_is_in_its_own_rows_alone():
    shares_EP = np.array([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]])
    found = of_pieces(torch.tensor([2.0, 4.0, torch.inf], dtype=torch.float64), shares_EP)
    assert found.tolist() == [2.0, 3.5, float("inf")]
