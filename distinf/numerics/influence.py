"""Influence scores from gradients held in memory, by any estimator: the public one-call form.

Shape legend: Q queries, N training samples, P entries.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.estimators import arnoldi, cosine, datainf, fisher, tracin
from distinf.numerics.estimators.arnoldi import ArnoldiScoreSettings
from distinf.numerics.estimators.cosine import CosineSettings
from distinf.numerics.estimators.datainf import DataInfSettings
from distinf.numerics.estimators.fisher import FisherSettings
from distinf.numerics.estimators.tracin import TracInSettings
from distinf.numerics.krylov import RitzPairs
from distinf.numerics.sparse import SparseRows, sparse_gram
from distinf.numerics.variants import Coordinates, Variant

Estimator = (
    TracInSettings | CosineSettings | DataInfSettings | FisherSettings | ArnoldiScoreSettings
)
ESTIMATORS: dict[str, type] = {
    "tracin": TracInSettings,
    "cosine": CosineSettings,
    "datainf": DataInfSettings,
    "fisher": FisherSettings,
    "arnoldi": ArnoldiScoreSettings,
}
Block = Tensor | SparseRows
Gradients = Block | Mapping[str, Block]


@overload
def influence(
    train: Block,
    query: Block,
    estimator: str | Estimator = ...,
    *,
    damping: float | None = ...,
    curvature: RitzPairs | Mapping[str, RitzPairs] | None = ...,
    variant: Variant | None = ...,
) -> Tensor: ...
@overload
def influence(
    train: Mapping[str, Block],
    query: Mapping[str, Block],
    estimator: str | Estimator = ...,
    *,
    damping: float | None = ...,
    curvature: RitzPairs | Mapping[str, RitzPairs] | None = ...,
    variant: Variant | None = ...,
) -> dict[str, Tensor]: ...
def influence(
    train: Gradients,
    query: Gradients,
    estimator: str | Estimator = "tracin",
    *,
    damping: float | None = None,
    curvature: RitzPairs | Mapping[str, RitzPairs] | None = None,
    variant: Variant | None = None,
) -> Tensor | dict[str, Tensor]:
    """Scores [Q, N] fp64 (or {block: [Q, N]}); > 0: training on the sample helps the query.

    train: [N, P] per-sample gradients of the training loss; query: [Q, P], of any loss; or the same
    per block. Both may be SparseRows (an embedding's), but not for "arnoldi". `estimator` is a name
    or an estimator's settings (which can also set scaling and policy); `damping` is lambda itself,
    None the estimator's documented default; `variant` (fisher, arnoldi) is classic by default.
    "arnoldi" needs `curvature`: Ritz pairs of the mean Hessian over exactly these training samples,
    one per block, or one over all blocks in dict order (the result is then {"all": [Q, N]}). A
    score whose denominator is not positive is nan.
    Raises InputError for gradients that are not finite or do not fit each other.
    """
    settings = _settings(estimator, damping, variant)
    if isinstance(train, Mapping) and isinstance(query, Mapping) and train.keys() == query.keys():
        if isinstance(curvature, RitzPairs):
            return {"all": _block("all", _joined(train), _joined(query), settings, curvature)}
        pairs = curvature or {}
        return {
            name: _block(name, train[name], query[name], settings, pairs.get(name))
            for name in train
        }
    if isinstance(train, Mapping) or isinstance(query, Mapping):
        raise InputError("train and query must both be tensors, or dicts with the same blocks")
    return _block("gradients", train, query, settings, curvature)


def _joined(gradients: Mapping[str, Block]) -> Tensor:
    """[N, P]: all blocks' entries, in dict order."""
    return torch.cat([_dense(name, block) for name, block in gradients.items()], 1)


def _dense(name: str, block: Block) -> Tensor:
    if isinstance(block, SparseRows):
        raise InputError(
            f"{name}: estimator 'arnoldi' takes no sparse rows; leave the embedding out, or give "
            "its .dense()"
        )
    return block.flatten(1)


def _settings(estimator: str | Estimator, damping: float | None, variant: str | None) -> Estimator:
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            raise InputError(
                f"estimator {estimator!r} is unknown; use one of {', '.join(ESTIMATORS)}"
            )
        settings: Estimator = ESTIMATORS[estimator]()
    else:
        settings = estimator
    given: dict[str, Any] = {"damping": damping, "variant": variant}
    changes = {name: value for name, value in given.items() if value is not None}
    for name in changes:
        if not hasattr(settings, name):
            raise InputError(f"{type(settings).__name__} has no {name}; leave it out")
    return replace(settings, **changes)


def _block(
    name: str,
    train: Block,
    query: Block,
    settings: Estimator,
    curvature: RitzPairs | Mapping[str, RitzPairs] | None,
) -> Tensor:
    if isinstance(settings, ArnoldiScoreSettings):
        dense = _checked(name, _dense(name, train), _dense(name, query))
        return _arnoldi(name, *dense, settings, curvature)
    if isinstance(train, SparseRows) and isinstance(query, SparseRows):
        return _sparse(name, train, query, settings)
    if isinstance(train, SparseRows) or isinstance(query, SparseRows):
        raise InputError(f"{name}: train and query must both be sparse rows, or both tensors")
    train_NP, query_QP = _checked(name, train, query)
    if isinstance(settings, DataInfSettings):
        return datainf.from_gradients(train_NP, query_QP, settings)
    cross_QN = query_QP @ train_NP.T
    sqnorms = query_QP.square().sum(1), train_NP.square().sum(1)
    return _from_products(settings, cross_QN, sqnorms, lambda: train_NP @ train_NP.T)


def _from_products(
    settings: Estimator,
    cross_QN: Tensor,
    sqnorms: tuple[Tensor, Tensor],
    gram: Callable[[], Tensor],
) -> Tensor:
    """What needs no gradients: cross products, squared norms of queries and of training samples,
    and for Fisher the training samples' Gram matrix."""
    if isinstance(settings, TracInSettings):
        return tracin.scores(cross_QN, settings)
    if isinstance(settings, CosineSettings):
        return cosine.scores(cross_QN, *sqnorms)
    assert isinstance(settings, FisherSettings)
    return fisher.scores(fisher.factorise(gram()), cross_QN, settings).scores_QN


def _sparse(name: str, train: SparseRows, query: SparseRows, settings: Estimator) -> Tensor:
    """An embedding's scores, from dot products over shared tokens; DataInf by K_tt too."""
    if not len(train) or train.rows.shape[1] != query.rows.shape[1]:
        raise InputError(
            f"{name}: rows of {train.rows.shape[1]} train and {query.rows.shape[1]} query entries "
            "must have one width, and train must have samples"
        )
    _check_finite(name, "train", train.finite())
    _check_finite(name, "query", query.finite())
    train, query = train.to(torch.float64), query.to(torch.float64)
    cross_QN, sqnorm_N = sparse_gram(query, train), train.sqnorms()
    if not isinstance(settings, DataInfSettings):
        sqnorms = query.sqnorms(), sqnorm_N
        return _from_products(settings, cross_QN, sqnorms, lambda: sparse_gram(train, train))
    damping = settings.damping
    if damping is None:
        damping = _default_damping(name, train, sqnorm_N)
    if damping == 0.0:  # every training gradient is zero, so no sample moves any query
        return torch.zeros_like(cross_QN)
    weights_QN = datainf.weights(cross_QN, sqnorm_N, damping)
    correction_QN = weights_QN @ sparse_gram(train, train)
    return datainf.scores(cross_QN, correction_QN, damping, len(train))


def _default_damping(name: str, train: SparseRows, sqnorm_N: Tensor) -> float:
    if train.vocabulary is None:
        raise InputError(
            f"{name}: DataInf's default damping needs the embedding's size; set the vocabulary of "
            "these SparseRows, or damping"
        )
    entries = train.vocabulary * train.rows.shape[1]
    return datainf.default_damping(float(sqnorm_N.sum()), len(train), entries)


def _arnoldi(
    name: str,
    train_NP: Tensor,
    query_QP: Tensor,
    settings: ArnoldiScoreSettings,
    curvature: RitzPairs | Mapping[str, RitzPairs] | None,
) -> Tensor:
    if not isinstance(curvature, RitzPairs):
        raise InputError(f"{name}: estimator 'arnoldi' needs curvature=distinf.arnoldi(...) pairs")
    if curvature.vectors.shape[1] != train_NP.shape[1]:
        raise InputError(
            f"{name}: the curvature acts on {curvature.vectors.shape[1]} parameters, but gradients "
            f"have {train_NP.shape[1]}; compute both over the same blocks"
        )
    coordinates = Coordinates.of(train_NP, query_QP, curvature.vectors)
    return arnoldi.scores(coordinates, arnoldi.spectrum_of(curvature, settings), settings).scores_QN


def _checked(name: str, train_NP: Tensor, query_QP: Tensor) -> tuple[Tensor, Tensor]:
    train_NP, query_QP = train_NP.flatten(1).double(), query_QP.flatten(1).double()
    if not len(train_NP) or train_NP.shape[1] != query_QP.shape[1]:
        raise InputError(
            f"{name}: train {tuple(train_NP.shape)} and query {tuple(query_QP.shape)} gradients "
            "must share their entries, and train must have samples"
        )
    for role, gradients in (("train", train_NP), ("query", query_QP)):
        _check_finite(name, role, torch.isfinite(gradients).all(1))
    return train_NP, query_QP


def _check_finite(name: str, role: str, finite_N: Tensor) -> None:
    bad = torch.nonzero(~finite_N).view(-1).tolist()
    if bad:
        raise InputError(
            f"{name}: {len(bad)} {role} gradients are not finite (rows {bad[:5]}); drop those "
            "samples first (distinf.numerics.capture.finite_rows)"
        )
