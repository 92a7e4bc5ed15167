"""Influence scores from gradients held in memory, by any estimator: the public one-call form.

Shape legend: Q queries, N training samples, P entries.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

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
Gradients = TypeVar("Gradients", Tensor, dict[str, Tensor])


def influence(
    train: Gradients,
    query: Gradients,
    estimator: str | Estimator = "tracin",
    *,
    damping: float | None = None,
    curvature: RitzPairs | Mapping[str, RitzPairs] | None = None,
    variant: Variant | None = None,
) -> Gradients:
    """Scores [Q, N] fp64 (or {block: [Q, N]}); > 0: training on the sample helps the query.

    train: [N, P] per-sample gradients of the training loss; query: [Q, P], of any loss; or the same
    per block. `estimator` is a name or an estimator's settings (which can also set scaling and
    policy); `damping` is lambda itself, None the estimator's documented default; `variant`
    (fisher, arnoldi) is classic by default. "arnoldi" needs `curvature`: Ritz pairs of the mean
    Hessian over exactly these training samples, one per block, or one over all blocks in dict order
    (the result is then {"all": [Q, N]}). A score whose denominator is not positive is nan.
    Raises InputError for gradients that are not finite or do not fit each other.
    """
    settings = _settings(estimator, damping, variant)
    if isinstance(train, Tensor) and isinstance(query, Tensor):
        return _block("gradients", train, query, settings, curvature)
    if not isinstance(train, dict) or not isinstance(query, dict) or train.keys() != query.keys():
        raise InputError("train and query must both be tensors, or dicts with the same blocks")
    if isinstance(curvature, RitzPairs):
        joint = [torch.cat([g[name].flatten(1) for name in train], 1) for g in (train, query)]
        return {"all": _block("all", joint[0], joint[1], settings, curvature)}
    pairs = curvature or {}
    return {
        name: _block(name, train[name], query[name], settings, pairs.get(name)) for name in train
    }


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
    train_NP: Tensor,
    query_QP: Tensor,
    settings: Estimator,
    curvature: RitzPairs | Mapping[str, RitzPairs] | None,
) -> Tensor:
    train_NP, query_QP = _checked(name, train_NP, query_QP)
    if isinstance(settings, ArnoldiScoreSettings):
        return _arnoldi(name, train_NP, query_QP, settings, curvature)
    if isinstance(settings, DataInfSettings):
        return datainf.from_gradients(train_NP, query_QP, settings)
    cross_QN = query_QP @ train_NP.T
    if isinstance(settings, TracInSettings):
        return tracin.scores(cross_QN, settings)
    if isinstance(settings, CosineSettings):
        return cosine.scores(cross_QN, query_QP.square().sum(1), train_NP.square().sum(1))
    factor = fisher.factorise(train_NP @ train_NP.T)
    return fisher.scores(factor, cross_QN, settings).scores_QN


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
        bad = torch.nonzero(~torch.isfinite(gradients).all(1)).view(-1).tolist()
        if bad:
            raise InputError(
                f"{name}: {len(bad)} {role} gradients are not finite (rows {bad[:5]}); drop those "
                "samples first (distinf.numerics.capture.finite_rows)"
            )
    return train_NP, query_QP
