"""Refined solves of (H + damping) x = v, preconditioned with Ritz pairs.

Shape legend: P parameters, K Ritz pairs, J Krylov vectors.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.numerics.basis import SlicedBasis
from distinf.numerics.krylov import Matvec
from distinf.numerics.variants import Spectrum

# Preconditioner denominators are at least this fraction of the largest one.
TINY = 1e-6


class Status(StrEnum):
    """How a solve ended."""

    CONVERGED = "converged"
    STAGNATED = "stagnated"
    INDEFINITE = "indefinite"


@dataclass(frozen=True)
class RefineSettings:
    """tolerance: on |(H + damping) x - v| / |v|. steps: most Krylov steps, each one product.
    slices and dtype: of the Krylov basis, as in ArnoldiSettings."""

    tolerance: float = 1e-4
    steps: int = 100
    slices: int = 8
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1 or self.steps < 1 or self.slices < 1:
            raise ValueError(
                f"tolerance={self.tolerance} must lie in (0, 1), and steps={self.steps} and "
                f"slices={self.slices} must be at least 1"
            )
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'float64'")


@dataclass(frozen=True)
class Solution:
    """x [P], and how far it may be trusted: use it only if `status` is converged.

    residual: |(H + damping) x - v| / |v|, measured with a product of its own; steps: Krylov steps;
    negative_curvature: the damped operator was seen to be indefinite (x may be right all the same);
    message: one line that names the next knob.
    """

    x: Tensor
    status: Status
    steps: int
    residual: float
    negative_curvature: bool
    message: str


def refine(
    matvec: Matvec,
    rhs_P: Tensor,
    vectors_KP: Tensor,
    spectrum: Spectrum,
    settings: RefineSettings | None = None,
    collective: Collective | None = None,
) -> Solution:
    """Solve (H + damping) x = rhs by GMRES with full orthogonalisation, safe if indefinite.

    It works on S (H + damping) S y = S rhs, x = S y, with S = M^-1/2 and M = sum |value + damping|
    u u^T + (complement + damping)(I - U^T U). `vectors_KP` are all original Ritz vectors; `matvec`
    is H's product, without damping, the same on every rank, and gets vectors in the settings'
    dtype. A spectrum whose policy changed values only changes the preconditioner: the system solved
    is always H + damping.
    """
    settings = settings or RefineSettings()
    dtype = torch.float64 if settings.dtype == "float64" else torch.float32
    work = _Preconditioned(
        lambda v_P: matvec(v_P.to(dtype)), spectrum.select(vectors_KP, 0), spectrum
    )
    size = float(torch.linalg.vector_norm(rhs_P.double()))
    if not isfinite(size):
        raise InputError("the right-hand side is not finite; quarantine the query")
    if size == 0.0:
        zero_P = torch.zeros_like(rhs_P)
        return Solution(zero_P, Status.CONVERGED, 0, 0.0, False, "the right-hand side is zero")
    basis = SlicedBasis(
        len(rhs_P),
        settings.steps + 1,
        slices=settings.slices,
        collective=collective or Collective(),
        dtype=dtype,
        device=rhs_P.device,
    )
    return _gmres(work, rhs_P, basis, settings, size)


def conjugate_gradients(
    matvec: Matvec, rhs_P: Tensor, damping: float, *, tolerance: float, steps: int
) -> Tensor:
    """fp64 [P]: x with |(H + damping) x - rhs| <= tolerance |rhs|, without a preconditioner.

    Raises InputError where H + damping is not positive definite, or `steps` products do not do.
    """
    x_P, left_P = torch.zeros_like(rhs_P, dtype=torch.float64), rhs_P.double()
    direction_P, square = left_P, float(left_P @ left_P)
    target = tolerance**2 * square
    for _ in range(steps):
        if square <= target:
            break
        product_P = matvec(direction_P).double() + damping * direction_P
        curvature = float(direction_P @ product_P)
        if not curvature > 0:
            raise InputError(indefinite(damping))
        x_P = x_P + square / curvature * direction_P
        left_P = left_P - square / curvature * product_P
        before, square = square, float(left_P @ left_P)
        direction_P = left_P + square / before * direction_P
    if not square <= target:
        raise InputError(
            f"the exact solve did not reach a residual of {tolerance:.2g} in {steps} products; "
            "raise its steps, its tolerance, or the damping"
        )
    return x_P


def indefinite(damping: float) -> str:
    """What to do about an operator that an exact solve cannot take."""
    return (
        f"the operator is not positive definite at damping {damping:.3g}, so that an exact solve "
        "would not be of a minimum; raise the damping, or use gauss-newton"
    )


class _Preconditioned:
    """S, and S (H + damping) S."""

    def __init__(self, matvec: Matvec, vectors_KP: Tensor, spectrum: Spectrum) -> None:
        scales_K = (spectrum.values_K + spectrum.damping).abs()
        outside = abs(spectrum.rest)
        largest = max([outside, *scales_K.tolist()])
        floor = TINY * largest if largest > 0 else 1.0
        self.matvec = matvec
        self.damping = spectrum.damping
        self.vectors_KP = vectors_KP
        self.outside = max(outside, floor) ** -0.5
        inside_K = scales_K.clamp(min=floor) ** -0.5
        self.excess_K = (inside_K - self.outside).to(vectors_KP)

    def shrink(self, vector_P: Tensor) -> Tensor:
        """S v in v's dtype."""
        coordinates_K = self.vectors_KP @ vector_P.to(self.vectors_KP)
        inside_P = self.vectors_KP.T @ (self.excess_K * coordinates_K)
        return self.outside * vector_P + inside_P.to(vector_P.dtype)  # type: ignore[no-any-return]

    def damped(self, vector_P: Tensor) -> Tensor:
        """(H + damping) v in fp64."""
        return self.matvec(vector_P).double() + self.damping * vector_P.double()

    def __call__(self, vector_P: Tensor) -> Tensor:
        return self.shrink(self.damped(self.shrink(vector_P)))


