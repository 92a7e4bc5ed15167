"""Rows of training, queries and tests; flips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import InputError
from distinf.studies.noisy_labels.files import Table
from distinf.studies.noisy_labels.noise import flips
from distinf.studies.noisy_labels.splits import split_rows, stratified

SIZES = {"train": 60, "evaluation": 20, "test": 10}


def table(labels, splits=None):
    rows = len(labels)
    return Table(
        texts=[(str(row),) for row in range(rows)],
        labels=np.asarray(labels),
        rows=np.arange(rows),
        ids=[str(row) for row in range(rows)],
        splits=None if splits is None else np.asarray(splits),
    )


def of_splits(*sizes, share=0.25):
    """Rows of train, validation (and test), a quarter of each of class 1."""
    names = ("train", "validation", "test")
    splits = [name for name, size in zip(names, sizes) for _ in range(size)]
    labels = [int(k < share * size) for size in sizes for k in range(size)]
    return table(labels, splits)


def test_one_pool_gives_disjoint_parts_with_its_proportion_of_labels():
    source = table(np.arange(120) < 30)
    parts = split_rows(source, SIZES, 0, shrink=False)
    assert {name: len(rows) for name, rows in parts.items()} == SIZES
    assert len(np.unique(np.concatenate(list(parts.values())))) == 90
    assert [int(source.labels[parts[name]].sum()) for name in SIZES] == [15, 5, 2]


def test_a_seed_gives_the_same_rows_and_another_seed_others():
    source = table(np.arange(120) % 2)
    first, again, other = (split_rows(source, SIZES, seed, shrink=False) for seed in (4, 4, 5))
    for name in SIZES:
        np.testing.assert_array_equal(first[name], again[name])
        assert set(first[name]) != set(other[name])


def test_queries_and_tests_share_the_validation_rows():
    source = of_splits(80, 40)
    parts = split_rows(source, SIZES, 1, shrink=False)
    assert set(source.splits[parts["train"]]) == {"train"}
    assert set(source.splits[np.r_[parts["evaluation"], parts["test"]]]) == {"validation"}
    assert not set(parts["evaluation"]) & set(parts["test"])


def test_tests_come_from_the_test_rows_where_there_are_some():
    source = of_splits(80, 40, 12)
    parts = split_rows(source, SIZES, 1, shrink=False)
    assert set(source.splits[parts["test"]]) == {"test"}
    assert set(source.splits[parts["evaluation"]]) == {"validation"}


def test_mrpc_is_halved_and_its_training_rows_are_all_used():
    sizes = {"train": 4500, "evaluation": 500, "test": 500}
    parts = split_rows(of_splits(3668, 408), sizes, 0, shrink=True)
    assert [len(rows) for rows in parts.values()] == [3668, 204, 204]
    parts = split_rows(of_splits(2490, 277), sizes, 0, shrink=True)  # RTE: never the same rows
    assert [len(rows) for rows in parts.values()] == [2490, 139, 138]
    assert not set(parts["evaluation"]) & set(parts["test"])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (table(np.arange(80) % 2), "data.query_rows=20 + data.test_rows=10: there are only 80"),
        (of_splits(40, 40), "data.train_rows=60: there are only 40 'train' rows"),
        (of_splits(80, 20), "data.query_rows=20 + data.test_rows=10: there are only 20 'valid"),
        (of_splits(80, 0), "split 'validation' has 0 rows"),
        (of_splits(0, 80), "split 'train' has 0 rows"),
        (table(np.zeros(120, int)), "all 60 train rows have the same label"),
    ],
)
def test_what_cannot_be_split_is_refused(source, said):
    with pytest.raises(InputError) as error:
        split_rows(source, SIZES, 0, shrink=False)
    assert said in str(error.value)


@given(st.lists(st.integers(0, 1), min_size=4, max_size=60), st.data())
def test_stratified_parts_are_as_large_as_asked_and_disjoint(labels, data):
    labels = np.array(labels)
    first = data.draw(st.integers(0, len(labels)))
    second = data.draw(st.integers(0, len(labels) - first))
    draw = np.random.default_rng(0)
    parts = stratified(labels, np.arange(len(labels)), {"a": first, "b": second}, draw)
    assert (len(parts["a"]), len(parts["b"])) == (first, second)
    taken = np.concatenate(list(parts.values()))
    assert len(np.unique(taken)) == first + second
    assert abs(labels[parts["a"]].sum() - first * labels.mean()) < 1


@given(st.integers(1, 500), st.floats(0, 0.49), st.integers(0, 99))
def test_exactly_the_share_of_labels_is_flipped(rows, share, seed):
    flipped = flips(rows, share, seed)
    assert flipped.sum() == int(share * rows)
    np.testing.assert_array_equal(flipped, flips(rows, share, seed))


def test_flips_are_not_stratified_and_differ_by_seed():
    drawn = np.array([flips(400, 0.2, seed)[:200].sum() for seed in range(60)])
    assert drawn.std() > 2  # 80 flips over two halves: hypergeometric, sd 4
    assert abs(drawn.mean() - 40) < 2.5
