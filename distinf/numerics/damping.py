"""The damping that the training which was done stands for."""

from collections.abc import Iterable
from math import fsum, isfinite

from distinf.errors import InputError


def sgd_damping(
    rates: Iterable[float],
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
) -> float:
    """lambda = 1 / sum of the learning rates of SGD's steps, and the weight decay.

    What training of that length does to a direction of curvature theta, the filter
    (1 - exp(-theta / lambda)) / theta, is between 1 and 1.3 times 1 / (theta + lambda) (Ali, Kolter
    and Tibshirani 2019, A Continuous-Time View of Early Stopping for Least Squares). Under momentum
    m a gradient moves the weights by (1 - dampening) / (1 - m) of its rate in the end. The loss is
    a mean over samples, without the decay.
    """
    if not (0 <= momentum < 1 and 0 <= dampening < 1 and weight_decay >= 0):
        raise InputError(
            f"momentum {momentum} and dampening {dampening} must lie in [0, 1), and weight_decay "
            f"{weight_decay} be 0 or more"
        )
    length = fsum(rates) * (1 - dampening) / (1 - momentum)
    if not (isfinite(length) and length > 0):
        raise InputError(
            f"the learning rates sum to {length:g}, which tells of no training; set a damping"
        )
    return 1.0 / length + weight_decay
