"""Influence scores from gradients held in memory, by any estimator: the public one-call form.

Shape legend: Q queries, N training samples, P entries.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.numerics.ekfac import EkFac
from distinf.numerics.estimators import ESTIMATORS
from distinf.numerics.estimators.register import Estimator, Products
from distinf.numerics.krylov import Matvec, RitzPairs
from distinf.numerics.products import products, scaled, sqnorms, weighted_products
from distinf.numerics.sparse import SparseRows, sparse_gram
from distinf.numerics.variants import Variant

Block = Tensor | SparseRows
Gradients = Block | Mapping[str, Block]
Curvature = RitzPairs | Mapping[str, RitzPairs] | EkFac | Tensor | Matvec
Settings = Any  # an estimator's, as ESTIMATORS names them


@overload
def influence(
    train: Block,
    query: Block,
    estimator: str | Settings = ...,
    *,
    damping: float | None = ...,
    curvature: Curvature | None = ...,
    variant: Variant | None = ...,
) -> Tensor: ...
@overload
def influence(
    train: Mapping[str, Block],
    query: Mapping[str, Block],
    estimator: str | Settings = ...,
    *,
    damping: float | None = ...,
    curvature: Curvature | None = ...,
    variant: Variant | None = ...,
) -> dict[str, Tensor]: ...
def influence(
    train: Gradients,
    query: Gradients,
    estimator: str | Settings = "tracin",
    *,
    damping: float | None = None,
    curvature: Curvature | None = None,
    variant: Variant | None = None,
) -> Tensor | dict[str, Tensor]:
    """Scores [Q, N] fp64 (or {block: [Q, N]}); > 0: training on the sample helps the query.

    train: [N, P] per-sample gradients of the training loss; query: [Q, P], of any loss; or the same
    per block. Both may be SparseRows (an embedding's), but not for "arnoldi". Whatever their dtype,
    gradients are multiplied in float64, a slab of entries at a time. A complex gradient counts as
    its real and imaginary parts, and one of zero has cosine 0. `estimator` is a name or its
    settings (which can also set scaling and policy); `damping` is lambda itself, None the
    estimator's documented default; `variant` (fisher, arnoldi, exact) is classic by default.
    "arnoldi" needs `curvature`: Ritz pairs of the mean Hessian over exactly these training samples,
    one per block, or one over all blocks in train's order (the result is then {"all": [Q, N]}). A
    score whose denominator is not positive is nan. "exact" needs the mean Hessian itself over these
    samples, [P, P] or v -> H v, with all blocks in train's order. "ekfac" needs distinf.ekfac's,
    over the same parameters, and gradients by parameter name.
    Raises InputError for gradients that are not finite or do not fit each other.
    """
    chosen, settings = _settings(estimator, damping, variant)
    if isinstance(train, Mapping) != isinstance(query, Mapping):
        raise InputError("train and query must both be tensors, or dicts with the same blocks")
    if isinstance(train, Mapping) and isinstance(query, Mapping):
        if train.keys() != query.keys():
            raise InputError("train and query must be dicts with the same blocks")
        return _scores(train, query, chosen, settings, curvature)
    if chosen.needs == "factors":
        raise InputError(
            f"estimator '{chosen.name}' takes gradients by parameter name, as per_sample_gradients "
            "gives them"
        )
    assert not isinstance(train, Mapping)
    assert not isinstance(query, Mapping)
    found = _scores({"gradients": train}, {"gradients": query}, chosen, settings, curvature)
    (scores,) = found.values()
    return scores


def _settings(
    estimator: str | Settings, damping: float | None, variant: str | None
) -> tuple[Estimator, Settings]:
    known = [
        e
        for e in ESTIMATORS.values()
        if (estimator == e.name if isinstance(estimator, str) else type(estimator) is e.settings)
    ]
    if not known:
        kind = "is unknown; use" if isinstance(estimator, str) else "must be"
        raise InputError(
            f"estimator {estimator!r} {kind} one of {', '.join(ESTIMATORS)}, or an estimator's "
            "settings"
        )
    settings = known[0].settings() if isinstance(estimator, str) else estimator
    given: dict[str, Any] = {"damping": damping, "variant": variant}
    changes = {name: value for name, value in given.items() if value is not None}
    for name in changes:
        if not hasattr(settings, name):
            raise InputError(f"{type(settings).__name__} has no {name}; leave it out")
    return known[0], replace(settings, **changes)


def _scores(
    train: Mapping[str, Block],
    query: Mapping[str, Block],
    estimator: Estimator,
    settings: Settings,
    curvature: Curvature | None,
) -> dict[str, Tensor]:
    if estimator.needs in ("products", "gram"):
        return {
            name: estimator.scores(_products(name, train[name], query[name], estimator), settings)
            for name in train
        }
    pairs = {name: _alike(name, train[name], query[name]) for name in train}
    for name, (rows, queries) in pairs.items():
        _check_finite(name, rows, queries, *(_sqnorms(block) for block in (rows, queries)))
    by_name = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    found: dict[str, Tensor] = estimator.scores(*by_name, settings, curvature)
    return found


def _products(name: str, train: Block, query: Block, estimator: Estimator) -> Products:
    train, query = _alike(name, train, query)
    if isinstance(train, SparseRows) and isinstance(query, SparseRows):
        found = _of_words(name, train, query)
    else:
        assert isinstance(train, Tensor)
        assert isinstance(query, Tensor)
        if estimator.of_directions:
            train, query = _of_ordinary_size(train), _of_ordinary_size(query)
        found = _of_rows(name, train, query)
    _check_finite(name, train, query, found.train_sqnorm_N, found.query_sqnorm_Q)
    return found


def _of_rows(name: str, train_NP: Tensor, query_QP: Tensor) -> Products:
    return Products(
        block=name,
        cross_QN=products(query_QP, train_NP),
        query_sqnorm_Q=sqnorms(query_QP),
        train_sqnorm_N=sqnorms(train_NP),
        gram=lambda: products(train_NP, train_NP),
        through=lambda weights_QN: weighted_products(weights_QN, train_NP),
        entries=train_NP.shape[1],
    )


def _of_ordinary_size(rows_NP: Tensor) -> Tensor:
    """The rows' directions: those whose squares over- or underflow float64 are scaled."""
    sqnorm_N = sqnorms(rows_NP)
    least, most = 1e-200, 1e300
    if rows_NP.dtype != torch.float64 or bool(((sqnorm_N > least) & (sqnorm_N < most)).all()):
        return rows_NP
    exponents_N = torch.frexp(rows_NP.abs().amax(1)).exponent
    return scaled(rows_NP, torch.exp2(exponents_N.double().clamp(-1022, 1023)))


def _of_words(name: str, train: SparseRows, query: SparseRows) -> Products:
    """An embedding's, from dot products over shared tokens."""
    return Products(
        block=name,
        cross_QN=sparse_gram(query, train),
        query_sqnorm_Q=query.sqnorms(),
        train_sqnorm_N=train.sqnorms(),
        gram=lambda: sparse_gram(train, train),
        through=lambda weights_QN: weights_QN @ sparse_gram(train, train),
        entries=None if train.vocabulary is None else train.vocabulary * train.rows.shape[1],
    )


def _alike(name: str, train: Block, query: Block) -> tuple[Block, Block]:
    """Both flat, and real; sparse rows in float64."""
    if isinstance(train, SparseRows) and isinstance(query, SparseRows):
        if not len(train) or train.rows.shape[1] != query.rows.shape[1]:
            raise InputError(
                f"{name}: rows of {train.rows.shape[1]} train and {query.rows.shape[1]} query "
                "entries must have one width, and train must have samples"
            )
        return train.to(torch.float64), query.to(torch.float64)
    if isinstance(train, SparseRows) or isinstance(query, SparseRows):
        raise InputError(f"{name}: train and query must both be sparse rows, or both tensors")
    train_NP, query_QP = _flat(name, train), _flat(name, query)
    if not len(train_NP) or train_NP.shape[1] != query_QP.shape[1]:
        raise InputError(
            f"{name}: train {tuple(train_NP.shape)} and query {tuple(query_QP.shape)} gradients "
            "must share their entries, and train must have samples"
        )
    return train_NP, query_QP


def _sqnorms(block: Block) -> Tensor:
    return block.sqnorms() if isinstance(block, SparseRows) else sqnorms(block)


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
