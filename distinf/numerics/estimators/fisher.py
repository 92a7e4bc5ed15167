"""The exact damped inverse of the empirical Fisher matrix, through the training Gram matrix.

One eigendecomposition serves every damping and variant.

Shape legend: Q queries, N training samples (all of them), R = N eigenvalues.
"""

from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.estimators.register import Estimator, Products
from distinf.numerics.variants import Scaling, Variant, VariantScores, apply_variant

MOST_SIZE = 1e12  # of a matrix over its damping: rounding is then a thousandth of the damping
GRADED = 1e-14  # of all squared norms' sum times their number: below, eigenvectors have no digits


@dataclass(frozen=True)
class FisherSettings:
    """damping: lambda itself, > 0; None takes a tenth of the mean squared gradient norm, which is
    a tenth of the Fisher matrix's trace: large enough for a group of blocks taken jointly.
    variant: denominator. scaling: of newfluence."""

    damping: float | None = None
    variant: Variant = "classic"
    scaling: Scaling = "mean"

    def __post_init__(self) -> None:
        if self.damping is not None and not (isfinite(self.damping) and self.damping > 0):
            raise ValueError(f"damping={self.damping} must be a finite number > 0, or null")


@dataclass(frozen=True)
class GramFactor:
    """Eigenvalues (fp64, 0 where they are rounding) and eigenvectors of K = T T^T."""

    values_R: Tensor
    vectors_NR: Tensor

    @property
    def count(self) -> int:
        """n, the number of training samples."""
        return len(self.values_R)

    @property
    def noise(self) -> float:
        """What rounding makes of an eigenvalue of 0, about."""
        return self.count * torch.finfo(torch.float64).eps * float(self.values_R.max())


def factorise(gram_NN: Tensor) -> GramFactor:
    """Eigendecomposition of the symmetric Gram matrix of all training gradients."""
    values_R, vectors_NR = torch.linalg.eigh(gram_NN.double())
    found = GramFactor(values_R.clamp(min=0.0), vectors_NR)
    return replace(found, values_R=torch.where(values_R > found.noise, values_R, 0.0))


@dataclass(frozen=True)
class GramSolve:
    """scores_QN fp64; the damping that was taken; an upper bound of the system's condition number,
    (a bound of the largest eigenvalue + n lambda) / (n lambda)."""

    scores_QN: Tensor
    damping: float
    condition: float


def solve(gram_NN: Tensor, cross_QN: Tensor, damping: float | None = None) -> GramSolve:
    """Classic scores by a Cholesky factor: as `classic`, in a twentieth of an eigendecomposition.

    gram_NN is of all training gradients; `damping` None takes FisherSettings' default.
    """
    gram_NN, cross_QN = gram_NN.double(), cross_QN.double()
    count = len(gram_NN)
    chosen = float(gram_NN.trace()) / (10.0 * count) if damping is None else damping
    if chosen == 0.0:  # every training gradient is zero, so no sample moves any query
        return GramSolve(torch.zeros_like(cross_QN), 0.0, 1.0)
    if not chosen > 0:
        raise InputError(f"Fisher damping is {chosen}; set a damping > 0")
    ridge = count * chosen
    factor_NN, condition = _factor(gram_NN, ridge, chosen, _size(gram_NN))
    solved_NQ = torch.cholesky_solve(cross_QN.T, factor_NN)
    return GramSolve(count * solved_NQ.T, chosen, condition)


def _size(gram_NN: Tensor) -> float:
    """What rounding is relative to: of a row's products to that very row, so that a few far larger
    ones do not count."""
    return len(gram_NN) * float(gram_NN.diagonal().median())


def _factor(matrix: Tensor, ridge: float, damping: float, size: float) -> tuple[Tensor, float]:
    """(Cholesky factor of matrix + ridge, a bound of its condition number). InputError where
    rounding, relative to `size`, has eaten the damping: where no gradient lies it alone is
    inverted, and what rounding leaves there would be divided by it."""
    # Of a positive semi-definite matrix, neither its trace nor a row's sum of sizes is below it.
    largest = min(float(matrix.trace()), float(matrix.abs().sum(1).max()))
    condition = (largest + ridge) / ridge
    damped = matrix.clone()
    damped.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed) or size > MOST_SIZE * ridge:
        raise InputError(
            f"Fisher damping {damping:.3g} is below the rounding of its matrix (condition number "
            f"{condition:.2g}); set a larger one, or none for the default"
        )
    return factor, condition


@dataclass(frozen=True)
class Preconditioned:
    """queries_QP fp64: (F + lambda)^-1 g_q; their products with training gradients are the scores.
    damping and condition as in GramSolve."""

    queries_QP: Tensor
    damping: float
    condition: float


