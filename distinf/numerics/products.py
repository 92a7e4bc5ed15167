"""Dot products of all pairs of rows of two matrices, in full precision (no TF32, no autocast).

Shape legend: M and N rows, P entries.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from distinf.numerics.precision import precision

SLAB = 16_384  # entries that are multiplied at once
CACHED = 1 << 18  # entries whose float64 copy is held at once


def products(first_MP: Tensor, second_NP: Tensor) -> Tensor:
    """fp64 [M, N]; entries are multiplied in the rows' own dtype, sums of slabs are in float64."""
    found_MN = torch.zeros(
        len(first_MP), len(second_NP), dtype=torch.float64, device=first_MP.device
    )
    with precision("float32", first_MP.device):
        for span in slabs(first_MP.shape[1]):
            found_MN += first_MP[:, span] @ second_NP[:, span].T
    return found_MN


def sqnorms(rows_NP: Tensor) -> Tensor:
    """fp64 [N]: squared norms, finite exactly where the row is (below 1e154)."""
    at_once = max(1, CACHED // max(1, rows_NP.shape[1]))  # float64 copies that stay in the cache
    parts = [part.double().square().sum(1) for part in rows_NP.split(at_once)]
    return torch.cat(parts) if parts else rows_NP.new_zeros(0, dtype=torch.float64)


def weighted_products(weights_QN: Tensor, rows_NP: Tensor) -> Tensor:
    """fp64 [Q, N]: (W T) T^T of weights W and rows T; W T is never held whole."""
    weights_QN = weights_QN.to(rows_NP.dtype)
    found_QN = torch.zeros(weights_QN.shape, dtype=torch.float64, device=rows_NP.device)
    with precision("float32", rows_NP.device):
        for span in slabs(rows_NP.shape[1]):
            found_QN += (weights_QN @ rows_NP[:, span]) @ rows_NP[:, span].T
    return found_QN


def slabs(entries: int) -> Iterator[slice]:
    """Spans of at most SLAB entries that cover all."""
    for start in range(0, entries, SLAB):
        yield slice(start, min(start + SLAB, entries))
