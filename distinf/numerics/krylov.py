"""Arnoldi iteration with full orthogonalisation, restartable after any step; Ritz pairs; trace.

Shape legend: D dimension, M steps done, K pairs kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isfinite
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.numerics.basis import SlicedBasis
from distinf.numerics.complement import (
    SeenComplement,
    complement_mean,
    complement_trace,
    not_finite,
    seen_complement,
)
from distinf.numerics.randomness import generator, uniform

Matvec = Callable[[Tensor], Tensor]
CONVERGED = 0.1  # largest residual of a pair that has converged, in units of its value


@dataclass(frozen=True)
class ArnoldiSettings:
    """How far to iterate and what to keep.

    steps: Krylov dimension. keep: Ritz pairs kept, largest magnitude first. seed: of the starting
    vector and of the trace probes. probes: products spent on the trace outside the kept pairs (0:
    none). slices: logical slices of the basis; part of the result's identity. dtype: of the basis;
    dot products are always fp64.
    """

    steps: int = 200
    keep: int = 40
    seed: int = 0
    probes: int = 30
    slices: int = 8
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.steps:
            raise ValueError(
                f"keep={self.keep} needs at least that many steps, but steps={self.steps}; "
                "lower keep (at least 1) or raise steps"
            )
        if self.probes < 0 or self.slices < 1:
            raise ValueError(f"probes={self.probes} must be >= 0 and slices={self.slices} >= 1")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype={self.dtype!r} must be 'float32' or 'float64'")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The basis dtype as torch names it."""
        return torch.float64 if self.dtype == "float64" else torch.float32


@dataclass(frozen=True)
class StepRecord:
    """What step `step` added; committing `vector` and `column` is enough to resume.

    vector: q_{step+1} in full [D], basis dtype (zeros where the iteration broke down).
    column: Hessenberg column, fp64 [step + 2]; its last entry is exactly 0 at a breakdown.
    asymmetry: largest |h_ij - h_ji| that the column settles, in the operator's units.
    orthogonality: largest |cosine| between q_{step+1} and earlier vectors.
    product_s, own_s: seconds in the product, and in orthogonalisation with its reductions.
    """

    step: int
    vector: Tensor
    column: Tensor
    asymmetry: float
    orthogonality: float
    product_s: float
    own_s: float


class ArnoldiState:
    """This rank's basis slices, the Hessenberg matrix and the number of steps done."""

    def __init__(self, basis: SlicedBasis, hessenberg: Tensor, vector: Tensor) -> None:
        self.basis = basis
        self.vector = vector  # the newest basis vector in full, which the next product needs
        self.hessenberg = hessenberg  # fp64 [steps + 1, steps] on the CPU, zero where not reached
        self.step = 0
        self.finished = False

    @classmethod
    def start(
        cls,
        dim: int,
        settings: ArnoldiSettings,
        collective: Collective | None = None,
        device: torch.device | str = "cpu",
    ) -> "ArnoldiState":
        """A state before the first step; its starting vector depends on the seed and `dim` only."""
        steps = min(settings.steps, dim)
        basis = SlicedBasis(
            dim,
            steps + 1,
            slices=settings.slices,
            collective=collective or Collective(),
            dtype=settings.torch_dtype,
            device=device,
        )
        start_D = uniform(settings.seed, "arnoldi start", dim).to(device)
        direction_D = basis.orthogonalise(start_D).direction_D
        basis.append(direction_D)
        return cls(basis, torch.zeros((steps + 1, steps), dtype=torch.float64), direction_D)

    def append(self, vector_D: Tensor, column: Tensor) -> None:
        """Add one step: q_{step+1} [D] and its Hessenberg column [step + 2]."""
        if column.shape != (self.step + 2,) or vector_D.shape != (self.basis.dim,):
            raise ValueError(
                f"step {self.step} takes a vector [{self.basis.dim}] and a column "
                f"[{self.step + 2}], not {tuple(vector_D.shape)} and {tuple(column.shape)}"
            )
        self.hessenberg[: self.step + 2, self.step] = column
        self.finished = float(column[-1]) == 0.0
        if not self.finished:
            self.vector = vector_D.to(self.basis.device, self.basis.dtype)
            self.basis.append(self.vector)
        self.step += 1
        self.finished |= self.step == self.hessenberg.shape[1]


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs of a symmetric operator, largest magnitude first.

    values [K] fp64; vectors [K, D]; residuals [K] fp64, norms of H u - value u (from the Arnoldi
    relation, or true ones if asked for); orthogonality: max |Q Q^T - I| over the whole basis;
    asymmetry: max |T - T^T| / max |T|; trace: of the whole operator, estimated, and trace_error its
    standard error (both nan without probes); hessenberg fp64 [M + 1, M]; seen: the operator outside
    the pairs as training gradients see it (None where none were given).
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    orthogonality: float
    asymmetry: float
    trace: float
    hessenberg: Tensor
    trace_error: float = float("nan")
    seen: SeenComplement | None = None

    @property
    def complement(self) -> float:
        """Mean eigenvalue outside the kept pairs, at least 0; 0 if the trace was not estimated."""
        return complement_mean(self.trace, self.values, self.vectors.shape[1])


