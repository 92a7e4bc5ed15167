"""Influence scores from gradients held in memory, by any estimator: the public one-call form.

Shape legend: Q queries, N training samples, P entries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
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
from distinf.numerics.products import products, scaled, scales, sqnorms, weighted_products
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
    per block. Both may be SparseRows (an embedding's), but not for "arnoldi". Gradients in float64
    are multiplied in it, others in float32, a slab of entries at a time, with the slabs' sums in
    float64 ("arnoldi" and sparse rows: all in float64); rows of very small or large norm are scaled
    for it, so that scores are as finite as in float64. A complex gradient counts as its real and
    imaginary parts, and one of zero has cosine 0. `estimator` is a name or an estimator's settings
    (which can also set scaling and policy); `damping` is lambda itself, None the estimator's
    documented default; `variant` (fisher, arnoldi) is classic by default.
    "arnoldi" needs `curvature`: Ritz pairs of the mean Hessian over exactly these training samples,
    one per block, or one over all blocks in train's order (the result is then {"all": [Q, N]}). A
    score whose denominator is not positive is nan.
    Raises InputError for gradients that are not finite or do not fit each other.
    """
    settings = _settings(estimator, damping, variant)
    if isinstance(train, Mapping) and isinstance(query, Mapping) and train.keys() == query.keys():
        if isinstance(curvature, RitzPairs):
            same_order = {name: query[name] for name in train}
            return {"all": _block("all", _joined(train), _joined(same_order), settings, curvature)}
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
    return _flat(name, block)


def _settings(estimator: str | Estimator, damping: float | None, variant: str | None) -> Estimator:
    if isinstance(estimator, str):
        if estimator not in ESTIMATORS:
            raise InputError(
                f"estimator {estimator!r} is unknown; use one of {', '.join(ESTIMATORS)}"
            )
        settings: Estimator = ESTIMATORS[estimator]()
    elif isinstance(estimator, tuple(ESTIMATORS.values())):
        settings = estimator
    else:
        raise InputError(
            f"estimator {estimator!r} must be one of {', '.join(ESTIMATORS)}, or an estimator's "
            "settings"
        )
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
        train_NP, query_QP = _alike(name, _dense(name, train), _dense(name, query))
        _check_finite(name, train_NP, query_QP, sqnorms(train_NP), sqnorms(query_QP))
        return _arnoldi(name, train_NP.double(), query_QP.double(), settings, curvature)
    if isinstance(train, SparseRows) and isinstance(query, SparseRows):
        found = _of_words(name, train, query)
    elif isinstance(train, SparseRows) or isinstance(query, SparseRows):
        raise InputError(f"{name}: train and query must both be sparse rows, or both tensors")
    else:
        train, query = _alike(name, train, query)
        if isinstance(settings, CosineSettings):
            train, query = _of_ordinary_size(train), _of_ordinary_size(query)
        found = _of_rows(train, query)
    _check_finite(name, train, query, found.train_sqnorm_N, found.query_sqnorm_Q)
    return _scores(name, found, settings)


@dataclass(frozen=True)
class _Products:
    """What the estimators of a block are made of.

    gram() is [N, N] of the training rows T, through(W [Q, N]) is (W T) T^T, and entries is None
    where nobody says how large the embedding is.
    """

    cross_QN: Tensor
    query_sqnorm_Q: Tensor
    train_sqnorm_N: Tensor
    gram: Callable[[], Tensor]
    through: Callable[[Tensor], Tensor]
    entries: int | None


def _of_rows(train_NP: Tensor, query_QP: Tensor) -> _Products:
    train_sqnorm_N, query_sqnorm_Q = sqnorms(train_NP), sqnorms(query_QP)
    train_N, query_Q = torch.ones_like(train_sqnorm_N), torch.ones_like(query_sqnorm_Q)
    if train_NP.dtype == torch.float32:
        train_N, query_Q = scales(train_sqnorm_N), scales(query_sqnorm_Q)
        train_NP, query_QP = scaled(train_NP, train_N), scaled(query_QP, query_Q)
    back_QN = query_Q[:, None] * train_N

    def through(weights_QN: Tensor) -> Tensor:
        weights_QN = weights_QN * train_N / query_Q[:, None]
        return weighted_products(weights_QN, train_NP) * back_QN

    return _Products(
        cross_QN=products(query_QP, train_NP) * back_QN,
        query_sqnorm_Q=query_sqnorm_Q,
        train_sqnorm_N=train_sqnorm_N,
        gram=lambda: products(train_NP, train_NP) * train_N[:, None] * train_N,
        through=through,
        entries=train_NP.shape[1],
    )


