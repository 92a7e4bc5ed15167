"""Classes of labelled texts: names, order, numbers, and labels that are none."""

import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distinf.errors import InputError
from distinf.studies.noisy_labels.classes import class_name, class_names, classes_among, ordered
from distinf.studies.noisy_labels.files import read_table
from distinf.studies.noisy_labels.settings import DataSettings


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (1, "1"), (1.0, "1"), ("1.0", "1"), (-2.0, "-2"), ("01", "01"), (0.5, "0.5"),
        (True, "true"), (np.bool_(False), "false"), ("True", "True"), (np.int64(3), "3"),
        (Decimal("2.00"), "2"), (" returns ", "returns"), ("no return", "no return"),
        (None, None), (float("nan"), None), ("NaN", None), ("  ", None), ("none", "none"),
    ],
)  # fmt: skip
def test_a_class_is_called_as_its_label_stands(label, name):
    assert class_name(label) == name


def test_numbers_are_ordered_by_value_and_names_by_letters():
    assert ordered(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert ordered(["returns", "billing", "Delivery", "10"]) == (
        "10",
        "Delivery",
        "billing",
        "returns",
    )


@given(st.permutations(["praise", "billing", "other", "delivery"]))
def test_the_order_of_classes_does_not_depend_on_the_order_of_rows(names):
    assert classes_among(names, "here") == ("billing", "delivery", "other", "praise")


def test_labels_of_every_kind_become_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    for labels, classes, numbers in [
        (["no", "yes", "no"], ("no", "yes"), [0, 1, 0]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        ([5, 1, 3], ("1", "3", "5"), [2, 0, 1]),
        ([-1, 1, -1], ("-1", "1"), [0, 1, 0]),
    ]:
        rows = [json.dumps({"label": label, "text": "x"}) for label in labels]
        path.write_text("\n".join(rows))
        table = read_table(DataSettings(path=str(path)))
        assert (table.classes, table.labels.tolist()) == (classes, numbers)


def test_a_configuration_can_fix_the_order(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nx,low\ny,high\nz,mid\n")
    table = read_table(DataSettings(path=str(path), classes=("low", "mid", "high", "never")))
    assert table.classes == ("low", "mid", "high", "never")
    assert table.labels.tolist() == [0, 2, 1]
    path.write_text("text,label\nx,us\ny,US\nz,us\n")  # the remedy for labels that look alike
    assert read_table(DataSettings(path=str(path), classes=("us", "US"))).labels.tolist() == [
        0, 1, 0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "labels",
    [
        [f"ticket {k}" for k in range(40)],
        list(range(1000)),
        [round(0.1 * (k % 25), 1) for k in range(500)],  # few, but with fractions: measurements
    ],
)
def test_texts_ids_and_measurements_are_no_classes(labels):
    names = class_names(labels, "data.label: a.csv: column 'x'")
    with pytest.raises(InputError, match="are not classes but texts, ids or measurements"):
        classes_among(names, "data.label: a.csv: column 'x'")


def test_many_classes_with_rows_enough_are_classes():
    names = [f"intent {k % 77}" for k in range(770)]
    assert len(classes_among(names, "here")) == 77
    assert len(classes_among([str(k % 26) for k in range(500)], "here")) == 26