def _gmres(
    work: _Preconditioned,
    rhs_P: Tensor,
    basis: SlicedBasis,
    settings: RefineSettings,
    size: float,
) -> Solution:
    start = basis.orthogonalise(work.shrink(rhs_P))
    basis.append(start.direction_D)
    vector_P = start.direction_D
    hessenberg = torch.zeros((settings.steps + 1, settings.steps), dtype=torch.float64)
    target = settings.tolerance
    x_P, residual, done = torch.zeros_like(rhs_P), 1.0, 0
    for step in range(settings.steps):
        result = basis.orthogonalise(work(vector_P))
        if not (isfinite(result.incoming_norm) and isfinite(result.norm)):
            raise InputError(
                f"solve step {step}: the curvature product is not finite; look for samples with "
                "extreme inputs, or compute the curvature in float32"
            )
        hessenberg[: step + 1, step] = result.coefficients_J.cpu()
        hessenberg[step + 1, step] = result.norm
        done = step + 1
        weights_J, estimate = _least_squares(hessenberg[: done + 1, :done], start.norm)
        exhausted = (
            result.norm <= torch.finfo(basis.dtype).eps * result.incoming_norm
            or done == settings.steps
            or done == basis.dim
        )
        if estimate <= target or exhausted:
            combined_P = basis.combine(weights_J[None])[0]
            x_P = work.shrink(combined_P).to(rhs_P.dtype)
            left_P = work.damped(x_P) - rhs_P.double()
            residual = float(torch.linalg.vector_norm(left_P)) / size
            if residual <= settings.tolerance or exhausted:
                break
            target = estimate * min(0.5, settings.tolerance / residual)
        basis.append(result.direction_D)
        vector_P = result.direction_D
    negative = _has_negative_curvature(hessenberg[:done, :done])
    status, message = _outcome(residual, negative, settings, work.damping)
    return Solution(x_P, status, done, residual, negative, message)


def _least_squares(hessenberg: Tensor, start_norm: float) -> tuple[Tensor, float]:
    """Weights y that minimise |start_norm e_1 - T y|, and that minimum relative to start_norm."""
    target = torch.zeros(len(hessenberg), dtype=torch.float64)
    target[0] = start_norm
    weights_J = torch.linalg.lstsq(hessenberg, target[:, None], driver="gelsd").solution[:, 0]
    return weights_J, float((target - hessenberg @ weights_J).norm()) / start_norm


def _has_negative_curvature(square: Tensor) -> bool:
    values = torch.linalg.eigvalsh((square + square.T) / 2)
    return bool(values[0] < -TINY * values.abs().max())


def _outcome(
    residual: float, negative: bool, settings: RefineSettings, damping: float
) -> tuple[Status, str]:
    found = f"residual {residual:.2g} against tolerance {settings.tolerance:.2g}"
    if residual <= settings.tolerance:
        return Status.CONVERGED, found
    if negative:
        return Status.INDEFINITE, (
            f"{found}; the operator has negative curvature below damping {damping:.3g}: raise the "
            "damping, use gauss-newton, or raise steps"
        )
    return Status.STAGNATED, f"{found} after {settings.steps} steps; raise steps, keep, or damping"
