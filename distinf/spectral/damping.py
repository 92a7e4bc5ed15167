"""The damping of a run: as it is set, or as the training that was done has it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distinf.numerics.damping import sgd_damping
from distinf.numerics.estimators.arnoldi import DEFAULT_DAMPING_FRACTION, default_damping
from distinf.spectral.session import Session


@dataclass(frozen=True)
class Damping:
    """value: lambda. source: where it comes from, in words; "" where it was set."""

    value: float
    source: str = ""


def damping_of(session: Session, values_K: torch.Tensor) -> Damping:
    """scores.damping; where it is null, what the training steps of SGD stand for (`sgd_damping`).

    Another optimizer's steps, and no step at all, give no such rule: then it is 1 % of the largest
    of the Ritz values `values_K`, as `default_damping` has it.
    """
    given = session.settings.scores.damping
    if given is not None:
        return Damping(given)
    found: Damping | str = session.cached("damping", lambda: _by_training(session))
    if isinstance(found, Damping):
        return found
    largest = f"{100 * DEFAULT_DAMPING_FRACTION:g} % of the largest Ritz value's size"
    return Damping(default_damping(values_K), f"{largest}: {found}")


def _by_training(session: Session) -> Damping | str:
    """What the run's own steps stand for, or why they stand for none."""
    train = session.settings.train
    if not train.steps:
        return "no step was trained here"
    parameters = session.fresh_model().parameters()
    optimizer = session.task.optimizer(parameters, train.lr, train.weight_decay)
    if not isinstance(optimizer, torch.optim.SGD):
        return f"the steps of {type(optimizer).__name__} give no rule"
    wanted = ("momentum", "dampening", "weight_decay")
    groups: list[Mapping[str, Any]] = [
        {name: float(group[name]) for name in wanted} for group in optimizer.param_groups
    ]
    if any(group != groups[0] for group in groups):
        return "SGD has other momentum or weight decay for some of the parameters"
    own = groups[0]
    value = sgd_damping(map(train.rate, range(train.steps)), **own)
    momentum = f", momentum {own['momentum']:g}" if own["momentum"] else ""
    decay = f" and the weight decay {own['weight_decay']:g}" if own["weight_decay"] else ""
    length = f"1 / the sum of the learning rates of {train.steps:,} steps of SGD{momentum}"
    return Damping(value, f"{length}{decay}")
