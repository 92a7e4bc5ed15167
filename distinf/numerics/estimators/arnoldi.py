"""Influence through the dominant eigenpairs of the mean Hessian or Gauss-Newton matrix.

Shape legend: Q queries, N training samples, P parameters, K Ritz pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, get_args

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics import variants
from distinf.numerics.estimators.register import Estimator
from distinf.numerics.krylov import RitzPairs
from distinf.numerics.sparse import SparseRows
from distinf.numerics.variants import (
    Complement,
    Coordinates,
    Filter,
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
    complement: what the operator is outside the pairs, as in variants.spectrum; None takes
    gradients where the pairs know what those see there, else mean.
    variant: denominator. scaling: of newfluence. policy: for negative and tiny Ritz values.
    filter: damped, or variants.unrolled with T = 1 / damping."""

    damping: float | None = None
    variant: Variant = "classic"
    scaling: Scaling = "mean"
    policy: Policy = "refuse"
    complement: Complement | None = None
    filter: Filter = "damped"

    def __post_init__(self) -> None:
        if self.damping is not None and not (isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping={self.damping} must be a finite number >= 0, or null")
        if self.filter not in get_args(Filter):
            raise ValueError(f"filter={self.filter!r} is unknown; use damped or unrolled")


def default_damping(values_K: Tensor) -> float:
    """1 % of the largest magnitude among the Ritz values."""
    return DEFAULT_DAMPING_FRACTION * float(values_K.abs().max())


def spectrum_of(pairs: RitzPairs, settings: ArnoldiScoreSettings) -> Spectrum:
    """The pairs' damped spectrum after the settings' policy (InputError where it refuses)."""
    damping = settings.damping if settings.damping is not None else default_damping(pairs.values)
    made = variants.spectrum(
        pairs.values,
        damping,
        dim=pairs.vectors.shape[1],
        trace=pairs.trace,
        policy=settings.policy,
        complement=settings.complement or ("mean" if pairs.seen is None else "gradients"),
        seen=pairs.seen,
    )
    return variants.unrolled(made) if settings.filter == "unrolled" else made


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


def scores_of_blocks(
    train: Mapping[str, Tensor | SparseRows],
    query: Mapping[str, Tensor | SparseRows],
    settings: ArnoldiScoreSettings,
    curvature: Any,
) -> dict[str, Tensor]:
    """{block: fp64 [Q, N]}, or {"all": [Q, N]} with one curvature over all blocks in train's order.

    InputError where `curvature` is no RitzPairs (or one per block), or one of other parameters.
    """
    rows = {name: dense_rows("arnoldi", name, block) for name, block in train.items()}
    queries = {name: dense_rows("arnoldi", name, query[name]) for name in train}
    pairs = curvature or {}
    if isinstance(curvature, RitzPairs):
        pairs = {"all": curvature}
        rows, queries = ({"all": torch.cat([*given.values()], 1)} for given in (rows, queries))
    return {
        name: _scores_of_block(name, rows[name], queries[name], settings, pairs.get(name))
        for name in rows
    }


def dense_rows(estimator: str, name: str, block: Tensor | SparseRows) -> Tensor:
    """The block in float64; InputError for sparse rows, which the estimator does not take."""
    if isinstance(block, SparseRows):
        raise InputError(
            f"{name}: estimator '{estimator}' takes no sparse rows; leave the embedding out, or "
            "give its .dense()"
        )
    return block.double()


def _scores_of_block(
    name: str, train_NP: Tensor, query_QP: Tensor, settings: ArnoldiScoreSettings, pairs: Any
) -> Tensor:
    if not isinstance(pairs, RitzPairs):
        raise InputError(f"{name}: estimator 'arnoldi' needs curvature=distinf.arnoldi(...) pairs")
    if pairs.vectors.shape[1] != train_NP.shape[1]:
        raise InputError(
            f"{name}: the curvature acts on {pairs.vectors.shape[1]} parameters, but gradients "
            f"have {train_NP.shape[1]}; compute both over the same blocks"
        )
    coordinates = Coordinates.of(train_NP, query_QP, pairs.vectors)
    return scores(coordinates, spectrum_of(pairs, settings), settings).scores_QN


ESTIMATOR = Estimator("arnoldi", ArnoldiScoreSettings, scores_of_blocks, needs="pairs")
