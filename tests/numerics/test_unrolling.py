"""Influence by unrolling: against retraining with other weights of a row, and in closed form."""

import numpy as np
import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.capture import flat_gradients
from distinf.numerics.unrolling import Step, Training, replayed, unrolled

ROWS, QUERIES, BATCH = 12, 3, 4
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1.0),
    "momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.05),
    "dampening": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.8, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.7, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1.0, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1.0, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2),
}


def data(rows, seed, width=4):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    x[:, -1] = 0.0  # an input that never is: its weights' gradients are 0 at every step
    return {"x": x, "y": torch.randint(0, 3, (rows,), generator=generator)}


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def schedule(steps=10, rate=0.1):
    generator = np.random.default_rng(0)
    return [
        Step(generator.choice(ROWS - 1, BATCH, replace=False), rate / (1 + k)) for k in range(steps)
    ]


def training_of(model, optimizer, steps):
    train = data(ROWS, 1)
    return Training(
        model, loss, lambda ids: {k: v[ids] for k, v in train.items()}, steps,
        optimizer(model.parameters()),
    )  # fmt: skip


def trained(model, optimizer, steps, weights_N):
    """By torch's own optimizer, a row's loss times its weight."""
    train, stepper = data(ROWS, 1), optimizer(model.parameters())
    for ids, rate in steps:
        for group in stepper.param_groups:
            group["lr"] = rate
        stepper.zero_grad()
        values = loss(model, {k: v[ids] for k, v in train.items()})
        ((weights_N[ids] * values).sum() / len(ids)).backward()
        stepper.step()
    with torch.no_grad():
        return loss(model, data(QUERIES, 2))


