"""What is lost by keeping only the largest eigenvalues of a symmetric operator.

Shape legend: K eigenvalues known, k of them kept.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from distinf.errors import InputError

Kind = Literal["max", "sum_sq"]


def truncation_bound(values: Tensor | Sequence[float], kind: Kind = "max") -> Tensor:
    """[K] fp64: upper bound on the error with k = 0, 1, … K - 1 eigenvalues kept, largest first.

    max:    |θᵀ(H - H_k)θ| ≤ |λ_{k+1}| for ‖θ‖ = 1, the spectral norm of what is dropped
    sum_sq: √(Σ_{j>k} λ_j²), its Frobenius norm, which bounds the same from above

    A reconstruction of Schioppa et al. 2022, Lemma 1, for Fig. 5 and 6 of Tuononen et al.
    Only the K known eigenvalues enter, in any order: what they leave out is in no bound.
    """
    if kind not in get_args(Kind):
        raise InputError(f"kind={kind!r}: use 'max' or 'sum_sq'")
    sizes_K = torch.as_tensor(values, dtype=torch.float64).flatten().abs()
    if not bool(torch.isfinite(sizes_K).all()):
        raise InputError("eigenvalues must be finite: leave out those that are not")
    sizes_K = sizes_K.sort(descending=True).values
    if kind == "max":
        return sizes_K
    return sizes_K.square().flip(0).cumsum(0).flip(0).sqrt()


def marginal_reductions(bounds_K: Tensor) -> tuple[Tensor, Tensor]:
    """[K - 1] each: by how much the k-th term, from 1, lowers the bound; absolute and as a share.

    The share is 0 where nothing was left to lower.
    """
    before, after = bounds_K[:-1], bounds_K[1:]
    lowered = before - after
    return lowered, torch.where(before > 0, lowered / before, torch.zeros_like(before))
