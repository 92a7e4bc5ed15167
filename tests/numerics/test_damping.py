"""The damping that SGD's steps stand for, against the steps themselves in closed form."""

import pytest
import torch

from distinf import sgd_damping
from distinf.errors import InputError

CURVATURES = torch.logspace(-4, 2, 400, dtype=torch.float64)


def steps_of_sgd(curvature, rates, momentum=0.0, dampening=0.0, decay=0.0):
    """How far torch's SGD goes towards the minimum 1 of a parabola from 0, over its curvature."""
    weight = torch.zeros_like(curvature).requires_grad_()
    optimizer = torch.optim.SGD(
        [weight], lr=1.0, momentum=momentum, dampening=dampening, weight_decay=decay
    )
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (curvature * (weight - 1.0).square() / 2).sum().backward()
        optimizer.step()
    return weight.detach() / curvature


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.5)])
def test_it_inverts_what_the_steps_do_to_a_curvature(momentum, dampening):
    rates = [1e-3 * (1 + step % 3) for step in range(4000)]
    damping = sgd_damping(rates, momentum=momentum, dampening=dampening)
    ratio = steps_of_sgd(CURVATURES, rates, momentum, dampening) * (CURVATURES + damping)
    assert 0.99 < float(ratio.min()) < float(ratio.max()) < 1.31
    assert float(ratio.max()) > 1.28  # Ali, Kolter and Tibshirani's constant is 1.2985
    wrong = steps_of_sgd(CURVATURES, rates, momentum, dampening) * (CURVATURES + 4 * damping)
    assert float(wrong.max()) > 1.5


def test_weight_decay_is_added():
    rates = [1e-2] * 2000
    damping = sgd_damping(rates, weight_decay=0.3)
    assert damping == pytest.approx(1 / 20 + 0.3)
    ratio = steps_of_sgd(CURVATURES, rates, decay=0.3) * (CURVATURES + damping)
    assert 0.99 < float(ratio.min()) < float(ratio.max()) < 1.31


def test_what_tells_of_no_training_is_refused():
    for rates in ([], [0.0], [float("inf")], [float("nan")]):
        with pytest.raises(InputError, match="tells of no training; set a damping"):
            sgd_damping(rates)
    with pytest.raises(InputError, match=r"momentum 1.0 and .* must lie in \[0, 1\)"):
        sgd_damping([0.1], momentum=1.0)
