"""Baselines from embeddings and words against scipy, loops and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from distinf.numerics.label_noise import normal_scores
from distinf.numerics.text_baselines import (
    agreement,
    bm25,
    neighbours_apart,
    of_norm_1,
    out_of_fold_losses,
    regression_losses,
)


def made(rows: int = 60, width: int = 5, classes: int = 3):
    random = torch.Generator().manual_seed(3)
    rows_ND = torch.randn(rows, width, generator=random, dtype=torch.float64)
    return rows_ND, (rows_ND @ torch.randn(width, classes, generator=random).double()).argmax(1)


def fitted_by_scipy(rows_ND, labels_N, classes):
    """Weights [D + 1, C] at which the gradient of the penalised losses is 0."""
    units = np.c_[of_norm_1(rows_ND).numpy(), np.ones(len(rows_ND))]
    told = np.eye(classes)[labels_N.numpy()]

    def objective(flat):
        w = flat.reshape(units.shape[1], classes)
        logits = units @ w
        top = logits.max(1, keepdims=True)
        logs = logits - top - np.log(np.exp(logits - top).sum(1, keepdims=True))
        slope = units.T @ (np.exp(logs) - told)
        slope[:-1] += w[:-1]
        return -(told * logs).sum() + (w[:-1] ** 2).sum() / 2, slope.ravel()

    start = np.zeros(units.shape[1] * classes)
    found = optimize.minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-8})
    return found.x.reshape(-1, classes)


def test_the_regression_is_that_of_another_minimiser():
    rows_ND, labels_N = made()
    asked_MD, given_M = made(7)
    found = regression_losses(rows_ND, labels_N, asked_MD, given_M, 3)
    units = np.c_[of_norm_1(asked_MD).numpy(), np.ones(7)]
    logits = torch.from_numpy(units @ fitted_by_scipy(rows_ND, labels_N, 3))
    wanted = torch.nn.functional.cross_entropy(logits, given_M, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_row_is_judged_by_the_other_folds_and_the_trusted_rows_alone():
    rows_ND, labels_N = made()
    also, folds_N = made(9), torch.arange(60) % 4
    found_N = out_of_fold_losses(rows_ND, labels_N, folds_N, 3, also)
    out_N = folds_N == 2
    fit = torch.cat([rows_ND[~out_N], also[0]]), torch.cat([labels_N[~out_N], also[1]])
    wanted = regression_losses(*fit, rows_ND[out_N], labels_N[out_N], 3)
    torch.testing.assert_close(found_N[out_N], wanted)
    changed_N = labels_N.clone()
    changed_N[2] = (changed_N[2] + 1) % 3  # its own label teaches its own fold nothing
    again_N = out_of_fold_losses(rows_ND, changed_N, folds_N, 3, also)
    others = out_N & (torch.arange(60) != 2)
    torch.testing.assert_close(again_N[others], found_N[others])
    assert not torch.allclose(again_N[~out_N], found_N[~out_N])


def test_neighbours_are_the_nearest_by_angle_without_the_row_itself():
    angles = torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0])
    rows_ND = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor(
        [[1.0], [9], [1], [3], [2]]
    )
    found = neighbours_apart(rows_ND, torch.tensor([0, 1, 0, 1, 1]), 2)
    assert found.tolist() == [0.5, 1.0, 0.5, 0.5, 0.5]
    assert neighbours_apart(rows_ND, torch.tensor([0, 1, 0, 1, 1]), 50)[0] == 0.75


def packed(texts):
    ids = np.array([word for text in texts for word in text])
    return ids, np.array([0, *np.cumsum([len(text) for text in texts])])


def test_bm25_is_its_formula_word_by_word():
    texts, queries = [[0, 1, 1], [2], [0, 2, 3, 4], [5]], [[1, 1, 3], [0, 5], [7]]
    mean = sum(map(len, texts)) / len(texts)
    wanted = [
        [
            sum(
                math.log1p((4 - n + 0.5) / (n + 0.5)) * f * 2.2
                / (f + 1.2 * (0.25 + 0.75 * len(text) / mean))
                for word in query
                for n in [sum(word in other for other in texts)]
                for f in [text.count(word)]
            )
            for text in texts
        ]
        for query in queries
    ]  # fmt: skip
    found = bm25(packed(texts), packed(queries), 8)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert found[2].tolist() == [0.0] * 4


def test_what_is_similar_speaks_for_its_own_label():
    similar = torch.tensor([[2.0, 0.0, 1.0], [0.0, 4.0, 1.0]])
    found = agreement(similar, torch.tensor([0, 1]), torch.tensor([0, 0, 2]), 3)
    assert found.tolist() == pytest.approx([1.0, -1.0, -0.5])


def test_normal_scores_are_quantiles_of_mean_ranks():
    found = normal_scores(torch.tensor([5.0, -1e9, 5.0, 7.0]))
    wanted = torch.special.ndtri(torch.tensor([0.5, 0.125, 0.5, 0.875], dtype=torch.float64))
    torch.testing.assert_close(found, wanted)
