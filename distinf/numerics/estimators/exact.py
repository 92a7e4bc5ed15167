"""Influence through an exact solve of the mean Hessian: the yardstick for small problems.

Shape legend: Q queries, N training samples, P parameters, R rows solved for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.estimators.arnoldi import default_damping, dense_rows
from distinf.numerics.estimators.register import Estimator
from distinf.numerics.krylov import Matvec, arnoldi
from distinf.numerics.solve import conjugate_gradients, indefinite
from distinf.numerics.sparse import SparseRows
from distinf.numerics.variants import Scaling, Variant, apply_variant

MOST = 100_000  # parameters
DENSE = 2_000  # parameters up to which a product's matrix is made, by as many products
ASYMMETRY = 1e-4  # of the largest entry: what float32 products leave
LARGEST_STEPS = 30  # Krylov steps for the largest eigenvalue, of which the default damping is 1 %


@dataclass(frozen=True)
class ExactSettings:
    """damping: lambda itself; None takes 1 % of the largest eigenvalue's magnitude.
    variant: denominator. scaling: of newfluence. tolerance: on |(H + damping) x - v| / |v|, and
    steps: most products of one solve, where the matrix is not made."""

    damping: float | None = None
    variant: Variant = "classic"
    scaling: Scaling = "mean"
    tolerance: float = 1e-8
    steps: int = 10_000

    def __post_init__(self) -> None:
        if self.damping is not None and not (isfinite(self.damping) and self.damping >= 0):
            raise ValueError(f"damping={self.damping} must be a finite number >= 0, or null")
        if not 0 < self.tolerance < 1 or self.steps < 1:
            raise ValueError(
                f"tolerance={self.tolerance} must lie in (0, 1), steps={self.steps} be at least 1"
            )


def scores_of_blocks(
    train: Mapping[str, Tensor | SparseRows],
    query: Mapping[str, Tensor | SparseRows],
    settings: ExactSettings,
    curvature: Any,
) -> dict[str, Tensor]:
    """{"all": fp64 [Q, N]}: g_q . (H + damping)^-1 g_i over all blocks in train's order.

    `curvature` is H: the matrix [P, P] (then solved by Cholesky), or its product with a vector (up
    to DENSE parameters made into the matrix; else conjugate gradients, a solve for each query, or
    for each training sample under a variant that is relative to it). InputError where it is
    neither, or H + damping is not positive definite.
    """
    train_NP, query_QP = (
        torch.cat([dense_rows("exact", name, given[name]) for name in train], 1)
        for given in (train, query)
    )
    operator = _operator(curvature, train_NP.shape[1])
    damping = settings.damping
    if damping is None:
        damping = _default_damping(operator, train_NP.shape[1])
    if settings.variant == "classic":
        return {"all": _solved(operator, query_QP, damping, settings) @ train_NP.T}
    solved_NP = _solved(operator, train_NP, damping, settings)
    found = apply_variant(
        query_QP @ solved_NP.T, (solved_NP * train_NP).sum(1), solved_NP.square().sum(1),
        settings.variant, scaling=settings.scaling, count=len(train_NP),
    )  # fmt: skip
    return {"all": found.scores_QN}


def _operator(curvature: Any, size: int) -> tuple[Tensor | None, Matvec]:
    """H's matrix [P, P] where it is given or small, and its product; InputError where neither."""
    if size > MOST:
        raise InputError(
            f"estimator 'exact' solves for at most {MOST:,} parameters, and there are {size:,}; "
            "take blocks of them, or estimator 'arnoldi'"
        )
    if not (isinstance(curvature, Tensor) or callable(curvature)):
        raise InputError(
            "estimator 'exact' needs curvature=H, the mean Hessian [P, P] or v -> H v, over "
            "exactly these training samples"
        )
    if not isinstance(curvature, Tensor):
        if size > DENSE:
            return None, curvature
        eye_PP = torch.eye(size, dtype=torch.float64)
        curvature = torch.stack([curvature(unit_P).double() for unit_P in eye_PP])
    matrix_PP = curvature.double()
    if matrix_PP.shape != (size, size):
        raise InputError(
            f"estimator 'exact': curvature is {tuple(matrix_PP.shape)}, but gradients have {size} "
            "entries; compute both over the same blocks"
        )
    skew, largest = float((matrix_PP - matrix_PP.T).abs().max()), float(matrix_PP.abs().max())
    if not skew <= ASYMMETRY * largest:
        raise InputError(
            f"estimator 'exact': the curvature is not symmetric, or not finite (entries differ by "
            f"{skew:.2g}, the largest is {largest:.2g})"
        )
    matrix_PP = (matrix_PP + matrix_PP.T) / 2
    return matrix_PP, matrix_PP.mv


def _default_damping(operator: tuple[Tensor | None, Matvec], size: int) -> float:
    pairs = arnoldi(
        operator[1], size, steps=min(LARGEST_STEPS, size), keep=1, probes=0, dtype="float64"
    )
    return default_damping(pairs.values)


def _solved(
    operator: tuple[Tensor | None, Matvec], rows_RP: Tensor, damping: float, settings: ExactSettings
) -> Tensor:
    """fp64 [R, P]: (H + damping)^-1 of each row."""
    matrix_PP, product = operator
    if matrix_PP is None:
        solve = partial(conjugate_gradients, tolerance=settings.tolerance, steps=settings.steps)
        return torch.stack([solve(product, row_P, damping) for row_P in rows_RP])
    damped_PP = matrix_PP + damping * torch.eye(len(matrix_PP)).to(matrix_PP)
    lower_PP, failed = torch.linalg.cholesky_ex(damped_PP)
    if failed:
        raise InputError(indefinite(damping))
    return torch.cholesky_solve(rows_RP.T, lower_PP).T


ESTIMATOR = Estimator("exact", ExactSettings, scores_of_blocks, needs="operator")
