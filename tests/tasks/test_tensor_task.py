"""A task from tensors: evaluation rows that are training rows, and columns as people give them."""

import csv
import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from distinf.errors import InputError
from distinf.report.rows import csv_text
from distinf.tasks.notes import described
from distinf.tasks.tensor_task import TensorTask


def task_of(train, evaluation, **options):
    data = {"train": train, "evaluation": evaluation}
    losses = {"loss": lambda model, batch: model(batch["x"]).square().mean(1)}
    return TensorTask(lambda: torch.nn.Linear(3, 2), data, losses, **options)


def rows(seed, count=20):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(count, 3, generator=generator),
        "label": torch.randint(2, (count,), generator=generator),
    }


def test_shared_rows_are_counted_and_named():
    train, evaluation = rows(0), rows(1, 9)
    for row, twin in ((2, 19), (3, 0), (8, 4), (5, 5)):
        for name, values in train.items():
            evaluation[name][row] = values[twin]
    message = (
        r"4 of 9 evaluation rows are training rows too \(2 = training row 19, 3 = training row 0, "
        r"5 = training row 5, …\); .* say shared_rows=True if that is meant$"
    )
    with pytest.raises(InputError, match=message):
        task_of(train, evaluation).digests()
    assert task_of(train, evaluation, shared_rows=True).digests()


def test_a_row_is_all_of_its_columns():
    train, evaluation = rows(0), rows(1)
    evaluation["x"] = train["x"].clone()
    evaluation["label"] = 1 - train["label"]
    assert task_of(train, evaluation).digests()
    evaluation["label"][7] = train["label"][7]
    with pytest.raises(InputError, match=r"1 of 20 .*\(7 = training row 7\)"):
        task_of(train, evaluation).digests()


def test_columns_of_one_split_alone_do_not_tell_rows_apart():
    train, evaluation = rows(0), rows(1)
    evaluation["x"][3], evaluation["label"][3] = train["x"][6], train["label"][6]
    evaluation["weight"] = torch.arange(20.0)
    with pytest.raises(InputError, match=r"3 = training row 6"):
        task_of(train, evaluation).digests()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.float64, torch.uint8])
def test_columns_may_be_of_any_type_and_order_in_memory(dtype):
    train = {"x": torch.randn(8, 3, 4).to(dtype).transpose(1, 2), "y": torch.zeros(8)}
    evaluation = {"x": torch.ones(5, 4, 3).to(dtype), "y": torch.ones(5)}
    assert task_of(train, evaluation).digests()


# -- what people give ----------------------------------------------------------------------


def noted(count=6, **options):
    return task_of(rows(0, count), rows(1, 3), **options)


def given_notes():
    pandas = pytest.importorskip("pandas")
    index = [3, 0, 5, 1, 4, 2]
    words = ["a", "b", "a", "c", "b", "a"]
    dates = pandas.date_range("2024-01-01", periods=6)
    half = ["cut \ud83d", *words[1:]]
    return {
        "series": (pandas.Series(words, index=index), words),
        "categories": (pandas.Series(words, index=index, dtype="category"), words),
        "index": (pandas.Index(words), words),
        "dates": (pandas.Series(dates, index=index), [str(date) for date in dates]),
        "gaps": (pandas.Series([1, None, pandas.NA] * 2, dtype="Int64"), [1, None, None] * 2),
        "not a time": (pandas.Series([pandas.NaT] * 6), [None] * 6),
        "days": (np.array(["2024-01-01", "NaT"] * 3, "M8[D]"), ["2024-01-01", None] * 3),
        "spans": (np.arange(6).astype("m8[s]"), [f"{i} seconds" for i in range(6)]),
        "tensor": (torch.arange(6), list(range(6))),
        "half precision": (torch.tensor([0.5] * 6, dtype=torch.bfloat16), [0.5] * 6),
        "probabilities": (torch.tensor([[0.25, 0.75]] * 6), [[0.25, 0.75]] * 6),
        "array": (np.array([True] * 6), [True] * 6),
        "scalars": ([np.float32(0.5), float("nan"), np.int8(3), None, np.str_("x"), Path("p")],
                    [0.5, None, 3, None, "x", "p"]),
        "half a character": (half, ["cut \ufffd", *words[1:]]),
        "bytes": ([b"a"] * 6, ["a"] * 6),
    }  # fmt: skip


@pytest.mark.parametrize("kind", given_notes() if find_spec("pandas") else ())
def test_notes_are_taken_by_place_and_made_plain(kind):
    given, expected = given_notes()[kind]
    told = noted(notes={"note": given}).describe(np.array([5, 0, 3]))
    assert told == [{"row": i, "note": expected[i]} for i in (5, 0, 3)]
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    csv_text(told).encode()


def test_a_note_called_like_a_column_of_ours_stands_beside_it():
    task = noted(notes={"row": range(10, 16), 7: list("abcdef")})
    assert task.describe(np.array([2])) == [{"row": 2, "note_row": 12, "7": "c"}]


