"""Cancellation of gradients: how much of their size is lost when they are added up.

1 means that all gradients of a parameter point the same way; infinity that their sum is zero.
Shape legend: N samples, P parameters.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distinf.errors import InputError


@dataclass(frozen=True)
class Cancellation:
    """One group of parameters; `least`, `median` and `most` are over those with a gradient that
    is not zero in some sample."""

    l1: float  # sum of |g| over samples and parameters / sum over parameters of |sum of g|
    least: float
    median: float
    most: float


def cancellation(sum_abs_P: Tensor, sum_P: Tensor) -> Cancellation:
    """The cancellation effect C of Vitel and Chhabra, Eq. 7, in its L1 form, and per parameter.

    sum_abs_P: sum over samples of |g|; sum_P: sum over samples of g, of either sign. A parameter
    that no sample has a gradient for (an embedding row never used) says nothing and is left out.
    """
    sum_abs_P = sum_abs_P.detach().to("cpu", torch.float64).flatten()
    sum_P = sum_P.detach().to("cpu", torch.float64).flatten().abs()
    if sum_abs_P.shape != sum_P.shape:
        raise InputError(f"sums of {len(sum_abs_P)} and {len(sum_P)} parameters do not match")
    if not bool(torch.isfinite(sum_abs_P).all() and torch.isfinite(sum_P).all()):
        raise InputError("sums of gradients are not finite; drop the quarantined samples first")
    active_P = sum_abs_P > 0
    if not bool(active_P.any()):
        return Cancellation(math.nan, math.nan, math.nan, math.nan)
    above_P, below_P = sum_abs_P[active_P], sum_P[active_P]
    each_P, _ = (above_P / below_P).sort()
    count = len(each_P)
    return Cancellation(
        l1=_ratio(float(above_P.sum()), float(below_P.sum())),
        least=float(each_P[0]),
        median=float(each_P[(count - 1) // 2] + each_P[count // 2]) / 2,
        most=float(each_P[-1]),
    )


def norm_cancellation(norms_N: Tensor, sum_P: Tensor) -> float:
    """C in its norm form: sum of ‖g_i‖ over ‖sum of g_i‖; nan if every gradient is zero."""
    lengths = float(norms_N.detach().double().sum())
    return _ratio(lengths, float(sum_P.detach().double().norm()))


def _ratio(above: float, below: float) -> float:
    if below > 0:
        return above / below
    return math.inf if above > 0 else math.nan
