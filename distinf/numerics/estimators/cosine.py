"""Cosine similarity of gradients.

Shape legend: Q queries, N training samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distinf.numerics.estimators.register import Estimator, Products


@dataclass(frozen=True)
class CosineSettings:
    """Nothing to set."""


def scores(cross_QN: Tensor, query_sqnorm_Q: Tensor, train_sqnorm_N: Tensor) -> Tensor:
    """[Q, N]: g_q . g_i / (|g_q| |g_i|) (Vitel and Chhabra, Eq. 4); 0 of a zero gradient."""
    norms_QN = query_sqnorm_Q.sqrt()[:, None] * train_sqnorm_N.sqrt()
    return torch.where(norms_QN > 0, cross_QN / norms_QN, 0.0)


def of_products(found: Products, _: CosineSettings) -> Tensor:
    """[Q, N] of a block."""
    return scores(found.cross_QN, found.query_sqnorm_Q, found.train_sqnorm_N)


ESTIMATOR = Estimator("cosine", CosineSettings, of_products, of_directions=True, by_row=True)
