"""Influence that is measured: fine-tune on one row, and see what that does to every other loss.

Matelsky, Ungar and Kording, Empirical influence functions to understand the logic of fine-tuning
(2024), Eq. 4, in our sign: the loss before minus the loss after, > 0 where training on the row
lowers it. To first order it is minus the losses' derivative along the step (Eq. 2 and 3 there).
Shape legend: E rows that are evaluated.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from distinf.numerics.batches import Batch
from distinf.numerics.curvature import Loss, Parameters, applied, per_sample
from distinf.numerics.parameters import Layout
from distinf.numerics.updates import State, Update

Updates = Mapping[str, tuple[Update, int]]
Losses = Callable[[Parameters], Tensor]  # of the parameters that are tuned -> fp64 [E]


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning came to.

    parameters  after it
    asked       |step|^2 of the step that was asked for, in float64
    along       its product with the step that was taken
    """

    parameters: Parameters
    asked: float
    along: float

    @property
    def taken(self) -> float:
        """How much of the step was taken: 1, less where rounding the parameters swallows it, NaN
        where none was asked for."""
        return self.along / self.asked if self.asked > 0 else math.nan


def losses_of(model: nn.Module, loss: Loss, batches: Sequence[Batch]) -> Losses:
    """The losses of all rows of `batches`, in their order, as a function of the parameters."""
    values = applied(model, loss)

    def losses(parameters: Parameters) -> Tensor:
        return torch.cat([per_sample(values(parameters, b), b).double() for b in batches])

    return losses


def tuned(each: Iterable[Losses], start: Parameters, updates: Updates, rate: float) -> Tuned:
    """An optimizer (updates.py) from `start`, which stays: a step on the mean of `each` losses."""
    now = start
    state: dict[str, State] = {k: (torch.zeros_like(v),) * updates[k][1] for k, v in start.items()}
    asked = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in start.items()}
    for number, losses in enumerate(each):
        grads = grad(partial(_mean, losses))(now)
        after = {}
        for name, (update, _) in updates.items():
            before = (now[name], grads[name], state[name])
            after[name], state[name] = update(*before, rate, number)
            wide = now[name].double()
            exact, _ = update(
                wide, grads[name].double(), tuple(s.double() for s in before[2]), rate, number
            )
            asked[name] += exact - wide
        now = after
    square = sum(float(step.square().sum()) for step in asked.values())
    along = sum(
        float((step * (now[name].double() - start[name].double())).sum())
        for name, step in asked.items()
    )
    return Tuned(now, square, along)


def _mean(losses: Losses, parameters: Parameters) -> Tensor:
    return losses(parameters).mean()


def first_order(losses: Losses, start: Parameters, end: Parameters) -> Tensor:
    """fp64 [E]: what going from start to end would do, were the losses linear; > 0 lowers them."""
    step = {name: end[name] - start[name] for name in start}
    slopes: Tensor = jvp(losses, (start,), (step,))[1]
    return -slopes


def parameters_of(model: nn.Module, layout: Layout) -> Parameters:
    """Those that are tuned, as they stand, in float32 at least: a step of a lower precision would
    be rounded away."""
    found = layout.parameters(model)
    return {name: p.clone() if p.dtype == torch.float64 else p.float() for name, p in found.items()}
