"""Refined solves of (H + damping) x = v, preconditioned with Ritz pairs.

Shape legend: P parameters, K Ritz pairs, J directions, S sampled rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf, isfinite, nan
from typing import Literal

import torch
from torch import Tensor

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.numerics.basis import SlicedBasis
from distinf.numerics.complement import not_finite
from distinf.numerics.krylov import Matvec
from distinf.numerics.metrics import spearman
from distinf.numerics.variants import Spectrum

# Preconditioner denominators are at least this fraction of the largest one.
TINY = 1e-6
Sampled = Callable[[Tensor], Tensor]  # x [P] -> [S]
LEAST_STEPS = 4  # before rankings are compared: after 1 and 2 they can agree and both be wrong


class Status(StrEnum):
    """How a solve ended."""

    CONVERGED = "converged"
    AGREED = "agreed"
    STAGNATED = "stagnated"
    INDEFINITE = "indefinite"


USABLE = (Status.CONVERGED, Status.AGREED)


@dataclass(frozen=True)
class RefineSettings:
    """tolerance: on |(H + damping) x - v| / |v|. steps: most steps, each one product.
    agreement: a solve ends too where the sampled rows' rankings after k and after 2 k steps have
    at least this Spearman correlation (1: never).
    cautious: a solve is given up where it meets negative curvature, or where its residual falls
    too slowly to come near the tolerance in its steps."""

    tolerance: float = 1e-4
    steps: int = 100
    agreement: float = 1.0
    cautious: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1 or self.steps < 1 or not 0 < self.agreement <= 1:
            raise ValueError(
                f"tolerance={self.tolerance} must lie in (0, 1), agreement={self.agreement} in "
                f"(0, 1], and steps={self.steps} must be at least 1"
            )


@dataclass(frozen=True)
class Solution:
    """x [P], and how far it may be trusted: use it only if `status` is one of USABLE.

    residual: |(H + damping) x - v| / |v|, by the products that were taken; steps: these products;
    agreement: of the rankings after half the steps and all, nan where none were compared;
    negative_curvature: the damped operator was seen to be indefinite (x may be right all the same);
    message: one line that names the next knob.
    """

    x: Tensor
    status: Status
    steps: int
    residual: float
    agreement: float
    negative_curvature: bool
    message: str


class Directions:
    """Directions d of solves and their products A d, A = H + damping, conjugate to one another.

    d_i . A d_j is 0, and of i itself its sign. The next solve starts from what they know: solves of
    many queries together take far fewer products than each by itself. A rank keeps its slices.
    """

    def __init__(
        self,
        dim: int,
        capacity: int,
        *,
        slices: int = 8,
        collective: Collective | None = None,
        dtype: Literal["float32", "float64"] = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self.dtype = torch.float64 if dtype == "float64" else torch.float32
        self.vectors, self.products = (
            SlicedBasis(
                dim, capacity, slices=slices, collective=collective or Collective(),
                dtype=self.dtype, device=device,
            )
            for _ in range(2)
        )  # fmt: skip
        self._signs: list[float] = []

    def make_room(self, steps: int) -> None:
        """Forget all if so many more would not fit."""
        if self.vectors.count + steps > self.vectors.capacity:
            self.vectors.clear()
            self.products.clear()
            self._signs.clear()

    def append(self, vector_P: Tensor, product_P: Tensor, curvature: float) -> None:
        """Keep a direction that is conjugate to the others; curvature: its d . A d, not 0."""
        scale = abs(curvature) ** -0.5
        self.vectors.append(scale * vector_P)
        self.products.append(scale * product_P)
        self._signs.append(1.0 if curvature > 0 else -1.0)

    def conjugate(self, vector_P: Tensor) -> Tensor:
        """[P]: what of a vector is conjugate to all directions, of norm 1; zero if nothing is."""
        for _ in range(2):  # the second pass removes what rounding left of the first
            weights_J = self.products.dots(vector_P) * self._signs_J()
            vector_P = vector_P.double() - self.vectors.combine(weights_J[None])[0]
            norm = float(torch.linalg.vector_norm(vector_P))
            vector_P = vector_P / norm if 0 < norm < inf else torch.zeros_like(vector_P)
        return vector_P.to(self.dtype)

    def start(self, rhs_P: Tensor) -> tuple[Tensor, Tensor]:
        """fp64 [P] each: x by Galerkin's method within the directions, and rhs - A x."""
        weights_J = (self.vectors.dots(rhs_P) * self._signs_J())[None]
        x_P, product_P = (b.combine(weights_J)[0].double() for b in (self.vectors, self.products))
        return x_P, rhs_P.double() - product_P

    def after(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of all but the first `count`: directions [J, P], products [J, P] and signs fp64 [J]."""
        return (
            self.vectors.after(count), self.products.after(count), self._signs_J()[count:].cpu(),
        )  # fmt: skip

    def _signs_J(self) -> Tensor:
        return torch.tensor(self._signs, dtype=torch.float64, device=self.vectors.device)


def refine(
    matvec: Matvec,
    rhs_P: Tensor,
    vectors_KP: Tensor,
    spectrum: Spectrum,
    settings: RefineSettings | None = None,
    directions: Directions | None = None,
    sampled: Sampled | None = None,
) -> Solution:
    """Solve (H + damping) x = rhs by conjugate directions, each conjugate to all before it.

    A direction is M^-1 times what is left, M = sum |value + damping| u u^T + |complement + damping|
    (I - U^T U): of a positive operator, preconditioned conjugate gradients. `vectors_KP` are all
    original Ritz vectors; `matvec` is H's product, without damping, the same on every rank, and
    gets vectors in the directions' dtype. A spectrum whose policy changed values only changes M:
    the system solved is always H + damping. `directions` of other solves of the same system are
    used, and get those of this one; `sampled`: x -> x . g of some training gradients, for rankings.
    """
    settings = settings or RefineSettings()
    size = float(torch.linalg.vector_norm(rhs_P.double()))
    if not isfinite(size):
        raise InputError("the right-hand side is not finite; quarantine the query")
    if size == 0.0:
        told = "the right-hand side is zero"
        return Solution(torch.zeros_like(rhs_P), Status.CONVERGED, 0, 0.0, nan, False, told)
    if directions is None:
        directions = Directions(len(rhs_P), settings.steps, device=rhs_P.device)
    return _solved(
        _Damped(matvec, spectrum.damping), _Preconditioner(vectors_KP, spectrum), rhs_P, size,
        settings, directions, sampled or _nothing,
    )  # fmt: skip


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


class _Damped:
    """v -> (H + damping) v in fp64."""

    def __init__(self, matvec: Matvec, damping: float) -> None:
        self.matvec, self.damping = matvec, damping

    def __call__(self, vector_P: Tensor) -> Tensor:
        return self.matvec(vector_P).double() + self.damping * vector_P.double()


class _Preconditioner:
    """v -> M^-1 v."""

    def __init__(self, vectors_KP: Tensor, spectrum: Spectrum) -> None:
        scales_K = (spectrum.values_K + spectrum.damping).abs()
        outside = abs(spectrum.rest)
        largest = max([outside, *scales_K.tolist()])
        floor = TINY * largest if largest > 0 else 1.0
        self.vectors_KP = spectrum.select(vectors_KP, 0)
        self.outside = 1.0 / max(outside, floor)
        self.excess_K = (1.0 / scales_K.clamp(min=floor) - self.outside).to(vectors_KP)

    def __call__(self, vector_P: Tensor) -> Tensor:
        coordinates_K = self.vectors_KP @ vector_P.to(self.vectors_KP)
        inside_P = self.vectors_KP.T @ (self.excess_K * coordinates_K)
        return self.outside * vector_P + inside_P.to(vector_P.dtype)


def _solved(
    damped: _Damped,
    precondition: _Preconditioner,
    rhs_P: Tensor,
    size: float,
    settings: RefineSettings,
    directions: Directions,
    sampled: Sampled,
) -> Solution:
    directions.make_room(settings.steps)
    x_P, left_P = directions.start(rhs_P)
    rankings_S = [sampled(x_P)]  # after every step
    steps, negative, agreement, best, status = 0, False, nan, inf, None
    for step in range(settings.steps + 1):
        residual = float(torch.linalg.vector_norm(left_P)) / size
        agreement = _agreement(rankings_S)
        if residual <= settings.tolerance:
            status = Status.CONVERGED
        elif settings.agreement < 1 and agreement >= settings.agreement:
            status = Status.AGREED
        best = min(best, residual)
        if (
            status
            or step == settings.steps
            or (settings.cautious and _too_slow(best, step, settings))
        ):
            break
        vector_P = directions.conjugate(precondition(left_P))
        product_P, steps = damped(vector_P), step + 1
        curvature = float(vector_P.double() @ product_P)
        if not isfinite(curvature):
            raise InputError(not_finite(f"solve step {step}"))
        negative |= curvature < 0
        least = torch.finfo(directions.dtype).eps * float(torch.linalg.vector_norm(product_P))
        if abs(curvature) <= least or (negative and settings.cautious):  # no step along it is right
            break
        directions.append(vector_P, product_P, curvature)
        length = float(vector_P.double() @ left_P) / curvature
        x_P, left_P = x_P + length * vector_P, left_P - length * product_P
        rankings_S.append(sampled(x_P))
    message = _message(status, residual, agreement, negative, steps, settings, damped.damping)
    if status is None:
        status = Status.INDEFINITE if negative else Status.STAGNATED
    return Solution(x_P.to(rhs_P.dtype), status, steps, residual, agreement, negative, message)


def _too_slow(best: float, step: int, settings: RefineSettings) -> bool:
    """At this rate the residual would not even fall to the tolerance's root in the steps."""
    if step < LEAST_STEPS:
        return False
    return bool(best ** (settings.steps / step) > settings.tolerance**0.5)


def _nothing(x_P: Tensor) -> Tensor:
    return x_P[:0]


def _agreement(rankings_S: Sequence[Tensor]) -> float:
    """Of the sampled rows after half the steps and after all; nan where that is not to be told."""
    steps = len(rankings_S) - 1
    if steps < LEAST_STEPS or steps % 2 or len(rankings_S[0]) < 2:
        return nan
    return spearman(rankings_S[steps // 2], rankings_S[steps])


def _message(
    status: Status | None,
    residual: float,
    agreement: float,
    negative: bool,
    steps: int,
    settings: RefineSettings,
    damping: float,
) -> str:
    found = f"residual {residual:.2g} against tolerance {settings.tolerance:.2g}"
    if status is Status.AGREED:
        return f"{found}; rankings after half the steps and all agree by {agreement:.3f}"
    if status:
        return found
    if negative:
        return (
            f"{found}; the operator has negative curvature below damping {damping:.3g}: raise the "
            "damping, use gauss-newton, or raise steps"
        )
    most = f" of at most {settings.steps}" if steps < settings.steps else ""
    return f"{found} after {steps} steps{most}; raise steps, keep, or damping"
