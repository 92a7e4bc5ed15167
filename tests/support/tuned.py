"""Fine-tuning as torch does it by default: all gradients, then a step of all parameters."""

from collections.abc import Callable, Sequence

import torch

from distinf.numerics.curvature import Parameters
from distinf.numerics.tuning import Losses


def all_together(
    start: Parameters, optimizer: Callable[..., torch.optim.Optimizer], each: Sequence[Losses]
) -> Parameters:
    """The parameters after a step on the mean of each of these losses."""
    now = {name: value.clone().requires_grad_() for name, value in start.items()}
    stepping = optimizer([*now.values()])
    for losses in each:
        slopes = torch.autograd.grad(losses(now).mean(), [*now.values()], allow_unused=True)
        for value, slope in zip(now.values(), slopes, strict=True):
            value.grad = slope
        stepping.step()
    return now
