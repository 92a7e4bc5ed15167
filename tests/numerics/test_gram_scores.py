"""The Gram route's pieces against dense float64 algebra, over shapes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.numerics.aggregation import aggregate, alike, count_lower, tallies
from distinf.numerics.estimators import datainf, fisher
from distinf.numerics.sparse import SparseRows, sparse_gram

SHAPES = st.tuples(st.integers(1, 7), st.integers(2, 12), st.integers(1, 15))  # Q, N, P
SLOWLY = settings(max_examples=40, deadline=None, derandomize=True)


def gradients(shape, seed):
    queries, samples, entries = shape
    random = torch.Generator().manual_seed(seed)
    train = torch.randn(samples, entries, generator=random, dtype=torch.float64)
    return train, torch.randn(queries, entries, generator=random, dtype=torch.float64)


@SLOWLY
@given(SHAPES, st.integers(0, 99), st.floats(1e-3, 1e3))
def test_fisher_through_the_gram_matrix_is_the_dense_inverse(shape, seed, damping):
    train_NP, query_QP = gradients(shape, seed)
    found = fisher.solve(train_NP @ train_NP.T, query_QP @ train_NP.T, damping)
    matrix = train_NP.T @ train_NP / len(train_NP)
    matrix += damping * torch.eye(len(matrix), dtype=torch.float64)
    wanted_QN = query_QP @ torch.linalg.solve(matrix, train_NP.T)
    torch.testing.assert_close(found.scores_QN, wanted_QN, rtol=1e-7, atol=1e-9)
    values = torch.linalg.eigvalsh(matrix)
    assert found.condition >= float(values[-1] / values[0]) * (1 - 1e-3)


@SLOWLY
@given(SHAPES, st.integers(0, 99), st.none() | st.floats(1e-3, 1e3))
def test_the_inverse_is_the_same_in_parameter_space(shape, seed, damping):
    train_NP, query_QP = gradients(shape, seed)
    through = fisher.solve(train_NP @ train_NP.T, query_QP @ train_NP.T, damping)
    found = fisher.precondition(train_NP.T @ train_NP, query_QP, len(train_NP), damping)
    scores_QN = found.queries_QP @ train_NP.T
    torch.testing.assert_close(scores_QN, through.scores_QN, rtol=1e-7, atol=1e-9)
    assert abs(found.damping / through.damping - 1) < 1e-9
    matrix = train_NP.T @ train_NP / len(train_NP)
    identity = torch.eye(len(matrix), dtype=torch.float64)
    values = torch.linalg.eigvalsh(matrix + found.damping * identity)
    assert found.condition >= float(values[-1]) / found.damping * (1 - 1e-9)


@SLOWLY
@given(SHAPES, st.integers(0, 99))
def test_a_factor_and_an_eigendecomposition_give_the_same(shape, seed):
    train_NP, query_QP = gradients(shape, seed)
    gram_NN, cross_QN = train_NP @ train_NP.T, query_QP @ train_NP.T
    found = fisher.solve(gram_NN, cross_QN)
    factor = fisher.factorise(gram_NN)
    assert abs(found.damping / fisher.default_damping(factor) - 1) < 1e-9
    wanted_QN = fisher.classic(factor, cross_QN, found.damping)
    torch.testing.assert_close(found.scores_QN, wanted_QN, rtol=1e-7, atol=1e-9)


def test_gradients_that_are_all_zero_move_no_query():
    found = fisher.solve(torch.zeros(3, 3), torch.zeros(2, 3))
    assert found.scores_QN.eq(0).all()
    assert found.damping == 0.0


@SLOWLY
@given(SHAPES, st.integers(0, 99))
def test_datainf_by_two_passes_is_that_by_the_gram_matrix(shape, seed):
    train_NP, query_QP = gradients(shape, seed)
    sqnorm_N, cross_QN = train_NP.square().sum(1), query_QP @ train_NP.T
    weights_QN = datainf.weights(cross_QN, sqnorm_N, 0.3)
    linear_QN = (weights_QN @ train_NP) @ train_NP.T
    torch.testing.assert_close(weights_QN @ (train_NP @ train_NP.T), linear_QN)


@SLOWLY
@given(SHAPES, st.integers(0, 99), st.floats(0.05, 0.95))
def test_tallies_are_the_aggregates_of_the_queries_that_are_right(shape, seed, top):
    train_NP, query_QP = gradients(shape, seed)
    scores_QN = query_QP @ train_NP.T
    right_Q = torch.arange(len(scores_QN)) % 2 == 0
    found = tallies(scores_QN, right_Q, top)
    torch.testing.assert_close(found["mean"], aggregate(scores_QN, "mean"))
    for how in ("rank", "vote"):
        wanted_N = aggregate(alike(scores_QN[right_Q]), how, top)
        torch.testing.assert_close(found[how], wanted_N)


@SLOWLY
@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=4))
def test_ties_share_how_many_are_lower(rows):
    scores = torch.tensor(rows, dtype=torch.float64)
    wanted = (scores[:, None, :] < scores[:, :, None]).sum(2)
    assert torch.equal(count_lower(scores), wanted)


def test_what_rounding_tells_apart_is_a_tie_and_what_differs_is_not():
    scores = torch.tensor([1.0, 1.0 - 1e-7, -1.0, -1.0 + 1e-7, 0.0, 1.001, 3e-30])
    rounded = alike(scores)
    assert rounded[0] == rounded[1] == 1.0
    assert rounded[2] == rounded[3] == -1.0
    assert rounded[5] > rounded[0]
    assert 0 == rounded[4] < rounded[6]


@SLOWLY
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_the_sparse_products_are_the_dense_ones(first, second, vocabulary, seed):
    random = torch.Generator().manual_seed(seed)
    dense = [
        torch.randn(n, vocabulary, 3, generator=random, dtype=torch.float64)
        * (torch.rand(n, vocabulary, 1, generator=random) < 0.5)
        for n in (first, second)
    ]
    sparse = []
    for grads in dense:
        samples, ids = (grads != 0).any(2).nonzero(as_tuple=True)
        rows = grads[samples, ids]
        sparse.append(SparseRows.summed(samples, ids, rows, len(grads), vocabulary))
    wanted = dense[0].flatten(1) @ dense[1].flatten(1).T
    torch.testing.assert_close(sparse_gram(*sparse).double(), wanted, rtol=1e-6, atol=1e-6)
