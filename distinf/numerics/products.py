"""Dot products of all pairs of rows of two matrices, and rows scaled for products in float32.

The entries' products over- and underflow float32 long before the entries do. Rows whose norm is out
of the ordinary are therefore scaled, each by a power of two near its norm, and what is made of them
is scaled back in float64: no digit changes, and the cosine of two tiny rows is not 0.

Shape legend: M and N rows, P entries.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

SLAB = 1 << 24  # entries of all rows that are held in float64 at once
CACHED = 1 << 18  # of those that are squared
ORDINARY = (1e-12, 1e15)  # norms of rows whose products float32 holds with digits to spare


def products(first_MP: Tensor, second_NP: Tensor) -> Tensor:
    """fp64 [M, N]. What a damping divides is a small difference of these, so they are exact."""
    found_MN = torch.zeros(
        len(first_MP), len(second_NP), dtype=torch.float64, device=first_MP.device
    )
    for span in _slabs(first_MP, second_NP):
        found_MN += first_MP[:, span].double() @ second_NP[:, span].double().T
    return found_MN


def scales(sqnorms_N: Tensor) -> Tensor:
    """fp64 [N]: what to divide rows of these squared norms by; 1 for an ordinary one, or 0."""
    norms_N = sqnorms_N.double().sqrt()
    least, most = ORDINARY
    odd_N = ((norms_N > 0) & (norms_N < least)) | ((norms_N > most) & torch.isfinite(norms_N))
    powers_N = torch.ldexp(torch.ones_like(norms_N), torch.frexp(norms_N).exponent)
    return torch.where(odd_N, powers_N, 1.0)


def scaled(rows_NP: Tensor, scales_N: Tensor) -> Tensor:
    """The rows divided by their scales, exactly; the rows themselves where all are 1."""
    if bool((scales_N == 1).all()):
        return rows_NP
    exponents_N = 1 - torch.frexp(scales_N).exponent
    half_N = exponents_N // 2  # the whole factor of a subnormal row would be no float32
    for part_N in (half_N, exponents_N - half_N):
        rows_NP = rows_NP * torch.exp2(part_N.to(rows_NP))[:, None]
    return rows_NP


def sqnorms(rows_NP: Tensor) -> Tensor:
    """fp64 [N]: squared norms, finite exactly where the row is (below 1e154)."""
    at_once = max(1, CACHED // max(1, rows_NP.shape[1]))  # float64 copies that stay in the cache
    parts = [part.double().square().sum(1) for part in rows_NP.split(at_once)]
    return torch.cat(parts) if parts else rows_NP.new_zeros(0, dtype=torch.float64)


def add_weighted(total_QP: Tensor, weights_QN: Tensor, rows_NP: Tensor) -> None:
    """Add W T to the fp64 total, of fp64 weights W and rows T."""
    for span in _slabs(weights_QN, rows_NP):
        total_QP[:, span] += weights_QN @ rows_NP[:, span].double()


def weighted_products(weights_QN: Tensor, rows_NP: Tensor) -> Tensor:
    """fp64 [Q, N]: (W T) T^T of weights W and rows T; W T is never held whole."""
    found_QN = torch.zeros(weights_QN.shape, dtype=torch.float64, device=rows_NP.device)
    for span in _slabs(weights_QN, rows_NP):
        part_NP = rows_NP[:, span].double()
        found_QN += (weights_QN @ part_NP) @ part_NP.T
    return found_QN


def _slabs(first: Tensor, second_NP: Tensor) -> Iterator[slice]:
    """Spans of entries that cover all."""
    entries, at_once = second_NP.shape[1], max(1, SLAB // max(1, len(first) + len(second_NP)))
    for start in range(0, entries, at_once):
        yield slice(start, min(start + at_once, entries))
