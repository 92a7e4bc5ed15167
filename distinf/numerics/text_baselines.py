"""What finds wrong labels without influence: frozen embeddings with a regression or neighbours,
and BM25 between the words of a row and those of the queries.

Shape legend: N training rows, M rows that are asked about, Q queries, D embedding entries, C
classes, V words.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.errors import InputError

RIDGE = 1.0  # of rows of norm 1, half the squared weights beside the summed losses; none on biases
STEPS = 200
FREQUENCY, LENGTH = 1.2, 0.75  # BM25's k1 and b


def of_norm_1(rows_ND: Tensor) -> Tensor:
    """fp64: each row over its norm; a row of zeros as it is."""
    rows_ND = rows_ND.double()
    norms_N1 = torch.linalg.vector_norm(rows_ND, dim=1, keepdim=True)
    units_ND: Tensor = rows_ND / norms_N1.clamp(min=torch.finfo(torch.float64).tiny)
    return units_ND


def regression_losses(
    rows_ND: Tensor, labels_N: Tensor, asked_MD: Tensor, given_M: Tensor, classes: int
) -> Tensor:
    """fp64 [M]: the loss of the labels `given` by `regression_logits`."""
    logits_MC = regression_logits(rows_ND, labels_N, asked_MD, classes)
    return torch.nn.functional.cross_entropy(logits_MC, given_M, reduction="none")


def regression_logits(rows_ND: Tensor, labels_N: Tensor, asked_MD: Tensor, classes: int) -> Tensor:
    """fp64 [M, C]: by a multinomial logistic regression, fitted to the rows with their labels
    (RIDGE; L-BFGS in float64)."""
    features_NE, asked_ME = _with_bias(rows_ND), _with_bias(asked_MD)
    weights_EC = torch.zeros(features_NE.shape[1], classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights_EC], max_iter=STEPS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(
            features_NE @ weights_EC, labels_N, reduction="sum"
        )
        total = losses + RIDGE / 2 * weights_EC[:-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(objective)
    return asked_ME @ weights_EC.detach()


def _with_bias(rows_ND: Tensor) -> Tensor:
    rows_ND = of_norm_1(rows_ND)
    return torch.cat([rows_ND, rows_ND.new_ones(len(rows_ND), 1)], 1)


def out_of_fold_losses(
    rows_ND: Tensor,
    labels_N: Tensor,
    folds_N: Tensor,
    classes: int,
    also: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """fp64 [N]: each row's loss by the regression on the rows of all other folds, and on the rows
    and labels `also` ([M, D], [M]), which are of no fold."""
    found_N = torch.zeros(len(rows_ND), dtype=torch.float64)
    for fold in folds_N.unique():
        out_N = folds_N == fold
        fit_ND, fit_N = rows_ND[~out_N], labels_N[~out_N]
        if also is not None:
            fit_ND, fit_N = torch.cat([fit_ND, also[0]]), torch.cat([fit_N, also[1]])
        asked = rows_ND[out_N], labels_N[out_N]
        found_N[out_N] = regression_losses(fit_ND, fit_N, *asked, classes)
    return found_N


def neighbours_apart(rows_ND: Tensor, labels_N: Tensor, neighbours: int = 50) -> Tensor:
    """fp64 [N]: the share of a row's nearest other rows, by cosine, that have another label."""
    if len(rows_ND) < 2:
        raise InputError(f"neighbours need 2 rows at least, not {len(rows_ND)}")
    units_ND = of_norm_1(rows_ND)
    similar_NN = units_ND @ units_ND.T
    similar_NN.fill_diagonal_(-torch.inf)
    nearest_NK = similar_NN.topk(min(neighbours, len(rows_ND) - 1), dim=1).indices
    return (labels_N[nearest_NK] != labels_N[:, None]).double().mean(1)


Words = tuple[np.ndarray, np.ndarray]  # word numbers [total], where each text begins [texts + 1]


def bm25(texts: Words, queries: Words, vocabulary: int) -> np.ndarray:
    """fp64 [Q, N]: BM25 of every text for every query (Robertson and Zaragoza, *The Probabilistic
    Relevance Framework: BM25 and Beyond*, Eq. 3.15), idf = ln(1 + (N - n + .5) / (n + .5)), so
    that no word counts against a text; a word that a query has twice counts twice."""
    from scipy import sparse  # here, as few runs need it

    counts_NV, asked_QV = _counts(texts, vocabulary), _counts(queries, vocabulary)
    number, (rows, words) = counts_NV.shape[0], counts_NV.nonzero()
    texts_V = np.bincount(words, minlength=vocabulary)
    idf_V = np.log1p((number - texts_V + 0.5) / (texts_V + 0.5))
    lengths_N = np.diff(texts[1])
    long_N = 1 - LENGTH + LENGTH * lengths_N / max(lengths_N.mean(), 1.0)
    often = counts_NV.data
    weights = idf_V[words] * often * (FREQUENCY + 1) / (often + FREQUENCY * long_N[rows])
    weights_NV = sparse.csr_array((weights, (rows, words)), shape=counts_NV.shape)
    found: np.ndarray = (asked_QV @ weights_NV.T).toarray()
    return found


def _counts(words: Words, vocabulary: int) -> Any:
    """Sparse fp64 [texts, V]: how often each text has each word."""
    from scipy import sparse

    ids, offsets = words
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    shape = (len(offsets) - 1, vocabulary)
    return sparse.csr_array(sparse.coo_array((np.ones(len(ids)), (rows, ids)), shape=shape))


def agreement(similar_QN: Tensor, asked_Q: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """fp64 [N]: the mean over queries of a similarity, times 1 where the labels agree and
    -1 / (C - 1) where they do not: low where similar queries have another label."""
    same_QN = (asked_Q[:, None] == labels_N).double()
    signs_QN = same_QN - (1 - same_QN) / max(classes - 1, 1)
    return (similar_QN.double() * signs_QN).mean(0)
