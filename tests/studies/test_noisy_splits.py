"""Rows of training, queries and tests; flips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import InputError
from distinf.studies.noisy_labels.files import Table
from distinf.studies.noisy_labels.noise import flips, relabelled
from distinf.studies.noisy_labels.splits import grouped, split_rows, stratified

SIZES = {"train": 60, "evaluation": 20, "test": 10}


def table(labels, splits=None, **more):
    rows = len(labels)
    return Table(
        texts=[(str(row),) for row in range(rows)],
        labels=np.asarray(labels),
        rows=np.arange(rows),
        ids=[str(row) for row in range(rows)],
        splits=None if splits is None else np.asarray(splits),
        **more,
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


def test_of_two_classes_a_flipped_label_is_the_other():
    labels, flipped = np.arange(500) % 2, flips(500, 0.2, 7)
    found = relabelled(labels, flipped, 2, 7)
    np.testing.assert_array_equal(found, np.where(flipped, 1 - labels, labels))


def test_flipped_labels_go_to_every_other_class_alike():
    labels = np.arange(12_000) % 5
    flipped = flips(12_000, 0.45, 3)
    found = relabelled(labels, flipped, 5, 3)
    np.testing.assert_array_equal(found != labels, flipped)
    steps = np.bincount(((found - labels) % 5)[flipped], minlength=5)[1:]
    assert abs(steps - 5_400 / 4).max() < 4 * np.sqrt(5_400 * 0.25 * 0.75)
    np.testing.assert_array_equal(found, relabelled(labels, flipped, 5, 3))
    assert (found != relabelled(labels, flipped, 5, 4)).any()


NAMED = ("billing", "delivery", "returns")


@pytest.mark.parametrize(
    ("labels", "splits", "said"),
    [
        ([0, 1] * 60 + [2], None, "'returns' (row 120) occurs in one row only; mend the label"),
        (
            [0, 1] * 30 + [0, 1, 2] * 10,
            ["train"] * 60 + ["validation"] * 30,
            "no training row has class 'returns', which evaluation rows have",
        ),
    ],
)
def test_classes_that_cannot_be_learned_are_refused_by_name(labels, splits, said):
    with pytest.raises(InputError) as error:
        split_rows(table(labels, splits, classes=NAMED), SIZES, 0, shrink=False)
    assert said in str(error.value)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.data())
def test_groups_are_never_parted(groups, data):
    groups = np.array(groups)
    labels = data.draw(st.lists(st.integers(0, 3), min_size=len(groups), max_size=len(groups)))
    first = data.draw(st.integers(0, len(groups)))
    sizes = {"a": first, "b": data.draw(st.integers(0, len(groups) - first))}
    rows = np.arange(len(groups))
    parts = grouped(np.array(labels), groups, rows, sizes, np.random.default_rng(0))
    assert all(len(parts[name]) <= size for name, size in sizes.items())
    taken = np.concatenate(list(parts.values()))
    assert len(np.unique(taken)) == len(taken)
    for part in parts.values():
        assert set(rows[np.isin(groups, groups[part])]) == set(part)


def test_pairs_fill_the_parts_in_proportion():
    groups, labels = np.arange(240) // 2, np.arange(240) // 2 % 3
    source = table(labels, classes=NAMED, groups=groups)
    parts = split_rows(source, SIZES, 0, shrink=False)
    assert {name: len(rows) for name, rows in parts.items()} == SIZES
    assert np.bincount(labels[parts["train"]]).tolist() == [20, 20, 20]
    again = split_rows(source, SIZES, 0, shrink=False)
    np.testing.assert_array_equal(parts["test"], again["test"])


def test_a_group_that_is_too_large_is_told():
    source = table(np.arange(120) % 2, groups=np.zeros(120, int))
    with pytest.raises(InputError, match=r"data\.group: only 0 train rows of 60"):
        split_rows(source, SIZES, 0, shrink=False)