def arnoldi(
    matvec: Matvec,
    dim: int,
    *,
    settings: ArnoldiSettings | None = None,
    collective: Collective | None = None,
    state: ArnoldiState | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    gradients: Tensor | None = None,
    **options: Any,
) -> RitzPairs:
    """Dominant eigenpairs of a symmetric operator `matvec`: [dim] -> [dim], the same on all ranks.

    `options` are fields of ArnoldiSettings (steps, keep, seed, probes, slices, dtype). The product
    gets vectors in `dtype`, and is called once per step in step order, then once per probe.
    `on_step` gets a StepRecord after each step; with a `state` that they were appended to, the run
    continues to the same bits. Fewer than `keep` pairs come back if the Krylov space is exhausted
    sooner. `gradients`: training gradients [N, dim], of which as many as there are probes, drawn by
    the seed, tell by a product each what the operator is outside the pairs (`seen`).
    Raises InputError naming the step if a product is not finite.
    """
    settings = replace(settings or ArnoldiSettings(), **options)
    if settings.keep > dim:
        raise ValueError(f"keep={settings.keep} pairs do not exist in {dim} dimensions; lower keep")
    if gradients is not None and (gradients.dim() != 2 or gradients.shape[1] != dim):
        raise ValueError(f"gradients {tuple(gradients.shape)} must be [N, {dim}], N at least 1")
    state = state or ArnoldiState.start(dim, settings, collective)
    for record in iterate(matvec, state):
        if on_step is not None:
            on_step(record)
    pairs = ritz(state, settings.keep)
    if not settings.probes:
        return pairs
    mean, error = complement_trace(
        matvec, pairs.vectors, probes=settings.probes, seed=settings.seed
    )
    pairs = replace(pairs, trace=float(pairs.values.sum()) + mean, trace_error=error)
    if gradients is None:
        return pairs
    drawn = generator(settings.seed, "seen complement").permutation(len(gradients))
    rows_RD = gradients[torch.from_numpy(drawn[: settings.probes]).to(gradients.device)]
    return replace(pairs, seen=seen_complement(matvec, pairs.vectors, rows_RD))


def iterate(matvec: Matvec, state: ArnoldiState) -> Iterator[StepRecord]:
    """Advance `state` to its last step, yielding each step's record once the state holds it."""
    while not state.finished:
        began = perf_counter()
        product_D = matvec(state.vector)
        middle = perf_counter()
        record = _extend(state, product_D)
        yield replace(record, product_s=middle - began, own_s=perf_counter() - middle)


def _extend(state: ArnoldiState, product_D: Tensor) -> StepRecord:
    step = state.step
    if not isinstance(product_D, Tensor) or product_D.shape != (state.basis.dim,):
        kind, shape = type(product_D).__name__, tuple(getattr(product_D, "shape", ()))
        raise InputError(
            f"step {step}: the product is a {kind} of shape {shape}, but the operator acts on "
            f"tensors [{state.basis.dim}]"
        )
    result = state.basis.orthogonalise(product_D)
    if not (isfinite(result.incoming_norm) and isfinite(result.norm)):
        raise InputError(not_finite(f"Arnoldi step {step}"))
    norm = torch.tensor([result.norm], dtype=torch.float64)
    column = torch.cat([result.coefficients_J.cpu(), norm])
    scale = max(float(state.hessenberg.abs().max()), result.incoming_norm)
    noise = 16 * torch.finfo(state.basis.dtype).eps
    if result.norm <= noise * scale or step + 1 == state.basis.dim:
        column[-1] = 0.0
    direction_D = result.direction_D if column[-1] else torch.zeros_like(result.direction_D)
    state.append(direction_D, column)
    asymmetry = _asymmetry(state.hessenberg, step)
    return StepRecord(step, direction_D, column, asymmetry, result.orthogonality, 0.0, 0.0)