def precondition(
    moment_PP: Tensor, query_QP: Tensor, count: int, damping: float | None = None
) -> Preconditioned:
    """The same inverse in parameter space, for blocks of fewer entries than there are samples.

    moment_PP is T^T T over all `count` training gradients; `damping` None takes FisherSettings'
    default.
    """
    fisher_PP = moment_PP.double() / count
    trace = float(fisher_PP.trace())
    chosen = trace / 10.0 if damping is None else damping
    if chosen == 0.0:  # every training gradient is zero, so no sample moves any query
        return Preconditioned(torch.zeros_like(query_QP, dtype=torch.float64), 0.0, 1.0)
    if not chosen > 0:
        raise InputError(f"Fisher damping is {chosen}; set a damping > 0")
    factor_PP, condition = _factor(fisher_PP, chosen, chosen, trace)
    solved_PQ = torch.cholesky_solve(query_QP.double().T, factor_PP)
    return Preconditioned(solved_PQ.T, chosen, condition)


def default_damping(factor: GramFactor) -> float:
    """lambda = mean_i |g_i|^2 / 10."""
    return float(factor.values_R.sum()) / (10.0 * factor.count)


def classic(factor: GramFactor, cross_QN: Tensor, damping: float) -> Tensor:
    """fp64 [Q, N]: g_q . (F + lambda)^-1 g_i = n K_qt (K + n lambda I)^-1, F = T^T T / n."""
    inverse_R = _inverse(factor, damping)
    projected_QR = cross_QN.double() @ factor.vectors_NR
    return factor.count * (projected_QR * inverse_R) @ factor.vectors_NR.T


def self_influence(factor: GramFactor, damping: float) -> Tensor:
    """fp64 [N]: g_i . (F + lambda)^-1 g_i = n diag[K (K + n lambda)^-1]."""
    shares_R = factor.values_R * _inverse(factor, damping)
    return factor.count * factor.vectors_NR.square() @ shares_R


def self_influence_of_gram(gram_NN: Tensor, damping: float | None = None) -> Tensor:
    """The same by a Cholesky factor; `damping` None takes FisherSettings' default."""
    gram_NN = gram_NN.double()
    count = len(gram_NN)
    chosen = float(gram_NN.trace()) / (10.0 * count) if damping is None else damping
    if chosen == 0.0:
        return torch.zeros(count, dtype=torch.float64)
    inverse_NN = torch.cholesky_inverse(_factor(gram_NN, count * chosen, chosen, _size(gram_NN))[0])
    return count * (inverse_NN * gram_NN).sum(1)


def solved_sqnorm(factor: GramFactor, damping: float) -> Tensor:
    """fp64 [N]: |(F + lambda)^-1 g_i|^2 = n^2 diag[(K + n lambda)^-1 K (K + n lambda)^-1]."""
    shares_R = factor.values_R * _inverse(factor, damping).square()
    return factor.count**2 * factor.vectors_NR.square() @ shares_R


def scores(
    factor: GramFactor, cross_QN: Tensor, settings: FisherSettings | None = None
) -> VariantScores:
    """Damped Fisher scores of every training sample, under the settings' variant."""
    settings = settings or FisherSettings()
    damping = settings.damping if settings.damping is not None else default_damping(factor)
    if damping == 0.0:  # every training gradient is zero, so no sample moves any query
        return VariantScores(torch.zeros_like(cross_QN, dtype=torch.float64), 0)
    return apply_variant(
        classic(factor, cross_QN, damping),
        self_influence(factor, damping),
        solved_sqnorm(factor, damping),
        settings.variant,
        scaling=settings.scaling,
        count=factor.count,
    )


def scores_of_gram(
    gram_NN: Tensor, cross_QN: Tensor, settings: FisherSettings | None = None
) -> VariantScores:
    """As `scores`, also where some gradients are far smaller than others.

    An eigenvector's entry for a tiny gradient is lost in the rounding of the others', where a
    Cholesky factor's is not: its error is relative to that very gradient.
    """
    settings = settings or FisherSettings()
    gram_NN, cross_QN = gram_NN.double(), cross_QN.double()
    sqnorm_N, count = gram_NN.diagonal(), len(gram_NN)
    trace = float(sqnorm_N.sum())
    if trace == 0.0 or float(sqnorm_N.min()) > GRADED * count * trace:
        return scores(factorise(gram_NN), cross_QN, settings)
    damping = settings.damping or trace / (10.0 * count)
    inverse_NN = torch.cholesky_inverse(_factor(gram_NN, count * damping, damping, 0.0)[0])
    solved_NN = inverse_NN @ gram_NN
    return apply_variant(
        count * cross_QN @ inverse_NN,
        count * solved_NN.diagonal(),
        count**2 * (solved_NN * inverse_NN).sum(1),
        settings.variant,
        scaling=settings.scaling,
        count=count,
    )


def _inverse(factor: GramFactor, damping: float) -> Tensor:
    if not damping > 0:
        raise InputError(f"Fisher damping is {damping}; set a damping > 0")
    damped_R = factor.values_R + factor.count * damping
    # Where only rounding is left to be inverted, no gradient has a part.
    return torch.where(damped_R > factor.noise, 1.0 / damped_R, 0.0)


def of_products(found: Products, settings: FisherSettings) -> Tensor:
    """fp64 [Q, N] of a block."""
    return scores_of_gram(found.gram(), found.cross_QN, settings).scores_QN


ESTIMATOR = Estimator("fisher", FisherSettings, of_products, needs="gram", linear=False)
