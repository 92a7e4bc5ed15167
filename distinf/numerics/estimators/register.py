"""What an estimator is to those who use it: its settings, its function and what that needs.

Shape legend: Q queries, N training samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

# products: dot products of queries and training rows, and squared norms. gram: also those of all
# pairs of training rows. rows: gradients as they are. pairs: rows and RitzPairs. factors: rows and
# EkFac. operator: rows, and the mean Hessian or its product.
Needs = Literal["products", "gram", "rows", "pairs", "factors", "operator"]


@dataclass(frozen=True)
class Products:
    """What there is of a block's gradients: training rows T [N, P] and queries, by products.

    block: its name, for errors. gram() is T T^T [N, N], through(W [Q, N]) is (W T) T^T, and entries
    is P without projection, or None where nobody says how large the embedding is.
    """

    block: str
    cross_QN: Tensor
    query_sqnorm_Q: Tensor
    train_sqnorm_N: Tensor
    gram: Callable[[], Tensor]
    through: Callable[[Tensor], Tensor]
    entries: int | None


@dataclass(frozen=True)
class Estimator:
    """An estimator in ESTIMATORS.

    scores: (Products, settings) -> [Q, N], where it needs products or gram; else (train, query,
    settings, curvature) -> {block: [Q, N]}, train and query being {block: [N, P]} in one dtype.
    linear: whether its cost is linear in N. of_directions: whether only the directions of gradients
    count, so that rows of any size can be scaled first. by_row: whether a row's score needs nothing
    of other rows, so that rows that were never trained on have one too.
    """

    name: str
    settings: type[Any]
    scores: Callable[..., Any]
    needs: Needs = "products"
    linear: bool = True
    of_directions: bool = False
    by_row: bool = False