def scores_of(training):
    trace = replayed(training)
    end = network()
    end.load_state_dict(trace.end)
    grads_QP = flat_gradients(end, loss, data(QUERIES, 2), training.layout, method="loop")
    return unrolled(trace, grads_QP, ROWS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scores_are_what_retraining_with_other_weights_of_a_row_gives(name):
    """Central differences of torch's own training; the last row is in no batch."""
    steps, optimizer, shift = schedule(), OPTIMIZERS[name], 1e-5
    scores_QN = scores_of(training_of(network(), optimizer, steps))
    assert (scores_QN[:, -1] == 0).all()
    for row in range(ROWS):
        changed = []
        for sign in (1, -1):
            weights_N = torch.ones(ROWS, dtype=torch.float64)
            weights_N[row] += sign * shift
            changed.append(trained(network(), optimizer, steps, weights_N))
        slope_Q = (changed[0] - changed[1]) / (2 * shift)
        torch.testing.assert_close(scores_QN[:, row], -slope_Q, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replay_ends_where_torchs_own_training_does(name):
    model, steps = network(), schedule()
    trace = replayed(training_of(network(), OPTIMIZERS[name], steps))
    trained(model, OPTIMIZERS[name], steps, torch.ones(ROWS, dtype=torch.float64))
    for key, value in model.named_parameters():
        torch.testing.assert_close(trace.end[key], value.detach(), rtol=1e-12, atol=1e-14)


def test_full_batches_of_a_linear_regression_in_closed_form():
    """θ_t+1 = θ_t - η (A θ_t - b): after T steps a row of residual r_t x has moved θ by
    -η/N Σ_t (1 - η A)^(T-1-t) x r_t."""
    generator = torch.Generator().manual_seed(3)
    x_ND, z_QD = (torch.randn(n, 3, generator=generator).double() for n in (ROWS, QUERIES))
    y_N, count, rate, theta = x_ND.sum(1) + 1, 7, 0.2, torch.zeros(3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    grows = torch.eye(3, dtype=torch.float64) - rate * x_ND.T @ x_ND / ROWS
    moved_DN = torch.zeros(3, ROWS, dtype=torch.float64)
    for _ in range(count):
        residual_N = x_ND @ theta - y_N
        moved_DN = grows @ moved_DN - rate / ROWS * x_ND.T * residual_N
        theta = theta - rate / ROWS * x_ND.T @ residual_N
    training = Training(
        model,
        lambda model, batch: (model(batch["x"])[:, 0] - batch["y"]).square() / 2,
        lambda ids: {"x": x_ND[ids], "y": y_N[ids]},
        [Step(np.arange(ROWS), rate)] * count,
        torch.optim.SGD(model.parameters(), lr=1.0),
    )
    trace = replayed(training)
    torch.testing.assert_close(trace.end["weight"][0], theta)
    residual_Q = z_QD @ theta - 1
    scores_QN = unrolled(trace, residual_Q[:, None] * z_QD, ROWS)
    torch.testing.assert_close(scores_QN, -residual_Q[:, None] * (z_QD @ moved_DN))


def test_many_queries_in_pieces_are_as_one_by_one(monkeypatch):
    whole = scores_of(training_of(network(), OPTIMIZERS["momentum"], schedule()))
    monkeypatch.setattr("distinf.numerics.unrolling.ENTRIES", 1)
    pieces = scores_of(training_of(network(), OPTIMIZERS["momentum"], schedule()))
    torch.testing.assert_close(whole, pieces)


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"model": Normed().double()}, "dropout, batch norms, a random loss"),
        ({"model": nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double()}, "dropout, batch"),
        ({"loss": lambda m, b: loss(m, b).mean()}, "one value per sample"),
        ({"optimizer": torch.optim.RMSprop}, "RMSprop cannot be unrolled; SGD, Adam and AdamW"),
        ({"optimizer": lambda p: torch.optim.Adam(p, amsgrad=True)}, "with amsgrad"),
        ({"optimizer": lambda p: torch.optim.SGD([*p][:1], lr=1.0)}, "has not the parameter"),
        ({"model": nn.Linear(4, 60_000)}, "at most 200,000"),
    ],
)
def test_what_cannot_be_unrolled_is_refused_in_a_line(change, line):
    model, train = change.get("model") or network(), data(ROWS, 1)
    training = Training(
        model, change.get("loss", loss), lambda ids: {k: v[ids] for k, v in train.items()},
        schedule(), change.get("optimizer", OPTIMIZERS["sgd"])(model.parameters()),
    )  # fmt: skip
    with pytest.raises(InputError, match=line):
        training.check()


class TwoHeads(nn.Module):
    """Trained on one head alone; queries ask the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.one, self.other = (nn.Linear(4, k).double() for k in (4, 3, 3))

    def forward(self, x, head="one"):
        return getattr(self, head)(torch.tanh(self.body(x)))


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw"])
def test_what_no_step_uses_is_not_decayed(name):
    """As by torch's optimizers, for which it has no gradient. It is what the query looks through,
    so that every score goes by it."""

    def asked(model, batch):
        logits = model(batch["x"], "other")
        return nn.functional.cross_entropy(logits, batch["y"], reduction="none")

    steps, shift = schedule(), 1e-5
    training = training_of(TwoHeads(), OPTIMIZERS[name], steps)
    end = TwoHeads()
    trace = replayed(training)
    end.load_state_dict(trace.end)
    assert torch.equal(end.other.weight, TwoHeads().other.weight)
    grads_QP = flat_gradients(end, asked, data(QUERIES, 2), training.layout, method="loop")
    scores_QN = unrolled(trace, grads_QP, ROWS)

    def losses(weights_N):
        model = TwoHeads()
        trained(model, OPTIMIZERS[name], steps, weights_N)
        with torch.no_grad():
            return asked(model, data(QUERIES, 2))

    row = int(steps[0].rows[0])
    up, down = (torch.ones(ROWS, dtype=torch.float64) for _ in range(2))
    up[row] += shift
    down[row] -= shift
    wanted_Q = -(losses(up) - losses(down)) / (2 * shift)
    torch.testing.assert_close(scores_QN[:, row], wanted_Q, rtol=1e-4, atol=1e-9)