@pytest.mark.parametrize("name", ["", " "])
def test_a_note_without_a_name_is_refused(name):
    with pytest.raises(InputError, match="a note has an empty name; give it one"):
        noted(notes={name: list("abcdef")}).describe(np.array([2]))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            (str(i) for i in range(6)),
            "'note' is a generator, which can be read once; make",
        ),
        ("abcdef", "'note' is a str; give one value for each training row"),
        ({"a": 1}, "'note' is a dict"),
        ({1, 2}, "'note' is a set"),
        (np.float64(3.0), "'note' is a float64"),
        (torch.tensor(3), "'note' is a single number"),
        ([1, 2], "'note' has 2 values for 6 training rows"),
    ],
)
def test_notes_that_are_no_value_a_row_are_one_line(given, told):
    with pytest.raises(InputError) as caught:
        noted(notes={"note": given})
    assert told in str(caught.value)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda v: np.array(v, dtype=float)])
def test_flipped_rows_in_any_form(make):
    wrong = [False, True, False, False, True, False]
    found = noted(flipped=make(wrong)).flipped()
    assert found.dtype == bool
    assert found.tolist() == wrong


@pytest.mark.parametrize(
    ("given", "told"),
    [([0, 2, 0, 0, 0, 0], "holds 2; give true or false"), ([1, 4], "'flipped' holds 4"),
     (["no"] * 6, "holds 'no'"), ([True], "'flipped' has 1 values for 6")],
)  # fmt: skip
def test_flipped_rows_that_are_no_truth_values_are_one_line(given, told):
    with pytest.raises(InputError, match=told):
        noted(flipped=given)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.arange(12.0).reshape(4, 3), torch.float64),
        (np.arange(12, dtype=np.float32).reshape(4, 3)[::-1], torch.float32),
        (np.arange(12, dtype=">i4").reshape(4, 3), torch.int32),
        ([[1.0, 2.0, 3.0]] * 4, torch.float32),
        ([[1, 2, 3]] * 4, torch.int64),
        ([torch.ones(3)] * 4, torch.float32),
        ([np.ones(3)] * 4, torch.float64),
        (np.array([[True, False, True]] * 4), torch.bool),
    ],
)
def test_columns_of_numbers_become_tensors(given, dtype):
    task = task_of({"x": given}, {"x": torch.rand(2, 3)})
    found = task.batch("train", np.arange(4))["x"]
    assert (found.dtype, tuple(found.shape)) == (dtype, (4, 3))
    assert found[1].tolist() == np.asarray(given[1]).tolist()


def test_columns_of_pandas_are_taken_by_place():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [[1.0, 2, 3]] * 2, "y": [4, 5]}, index=[1, 0])
    task = task_of({"x": frame["x"], "y": frame["y"]}, rows(1))
    assert task.batch("train", np.array([0]))["y"].tolist() == [4]
    assert task.batch("train", np.array([0]))["x"].tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["a", "b"], "holds texts, not numbers; encode it first (texts by a tokenizer)"),
        (np.array(["2024", "2025"], "M8[Y]"), "holds datetime64"),
        ([[1, 2], [1]], "rows of different lengths; pad them"),
        ([torch.ones(2), torch.ones(3)], "rows of different shapes; pad them"),
        ([None, 1], "holds values such as None"),
        ((i for i in range(3)), "is a generator, not a tensor"),
        (torch.tensor(1.0), "is a single number"),
        (torch.ones(0, 3), "'train' has no rows"),
    ],
)
def test_columns_that_are_no_numbers_are_one_line(given, told):
    with pytest.raises(InputError) as caught:
        task_of({"x": given}, rows(1))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", [torch.ones(4, 3), [1, 2], "x"])
def test_a_split_that_is_no_dict_is_one_line(split):
    with pytest.raises(InputError, match=r"data\['train'\] is a .*; give a dict of columns"):
        task_of(split, rows(1))


def test_texts_that_a_spreadsheet_would_run_are_marked():
    cells = ["=1+1", "+cmd", "-2+cmd", "@SUM(A1)", "\tx", "-5", "plain", -5]
    found = list(csv.reader(io.StringIO(csv_text([{"=name": cell} for cell in cells]))))
    marked = ["'=name", "'=1+1", "'+cmd", "'-2+cmd", "'@SUM(A1)", "'\tx", "-5", "plain", "-5"]
    assert [row[0] for row in found] == marked


def test_what_a_task_says_of_its_rows_is_refused_at_once_or_made_plain():
    several = np.array([4, 2])
    told = described(lambda ids: [{"row": 10 + i, "p": torch.tensor(0.5)} for i in ids], several)
    assert told == [{"row": 14, "p": 0.5}, {"row": 12, "p": 0.5}]
    named = described(lambda ids: [{"row": f"id-{i}"} for i in ids], several)
    assert named == [{"row": 4, "note_row": "id-4"}, {"row": 2, "note_row": "id-2"}]
    for wrong in (lambda ids: [{}], lambda ids: ["a", "b"]):
        with pytest.raises(InputError, match=r"describe\(\) gave .* return a dict for each row"):
            described(wrong, several)
