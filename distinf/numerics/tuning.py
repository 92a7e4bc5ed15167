"""Influence that is measured: fine-tune on one row, and see what that does to every other loss.

Matelsky, Ungar and Kording, Empirical influence functions to understand the logic of fine-tuning
(2024), Eq. 4, in our sign: the loss before minus the loss after, > 0 where training on the row
lowers it. To first order it is minus the losses' derivative along the step (Eq. 2 and 3 there).
Shape legend: E rows that are evaluated, P pieces of them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.func import jvp

from distinf.numerics.batches import Batch
from distinf.numerics.curvature import Parameters
from distinf.numerics.losses import Loss, applied, per_sample
from distinf.numerics.parameters import Layout
from distinf.numerics.updates import State, updates_of

FOLLOWED = 1_000_000  # entries whose steps are made in float64 too, about: all of a small model's
Losses = Callable[[Parameters], Tensor]  # of the parameters that are tuned -> fp64 [E]
Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
Optimizers = dict[str, torch.optim.Optimizer]  # by parameter
LATER = "modified by an inplace operation"  # of a weight that is read after its gradient is there


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning came to.

    parameters  after it; the next fine-tuning is in the same memory
    asked       |step|^2 of the step that was asked for, in float64, over the entries followed
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


def of_pieces(losses_P: Tensor, shares_EP: np.ndarray) -> Tensor:
    """fp64 [E]: of rows, the sum of their pieces' by shares [E, P]; one that is not finite is told
    to no row that does not have it."""
    rows, pieces = (torch.from_numpy(each).to(losses_P.device) for each in np.nonzero(shares_EP))
    shares = torch.from_numpy(shares_EP[shares_EP != 0]).to(losses_P)
    found = losses_P.new_zeros(len(shares_EP))
    return found.index_add(0, rows, losses_P[pieces] * shares)


class Tuning:
    """Fine-tuning, again and again from the same `start`, which stays.

    Each parameter has an optimizer of its own, and takes its step as soon as its gradient is there,
    after all of its uses; the gradient is then let go, so that those of all never exist together.
    Nothing that an optimizer does may go by several parameters (a norm of all gradients).
    """

    def __init__(self, start: Parameters, optimizer: Optimizer) -> None:
        self.start, self._optimizer = start, optimizer
        self._used: tuple[Parameters, Optimizers] | None = None
        self._at_once = True

    def on(self, each: Iterable[Losses]) -> Tuned:
        """A step on the mean of `each` losses, by optimizers that have not stepped before. Where
        they are a list of one, an optimizer's state is let go with the gradient."""
        return self._on(iter(each), isinstance(each, list) and len(each) == 1)

    def _on(self, each: Iterator[Losses], once: bool) -> Tuned:
        now, optimizers = self._restored()
        followed = _Followed(self.start, optimizers, now)

        def step(name: str, value: Tensor) -> None:
            followed.ask(name, value)
            optimizers[name].step()
            increment_version(value)  # fused steps do not, and what is saved would not be missed
            value.grad = None
            if once:
                optimizers[name].state.clear()

        for number, losses in enumerate(each):
            try:
                _descend(losses, now, step, self._at_once)
            except RuntimeError as error:
                if number or not self._at_once or LATER not in str(error):
                    raise
                self._at_once = False
                return self._on(chain([losses], each), once)
        return Tuned({name: v.detach() for name, v in now.items()}, *followed.compared(now))

    @torch.no_grad()
    def _restored(self) -> tuple[Parameters, Optimizers]:
        """The start, and no step before: memory that is used again costs less than new."""
        if self._used is None:
            now = {name: v.detach().clone().requires_grad_() for name, v in self.start.items()}
            self._used = now, {name: self._optimizer([value]) for name, value in now.items()}
            return self._used
        now, optimizers = self._used
        for name, value in self.start.items():
            now[name].copy_(value)
            now[name].grad = None
        for optimizer in optimizers.values():
            if isinstance(optimizer, torch.optim.SGD):  # a momentum of 0 is not the same as none
                optimizer.state.clear()
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()
        return now, optimizers


def _descend(
    losses: Losses, now: Parameters, step: Callable[[str, Tensor], None], at_once: bool
) -> None:
    """One step of each parameter: in the backward pass where `at_once`, else after it."""
    waiting = dict(now)

    def arrived(name: str, value: Tensor) -> None:
        step(name, waiting.pop(name))

    hooks = [
        value.register_post_accumulate_grad_hook(partial(arrived, name))
        for name, value in now.items()
        if at_once
    ]
    try:
        losses(now).mean().backward(inputs=[*now.values()])
    finally:
        for hook in hooks:
            hook.remove()
    for name, value in waiting.items():
        if value.grad is not None:  # else the losses do not depend on it, and it stays as it is
            step(name, value)


class _Followed:
    """Every so many entries of the parameters, and in float64 what steps are asked of them."""

    def __init__(self, start: Parameters, optimizers: Optimizers, now: Parameters):
        self._stride = max(1, sum(v.numel() for v in start.values()) // FOLLOWED)
        self._updates = {n: updates_of(optimizers[n], {n: value})[n] for n, value in now.items()}
        self._rate = {name: o.param_groups[0]["lr"] for name, o in optimizers.items()}
        self._start = {name: self._entries(value) for name, value in start.items()}
        self._asked = {name: torch.zeros_like(values) for name, values in self._start.items()}
        self._state: dict[str, State] = {
            name: (torch.zeros_like(values),) * self._updates[name][1]
            for name, values in self._start.items()
        }
        self._steps = dict.fromkeys(start, 0)

    def _entries(self, values: Tensor) -> Tensor:
        return values.detach().reshape(-1)[:: self._stride].double()

    def ask(self, name: str, parameter: Tensor) -> None:
        """Of its step that is about to be taken, by its gradient."""
        assert parameter.grad is not None
        value, slope = self._entries(parameter), self._entries(parameter.grad)
        exact, self._state[name] = self._updates[name][0](
            value, slope, self._state[name], self._rate[name], self._steps[name]
        )
        self._steps[name] += 1
        self._asked[name] += exact - value

    def compared(self, now: Parameters) -> tuple[float, float]:
        """|asked|^2, and its product with what was taken."""
        square = along = 0.0
        for name, asked in self._asked.items():
            square += float(asked.square().sum())
            along += float((asked * (self._entries(now[name]) - self._start[name])).sum())
        return square, along


def first_order(losses: Losses, start: Parameters, end: Parameters) -> Tensor:
    """fp64 [E]: what going from start to end would do, were the losses linear; > 0 lowers them.

    `end` becomes the step, in its own memory.
    """
    step = {name: end[name].sub_(value) for name, value in start.items()}
    slopes: Tensor = jvp(losses, (start,), (step,))[1]
    return -slopes


def parameters_of(model: nn.Module, layout: Layout) -> Parameters:
    """Those that are tuned, as they stand, in float32 at least: a step of a lower precision would
    be rounded away."""
    found = layout.parameters(model)
    return {name: p if p.dtype == torch.float64 else p.float() for name, p in found.items()}
