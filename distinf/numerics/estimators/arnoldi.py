"""Influence through the dominant eigenpairs of the mean Hessian or Gauss-Newton matrix.

Shape legend: Q queries, N training samples, P parameters, K Ritz pairs.
"""

from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from distinf.numerics import variants
from distinf.numerics.krylov import RitzPairs
from distinf.numerics.variants import (
    Complement,
    Coordinates,
    Policy,
    Scaling,
    Spectrum,
    Variant,
    VariantScores,
)

# Of the largest Ritz value's magnitude.
DEFAULT_DAMPING_FRACTION = 1e-2


@dataclass(frozen=True)
class ArnoldiScoreSettings:
    """damping: lambda itself; None takes 1 % of the largest Ritz value's magnitude.
    complement: what the operator is outside the pairs, as in variants.spectrum.
    variant: denominator. scaling: of newfluence. policy: for negative and tiny Ritz values."""

    damping: float | None = None
    variant: Variant = "classic"
    scaling: Scaling = "mean"
    policy: Policy = "refuse"
    complement: Complement = "mean"

    def __post_init__(self) -> None:
        if self.damping is not None and not (isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping={self.damping} must be a finite number >= 0, or null")


def default_damping(values_K: Tensor) -> float:
    """1 % of the largest magnitude among the Ritz values."""
    return DEFAULT_DAMPING_FRACTION * float(values_K.abs().max())


def spectrum_of(pairs: RitzPairs, settings: ArnoldiScoreSettings) -> Spectrum:
    """The pairs' damped spectrum after the settings' policy (InputError where it refuses)."""
    damping = settings.damping if settings.damping is not None else default_damping(pairs.values)
    return variants.spectrum(
        pairs.values,
        damping,
        dim=pairs.vectors.shape[1],
        trace=pairs.trace,
        policy=settings.policy,
        complement=settings.complement,
    )


def scores(
    coordinates: Coordinates,
    spectrum: Spectrum,
    settings: ArnoldiScoreSettings | None = None,
    *,
    count: int | None = None,
    solved_dots_QN: Tensor | None = None,
) -> VariantScores:
    """Scores from stored coordinates, as variants.scores, under the settings' variant."""
    settings = settings or ArnoldiScoreSettings()
    return variants.scores(
        coordinates,
        spectrum,
        settings.variant,
        scaling=settings.scaling,
        count=count,
        solved_dots_QN=solved_dots_QN,
    )
