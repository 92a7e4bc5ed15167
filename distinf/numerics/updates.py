"""One step of an optimizer as a function, so that it can be differentiated.

torch's optimizers change parameters in place, which autograd cannot follow. Here SGD, Adam and
AdamW are functions of a parameter, its gradient and the state, each by torch's own documentation.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from distinf.errors import InputError

State = tuple[Tensor, ...]  # of one parameter


class Update(Protocol):
    """(parameter, gradient, state, learning rate, steps before this one) -> the next two.

    Every entry is changed by itself. Before the first step the state is zeros.
    """

    def __call__(
        self, value: Tensor, grad: Tensor, state: State, rate: float, number: int
    ) -> tuple[Tensor, State]: ...


def updates_of(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, tuple[Update, int]]:
    """By parameter its update and how many tensors of state it has, as `optimizer` is set up.

    InputError for another optimizer than torch's SGD, Adam and AdamW, or one with `maximize` or
    `amsgrad`, and for a parameter that it does not step.
    """
    name = type(optimizer).__name__
    if type(optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        raise InputError(f"{name} cannot be unrolled; SGD, Adam and AdamW of torch.optim can")
    found = {}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in parameters.items():
        if id(parameter) not in groups:
            raise InputError(f"the optimizer has not the parameter {key!r}, so it is not trained")
        group = groups[id(parameter)]
        odd = [flag for flag in ("maximize", "amsgrad") if group.get(flag)]
        if odd:
            raise InputError(f"{name} with {odd[0]} cannot be unrolled; leave it out")
        found[key] = _sgd_of(group) if name == "SGD" else _adam_of(group, name == "AdamW")
    return found


def _sgd_of(group: Mapping[str, Any]) -> tuple[Update, int]:
    wanted = ("momentum", "dampening", "weight_decay", "nesterov")
    how = {name: group[name] for name in wanted}
    return partial(sgd, **how), int(how["momentum"] != 0)


def _adam_of(group: Mapping[str, Any], decoupled: bool) -> tuple[Update, int]:
    how = {name: group[name] for name in ("betas", "eps", "weight_decay")}
    return partial(adam, **how, decoupled=group.get("decoupled_weight_decay", decoupled)), 2


def sgd(
    value: Tensor, grad: Tensor, state: State, rate: float, number: int, *,
    momentum: float, dampening: float, weight_decay: float, nesterov: bool,
) -> tuple[Tensor, State]:  # fmt: skip
    """An Update: torch.optim.SGD's."""
    if weight_decay:
        grad = grad + weight_decay * value
    if momentum:
        mean = momentum * state[0] + (1 - dampening) * grad if number else grad
        grad, state = grad + momentum * mean if nesterov else mean, (mean,)
    return value - rate * grad, state


def adam(
    value: Tensor, grad: Tensor, state: State, rate: float, number: int, *,
    betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool,
) -> tuple[Tensor, State]:  # fmt: skip
    """An Update: torch.optim.Adam's, or AdamW's where `decoupled`.

    Where a second moment is 0, as before any gradient, its root has the derivative 0: the gradient
    is 0 there too, and the step's derivative by it is that of its numerator.
    """
    if decoupled:
        value = value * (1 - rate * weight_decay)
    elif weight_decay:
        grad = grad + weight_decay * value
    first = betas[0] * state[0] + (1 - betas[0]) * grad
    second = betas[1] * state[1] + (1 - betas[1]) * grad * grad
    seen = second > 0
    root = torch.where(seen, torch.where(seen, second, 1.0).sqrt(), 0.0)
    denominator = root / (1 - betas[1] ** (number + 1)) ** 0.5 + eps
    rate = rate / (1 - betas[0] ** (number + 1))
    return value - rate * first / denominator, (first, second)