def _asymmetry(hessenberg: Tensor, step: int) -> float:
    """Largest |h_ij - h_ji| among the pairs that column `step` completes."""
    return float((hessenberg[:step, step] - hessenberg[step, :step]).abs().max()) if step else 0.0


def ritz(state: ArnoldiState, keep: int, matvec: Matvec | None = None) -> RitzPairs:
    """Eigenpairs of the symmetrised projection (T + T^T) / 2, largest magnitude first.

    Residuals come from H Q = Q T + h q e^T, so |H u - value u|^2 = |(T - T_sym) y|^2 + (h y_M)^2;
    with `matvec` they are measured by one product per pair instead. No trace (nan).
    """
    done = state.step
    if keep < 1 or not done:
        raise ValueError(f"keep={keep} pairs from {done} steps: both must be at least 1")
    values_M, weights_MM, residuals_M = projected_pairs(state.hessenberg[: done + 1, :done])
    values_K, weights_MK, residuals_K = values_M[:keep], weights_MM[:, :keep], residuals_M[:keep]
    vectors_KD = state.basis.combine(_pad(weights_MK.T, state.basis.count))
    square_MM = state.hessenberg[:done, :done]
    if matvec is not None:
        residuals_K = _measured_residuals(matvec, values_K, vectors_KD)
    gram = state.basis.gram()
    largest = float(square_MM.abs().max())
    asymmetry = float((square_MM - square_MM.T).abs().max()) / largest if largest else 0.0
    return RitzPairs(
        values=values_K,
        vectors=vectors_KD,
        residuals=residuals_K,
        orthogonality=float((gram - torch.eye(len(gram)).to(gram)).abs().max()),
        asymmetry=asymmetry,
        trace=float("nan"),
        hessenberg=state.hessenberg[: done + 1, :done].clone(),
    )


def projected_pairs(hessenberg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values [M], weights [M, M] (columns) and residuals [M] of (T + T^T) / 2, from [M + 1, M].

    Largest magnitude first; the residuals are those of the Arnoldi relation (see `ritz`).
    """
    square_MM = hessenberg[:-1]
    symmetric_MM = (square_MM + square_MM.T) / 2
    values_M, weights_MM = torch.linalg.eigh(symmetric_MM)
    order = values_M.abs().argsort(descending=True, stable=True)
    values_M, weights_MM = values_M[order], weights_MM[:, order]
    skew_M = torch.linalg.vector_norm((square_MM - symmetric_MM) @ weights_MM, dim=0)
    return values_M, weights_MM, torch.hypot(skew_M, hessenberg[-1, -1] * weights_MM[-1])


def has_converged(value: float, residual: float) -> bool:
    """Whether an eigenvalue lies within a tenth of a Ritz value.

    That of a symmetric H nearest to θ is at most ‖Hu − θu‖ from it (Parlett, The Symmetric
    Eigenvalue Problem, Theorem 4.5.1).
    """
    return residual <= CONVERGED * abs(value)


def _pad(weights_KM: Tensor, count: int) -> Tensor:
    """Zero weights for the last basis vector, which belongs to no Ritz vector."""
    return torch.nn.functional.pad(weights_KM, (0, count - weights_KM.shape[1]))


def _measured_residuals(matvec: Matvec, values_K: Tensor, vectors_KD: Tensor) -> Tensor:
    norms = [
        torch.linalg.vector_norm(matvec(u_D).double() - value * u_D.double())
        for value, u_D in zip(values_K.tolist(), vectors_KD, strict=True)
    ]
    return torch.stack(norms).cpu()