def _of_ordinary_size(rows_NP: Tensor) -> Tensor:
    """The rows' directions: those whose squares over- or underflow float64 are scaled."""
    sqnorm_N = sqnorms(rows_NP)
    least, most = 1e-200, 1e300
    if rows_NP.dtype == torch.float32 or bool(((sqnorm_N > least) & (sqnorm_N < most)).all()):
        return rows_NP
    exponents_N = torch.frexp(rows_NP.abs().amax(1)).exponent
    return scaled(rows_NP, torch.exp2(exponents_N.double().clamp(-1022, 1023)))


def _of_words(name: str, train: SparseRows, query: SparseRows) -> _Products:
    """An embedding's, from dot products over shared tokens."""
    if not len(train) or train.rows.shape[1] != query.rows.shape[1]:
        raise InputError(
            f"{name}: rows of {train.rows.shape[1]} train and {query.rows.shape[1]} query entries "
            "must have one width, and train must have samples"
        )
    train, query = train.to(torch.float64), query.to(torch.float64)
    return _Products(
        cross_QN=sparse_gram(query, train),
        query_sqnorm_Q=query.sqnorms(),
        train_sqnorm_N=train.sqnorms(),
        gram=lambda: sparse_gram(train, train),
        through=lambda weights_QN: weights_QN @ sparse_gram(train, train),
        entries=None if train.vocabulary is None else train.vocabulary * train.rows.shape[1],
    )


def _scores(name: str, found: _Products, settings: Estimator) -> Tensor:
    if isinstance(settings, TracInSettings):
        return tracin.scores(found.cross_QN, settings)
    if isinstance(settings, CosineSettings):
        return cosine.scores(found.cross_QN, found.query_sqnorm_Q, found.train_sqnorm_N)
    if isinstance(settings, FisherSettings):
        return fisher.scores_of_gram(found.gram(), found.cross_QN, settings).scores_QN
    assert isinstance(settings, DataInfSettings)
    damping = settings.damping
    if damping is None:
        if found.entries is None:
            raise InputError(
                f"{name}: DataInf's default damping needs the embedding's size; set the vocabulary "
                "of these SparseRows, or damping"
            )
        sqnorm_sum, count = float(found.train_sqnorm_N.sum()), len(found.train_sqnorm_N)
        damping = datainf.default_damping(sqnorm_sum, count, found.entries)
    if damping == 0.0:  # every training gradient is zero, so no sample moves any query
        return torch.zeros_like(found.cross_QN)
    weights_QN = datainf.weights(found.cross_QN, found.train_sqnorm_N, damping)
    correction_QN = found.through(weights_QN)
    return datainf.scores(found.cross_QN, correction_QN, damping, len(found.train_sqnorm_N))


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


def _alike(name: str, train_NP: Tensor, query_QP: Tensor) -> tuple[Tensor, Tensor]:
    """Both flat, in one real dtype of at least float32."""
    train_NP, query_QP = _flat(name, train_NP), _flat(name, query_QP)
    kind = reduce(torch.promote_types, (train_NP.dtype, query_QP.dtype), torch.float32)
    train_NP, query_QP = train_NP.to(kind), query_QP.to(kind)
    if not len(train_NP) or train_NP.shape[1] != query_QP.shape[1]:
        raise InputError(
            f"{name}: train {tuple(train_NP.shape)} and query {tuple(query_QP.shape)} gradients "
            "must share their entries, and train must have samples"
        )
    return train_NP, query_QP


def _flat(name: str, grads: Tensor) -> Tensor:
    """[N, entries], a complex gradient as its real and imaginary parts."""
    if not isinstance(grads, Tensor) or grads.dim() < 2:
        shown = f"of shape {tuple(grads.shape)}" if isinstance(grads, Tensor) else type(grads)
        raise InputError(
            f"{name}: gradients must be tensors [N, entries], not {shown}; one sample's is "
            "gradient[None]"
        )
    return (torch.view_as_real(grads) if grads.is_complex() else grads).flatten(1)


def _check_finite(
    name: str, train: Block, query: Block, train_sqnorm_N: Tensor, query_sqnorm_Q: Tensor
) -> None:
    for role, block, sqnorm in (("train", train, train_sqnorm_N), ("query", query, query_sqnorm_Q)):
        bad = torch.nonzero(~torch.isfinite(sqnorm)).view(-1).tolist()
        if not bad:
            continue
        values = block.rows if isinstance(block, SparseRows) else block
        if torch.isfinite(values).all():
            raise InputError(
                f"{name}: the squares of {len(bad)} {role} gradients overflow float64 (rows "
                f"{bad[:5]}); divide the loss by a constant"
            )
        raise InputError(
            f"{name}: {len(bad)} {role} gradients are not finite (rows {bad[:5]}); drop those "
            "samples first (distinf.numerics.capture.finite_rows)"
        )
