"""Influence through EK-FAC: each layer's damped Fisher matrix in a Kronecker-factored eigenbasis.

Grosse et al., Studying Large Language Model Generalization with Influence Functions. The factors
come from labels sampled from the model, so that no training gradient enters but by its product.

Shape legend: Q queries, N training samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.ekfac import EkFac
from distinf.numerics.estimators.register import Estimator
from distinf.numerics.sparse import SparseRows, pair_products


@dataclass(frozen=True)
class EkFacSettings:
    """damping: lambda of every layer, > 0; None takes a tenth of each layer's mean eigenvalue."""

    damping: float | None = None

    def __post_init__(self) -> None:
        if self.damping is not None and not (isfinite(self.damping) and self.damping > 0):
            raise ValueError(f"damping={self.damping} must be a finite number > 0, or null")


def scores_of_blocks(
    train: Mapping[str, Tensor | SparseRows],
    query: Mapping[str, Tensor | SparseRows],
    settings: EkFacSettings,
    curvature: Any,
) -> dict[str, Tensor]:
    """{parameter: fp64 [Q, N]}: ((F + lambda)^-1 g_q) . g_i, a layer's being the sum over its own.

    InputError where `curvature` is no EkFac, or one of other parameters.
    """
    if not isinstance(curvature, EkFac):
        raise InputError(
            "estimator 'ekfac' needs curvature=distinf.ekfac(...), and gradients by parameter name"
        )
    solved = curvature.solve(query, settings.damping)
    return {name: pair_products(solved[name], rows) for name, rows in train.items()}


ESTIMATOR = Estimator("ekfac", EkFacSettings, scores_of_blocks, needs="factors")
