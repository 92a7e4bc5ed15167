import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import distinf
from distinf.errors import InputError
from distinf.numerics import sparse
from distinf.numerics.sparse import SparseRows, sparse_gram

V, D = 7, 3


def gradients(lengths, seed=0, dtype=torch.float64):
    """Samples of so many tokens of the vocabulary, in random order and with repetitions."""
    random = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    samples = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
    ids = torch.randint(0, V, (count,), generator=random)
    rows = torch.randn(count, D, generator=random, dtype=torch.float64).to(dtype)
    dense = torch.zeros(len(lengths), V, D, dtype=rows.dtype)
    for sample, id_, row in zip(samples, ids, rows, strict=True):
        dense[sample, id_] += row
    shuffled = torch.randperm(count, generator=random)
    found = SparseRows.summed(samples[shuffled], ids[shuffled], rows[shuffled], len(lengths), V)
    return found, dense


some_lengths = st.lists(st.integers(0, 6), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(some_lengths, some_lengths, st.integers(0, 99))
def test_every_operation_is_that_of_the_dense_gradient(lengths, others, seed):
    first, dense = gradients(lengths, seed)
    second, other = gradients(others, seed + 1)
    torch.testing.assert_close(first.dense(), dense)
    torch.testing.assert_close(sparse_gram(first, second), dense.flatten(1) @ other.flatten(1).T)
    torch.testing.assert_close(first.sqnorms(), dense.flatten(1).square().sum(1))
    both = SparseRows.cat([first, second])
    assert len(both) == len(lengths) + len(others)
    torch.testing.assert_close(both.dense(V), torch.cat([dense, other]))
    index = torch.randint(0, len(both), (5,), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(both.select(index).dense(), torch.cat([dense, other])[index])
    torch.testing.assert_close((first + first).dense(), 2 * dense)
    directions = torch.randn(4, V * D, dtype=torch.float64)
    torch.testing.assert_close(first.along(directions), dense.flatten(1) @ directions.T)
    for part in (first, both, both.select(index)):
        for ids in part.ids.tensor_split(part.offsets[1:-1]):
            assert (ids.diff() > 0).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(some_lengths, st.integers(1, 7), st.integers(0, 99))
def test_top_rows_are_those_of_largest_norm(lengths, k, seed):
    first, dense = gradients(lengths, seed)
    expected = torch.zeros_like(dense)
    for n, rows in enumerate(dense):
        for id_ in rows.norm(dim=1).argsort(descending=True)[:k]:
            expected[n, id_] = rows[id_]
    torch.testing.assert_close(first.top_rows(k).dense(), expected)


def test_equal_norms_are_taken_by_smaller_id():
    ids = torch.tensor([1, 3, 5, 0, 2])
    tied = SparseRows(torch.tensor([0, 3, 5]), ids, torch.tensor([[2.0], [-1.0], [1.0], [1], [1]]))
    found = tied.top_rows(2)
    assert found.ids.tolist() == [1, 3, 0, 2]
    assert found.offsets.tolist() == [0, 2, 4]


def test_a_sum_of_zero_is_no_row_and_nan_is_one():
    ids = torch.tensor([4, 2, 4, 2])
    rows = torch.tensor([[1.0, 0.0], [torch.nan, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    found = SparseRows.summed(torch.tensor([0, 1, 0, 0]), ids, rows, 3, V)
    assert found.offsets.tolist() == [0, 0, 1, 1]
    assert found.ids.tolist() == [2]
    assert found.finite().tolist() == [True, False, True]


def test_a_row_whose_square_overflows_is_still_finite():
    row = torch.tensor([[1e200]], dtype=torch.float64)
    assert SparseRows(torch.tensor([0, 1]), torch.tensor([0]), row).finite().tolist() == [True]


def test_products_of_low_precision_are_summed_in_float32():
    first, _ = gradients([6, 5, 6], dtype=torch.bfloat16)
    second, _ = gradients([4, 6], seed=1, dtype=torch.float32)
    found = sparse_gram(first.to(torch.bfloat16), second)
    assert found.dtype == torch.float32
    expected = sparse_gram(first.to(torch.bfloat16).to(torch.float64), second.to(torch.float64))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_gram_multiplies_once_per_shared_id_and_lays_out_no_vocabulary():
    vocabulary = 10**12
    first = SparseRows(
        torch.tensor([0, 2, 3]), torch.tensor([5, vocabulary - 1, 5]), torch.ones(3, 2), vocabulary
    )
    products = list(sparse._shared(first, first.select(torch.tensor([1]))))
    assert [rows.shape for _, rows, _, _ in products] == [(2, 2)]
    assert sparse_gram(first, first).tolist() == [[4, 2], [2, 2]]


@pytest.mark.parametrize(
    "index",
    [slice(2), slice(-2, None), slice(None, None, 2), [3, 0, -1], torch.tensor([True, False] * 2)],
)
def test_samples_are_taken_as_rows_of_a_tensor_are(index):
    sparse, dense = gradients([2, 0, 3, 1])
    torch.testing.assert_close(sparse[index].dense(), dense[index])


def test_without_samples_everything_is_empty():
    none, _ = gradients([0, 0])
    assert none.select(torch.tensor([], dtype=torch.int64)).sqnorms().shape == (0,)
    assert sparse_gram(none, none).tolist() == [[0, 0], [0, 0]]
    assert none.along(torch.ones(3, V * D).double()).tolist() == [[0, 0, 0]] * 2
    with pytest.raises(AssertionError):
        SparseRows(none.offsets, none.ids, none.rows).dense()


@pytest.mark.parametrize("damping", [None, 0.3])
@pytest.mark.parametrize("estimator", ["tracin", "cosine", "datainf", "fisher"])
def test_scores_of_sparse_rows_are_those_of_dense_gradients(estimator, damping):
    if damping and estimator in ("tracin", "cosine"):
        return
    (train, dense), (query, dense_query) = gradients([5, 0, 6, 9]), gradients([3, 8], seed=1)
    expected = distinf.influence(
        dense.flatten(1), dense_query.flatten(1), estimator, damping=damping
    )
    torch.testing.assert_close(
        distinf.influence(train, query, estimator, damping=damping), expected
    )
    both = distinf.influence(
        {"words": train, "rest": dense}, {"words": query, "rest": dense_query}, estimator
    )
    torch.testing.assert_close(both["words"], both["rest"])


def test_sparse_gradients_that_do_not_fit_are_refused():
    (train, dense), (query, _) = gradients([5, 4]), gradients([3, 8], seed=1)
    broken = SparseRows(train.offsets, train.ids, train.rows.log(), V)
    with pytest.raises(InputError, match=r"2 train gradients are not finite \(rows \[0, 1\]\)"):
        distinf.influence(broken, query)
    with pytest.raises(InputError, match="both be sparse rows, or both tensors"):
        distinf.influence(train, dense)
    with pytest.raises(InputError, match="rows of 3 train and 2 query entries"):
        distinf.influence(train, SparseRows(query.offsets, query.ids, query.rows[:, 1:]))
    with pytest.raises(InputError, match="DataInf's default damping needs"):
        distinf.influence(SparseRows(train.offsets, train.ids, train.rows), query, "datainf")
    with pytest.raises(InputError, match="'arnoldi' takes no sparse rows"):
        distinf.influence(train, query, "arnoldi")
    none, _ = gradients([0, 0])
    assert distinf.influence(none, query, "datainf").tolist() == [[0, 0]] * 2
