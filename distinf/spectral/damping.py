"""The damping of a run: as it is set, or as the training that was done has it; and its refusal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from distinf.errors import InputError
from distinf.numerics.damping import sgd_damping
from distinf.numerics.estimators.arnoldi import DEFAULT_DAMPING_FRACTION, default_damping
from distinf.numerics.preconditioning import is_preconditioned
from distinf.numerics.variants import RITZ_PRECISION, SAFE_FRACTION, spectrum
from distinf.spectral.session import Session


@dataclass(frozen=True)
class Damping:
    """value: lambda. source: where it comes from, in words; "" where it was set. decay: the part
    of it that is SGD's weight decay."""

    value: float
    source: str = ""
    decay: float = 0.0


def damping_of(session: Session, values_K: torch.Tensor) -> Damping:
    """scores.damping; where it is null, what the training steps of SGD stand for (`sgd_damping`).

    Another optimizer's steps, and no step at all, give no such rule: then it is 1 % of the largest
    of the Ritz values `values_K`, as `default_damping` has it. A rule's damping is at least what
    float32 can tell from 0 beside the largest Ritz value.
    """
    given = session.settings.scores.damping
    if given is not None:
        return Damping(given)
    found: Damping | str = session.cached("damping", lambda: _by_training(session))
    if isinstance(found, Damping):
        least = 2 * RITZ_PRECISION / SAFE_FRACTION * float(values_K.abs().max())
        raised = f"raised to what float32 can tell from 0, for less is by {found.source}"
        return found if found.value >= least else Damping(least, raised)
    largest = f"{100 * DEFAULT_DAMPING_FRACTION:g} % of the largest Ritz value's size"
    return Damping(default_damping(values_K), f"{largest}: {found}")


def check(session: Session) -> None:
    """InputError for a scores.filter of training where training took no steps that it is of."""
    settings = session.settings
    name = settings.scores.filter
    if name == "damped":
        return
    why = _by_training(session)
    if isinstance(why, str):
        steps = {"unrolled": "SGD", "preconditioned": "Adam, AdamW or LAMB"}
        other = {"unrolled": "preconditioned", "preconditioned": "unrolled"}
        raise InputError(
            f"scores.filter: {name} is what steps of {steps[name]} do to a direction, and {why}; "
            f"set scores.filter to damped, or to {other[name]} if that is what it was trained by"
        )
    if settings.scores.damping == 0:
        raise InputError(f"scores.filter: {name} takes 1 / scores.damping, which is 0; set null")
    if settings.curvature.refine:
        raise InputError(
            "curvature.refine: a refined target is one of the damped inverse, not of scores.filter "
            f"{name}; leave curvature.refine null, or set scores.filter to damped"
        )


def refuse_negative(session: Session, values_K: torch.Tensor) -> None:
    """InputError for Ritz values that scores.negative refuses; what is outside is not looked at."""
    if session.settings.scores.policy == "refuse":
        with naming_settings():
            damping = damping_of(session, values_K).value
            spectrum(values_K, damping, dim=len(values_K), policy="refuse", complement="none")


@contextmanager
def naming_settings() -> Iterator[None]:
    """An InputError of the operator names the settings, and how to go on."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"scores: {error} (scores.damping, scores.negative; then run again with "
            "--accept scores.damping or --accept scores.negative)"
        ) from None


def _by_training(session: Session) -> Damping | str:
    """What the run's own steps stand for, or why they stand for none."""
    train = session.settings.train
    if not train.steps:
        return "no step was trained here"
    parameters = session.fresh_model().parameters()
    optimizer = session.task.optimizer(parameters, train.lr, train.weight_decay)
    kind, rates = type(optimizer).__name__, map(train.rate, range(train.steps))
    length = f"1 / the sum of the learning rates of {train.steps:,} steps of {kind}"
    if session.settings.scores.filter == "preconditioned":
        if not is_preconditioned(optimizer):
            return f"{kind} keeps no second moments that are known"
        return Damping(sgd_damping(rates), length)  # the operator has the decay in it
    if not isinstance(optimizer, torch.optim.SGD):
        return f"the steps of {kind} give no rule"
    wanted = ("momentum", "dampening", "weight_decay")
    groups: list[Mapping[str, Any]] = [
        {name: float(group[name]) for name in wanted} for group in optimizer.param_groups
    ]
    if any(group != groups[0] for group in groups):
        return "SGD has other momentum or weight decay for some of the parameters"
    own = groups[0]
    value = sgd_damping(rates, **own)
    momentum = f", momentum {own['momentum']:g}" if own["momentum"] else ""
    decay = f" and the weight decay {own['weight_decay']:g}" if own["weight_decay"] else ""
    return Damping(value, f"{length}{momentum}{decay}", own["weight_decay"])
