"""What an operator is outside its Ritz pairs: its mean eigenvalue, or as training gradients see it.

Shape legend: D dimension, K Ritz pairs, R training gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.randomness import signs

# Of a gradient's norm: what lies outside the pairs is rounding below this many units of precision.
ROUNDING = 100


@dataclass(frozen=True)
class SeenComplement:
    """The operator H outside the pairs U as training gradients g see it, by r = g - U^T U g; fp64.

    products_R: r . H r; sqnorms_R: |r|^2; coordinates_RK: U g. A row of zeros counts for nothing.
    """

    products_R: Tensor
    sqnorms_R: Tensor
    coordinates_RK: Tensor

    def mean(self, values_K: Tensor, kept: tuple[int, ...] | None = None) -> float:
        """mu = sum r . H r / sum |r|^2, the constant closest to H on what the gradients have there.

        0 if none of them has anything outside. Of the pairs with these values only `kept` are
        inside (None: all); the others are taken for eigenpairs.
        """
        out_K = torch.ones(len(values_K), dtype=torch.bool)
        out_K[list(range(len(values_K)) if kept is None else kept)] = False
        squares_K = self.coordinates_RK.square().sum(0) * out_K
        total = float(self.sqnorms_R.sum() + squares_K.sum())
        return (
            float(self.products_R.sum() + values_K.double() @ squares_K) / total if total else 0.0
        )

    @property
    def quotients_R(self) -> Tensor:
        """r . H r / |r|^2 of each gradient that has something outside."""
        some_R = self.sqnorms_R > 0
        return self.products_R[some_R] / self.sqnorms_R[some_R]

    @property
    def error(self) -> float:
        """Standard error of the mean over all pairs, as of a ratio; nan for fewer than two rows."""
        count = int((self.sqnorms_R > 0).sum())
        if count < 2:
            return float("nan")
        mean = float(self.products_R.sum() / self.sqnorms_R.sum())
        left = float((self.products_R - mean * self.sqnorms_R).square().sum())
        return float((left * count / (count - 1)) ** 0.5 / self.sqnorms_R.sum())


def seen_complement(
    matvec: Callable[[Tensor], Tensor], vectors_KD: Tensor, grads_RD: Tensor
) -> SeenComplement:
    """By one product for each training gradient [R, D]; those that are not finite count as zero."""
    rows = [seen_by(matvec, vectors_KD, gradient_D) for gradient_D in grads_RD]
    return SeenComplement(*(torch.stack(column) for column in zip(*rows, strict=True)))


def seen_by(
    matvec: Callable[[Tensor], Tensor], vectors_KD: Tensor, gradient_D: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(r . H r, |r|^2, U g [K]) of one training gradient, fp64 on the CPU.

    Raises InputError if the product is not finite.
    """
    gradient_D = gradient_D.to(vectors_KD)
    norm = float(torch.linalg.vector_norm(gradient_D.double()))
    if not isfinite(norm) or norm == 0.0:
        zero = torch.zeros((), dtype=torch.float64)
        return zero, zero, torch.zeros(len(vectors_KD), dtype=torch.float64)
    unit_D = (gradient_D.double() / norm).to(gradient_D)
    rest_D = outside_of(vectors_KD, unit_D)
    sqnorm = rest_D.double().square().sum().cpu()
    if sqnorm <= (ROUNDING * torch.finfo(rest_D.dtype).eps) ** 2:
        rest_D, sqnorm = torch.zeros_like(rest_D), torch.zeros_like(sqnorm)
        product = sqnorm
    else:
        product = (rest_D.double() @ matvec(rest_D).double()).cpu()
    if not torch.isfinite(product):
        raise InputError(not_finite("complement"))
    coordinates_K = (vectors_KD @ unit_D).double().cpu()
    return product * norm**2, sqnorm * norm**2, coordinates_K * norm


def complement_mean(trace: float, values_K: Tensor, dim: int) -> float:
    """(trace - sum of values) / (dim - K), at least 0; 0 if there is no complement or no trace."""
    rest = dim - len(values_K)
    mean = (trace - float(values_K.sum())) / rest if rest > 0 else 0.0
    return mean if mean > 0.0 else 0.0


def complement_trace(
    matvec: Callable[[Tensor], Tensor], vectors_KD: Tensor, *, probes: int = 30, seed: int = 0
) -> tuple[float, float]:
    """Estimated trace of the operator outside orthonormal vectors [K, D], and its standard error.

    Hutchinson's estimator with +-1 probes made orthogonal to the vectors. The error is nan for one
    probe.
    """
    if probes < 1:
        raise ValueError(f"probes={probes}: the trace needs at least one probe")
    values = [complement_probe(matvec, vectors_KD, seed=seed, probe=i) for i in range(probes)]
    found = torch.tensor(values, dtype=torch.float64)
    error = float(found.std() / probes**0.5) if probes > 1 else float("nan")
    return float(found.mean()), error


def complement_probe(
    matvec: Callable[[Tensor], Tensor], vectors_KD: Tensor, *, seed: int, probe: int
) -> float:
    """One probe's estimate: z^T H z with z = (I - U^T U) s and s of +-1 from (seed, probe)."""
    dim = vectors_KD.shape[1]
    z_D = outside_of(vectors_KD, signs(seed, "trace probe", dim, stream=probe).to(vectors_KD))
    value = float(z_D.double() @ matvec(z_D).double())
    if not isfinite(value):
        raise InputError(not_finite(f"trace probe {probe}"))
    return value


def outside_of(vectors_KD: Tensor, vector_D: Tensor) -> Tensor:
    """[D]: what of a vector lies outside orthonormal ones."""
    for _ in range(2):  # the second pass removes what rounding left of the first
        vector_D = vector_D - vectors_KD.T @ (vectors_KD @ vector_D)
    return vector_D


def not_finite(where: str) -> str:
    """What to do about a curvature product that is not finite."""
    return (
        f"{where}: the curvature product is not finite; look for samples with extreme inputs, or "
        "compute the curvature in float32"
    )
