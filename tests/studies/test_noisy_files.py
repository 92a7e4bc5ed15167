"""Labelled texts from files and from GLUE."""

import csv
import gzip
import json
import os
import shlex

import pytest

from distinf.config_file import override_of
from distinf.errors import InputError
from distinf.studies.language.identity import file_digest
from distinf.studies.language.parsing import read_columns
from distinf.studies.noisy_labels.files import read_table
from distinf.studies.noisy_labels.glue import from_hub, glue_table
from distinf.studies.noisy_labels.settings import DataSettings

ROWS = [("a", 1, 'He said "no".', "train"), ("b", 0, "Näher, mein", "dev"), ("c", 1, "", "test")]
NAMES = ("key", "label", "sentence", "split")


def write(folder, kind):
    path = folder / f"data{kind}"
    if kind.startswith(".tsv"):
        content = "\n".join("\t".join(map(str, row)) for row in [NAMES, *ROWS]) + "\n"
    elif kind == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([NAMES, *ROWS])
        return path
    elif kind == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="needs distinf[llm]")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(dict(zip(NAMES, map(list, zip(*ROWS))))), path)
        return path
    else:
        content = "\n".join(json.dumps(dict(zip(NAMES, row))) for row in ROWS)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return path


@pytest.mark.smoke
@pytest.mark.parametrize("kind", [".tsv", ".tsv.gz", ".csv", ".jsonl", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_table(tmp_path, kind):
    table = read_table(DataSettings(path=str(write(tmp_path, kind)), id="key"))
    assert table.texts == [(row[2],) for row in ROWS]
    assert table.labels.tolist() == [1, 0, 1]
    assert table.ids == ["a", "b", "c"]
    assert table.splits.tolist() == ["train", "validation", "test"]


def test_text_columns_are_found_or_named(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("source\tlabel\tquestion\tsentence\nx\t0\tq\ts\ny\t1\tr\tt\n")
    assert read_table(DataSettings(path=str(path))).texts == [("q", "s"), ("r", "t")]
    assert read_table(DataSettings(path=str(path), text=("source",))).texts == [("x",), ("y",)]
    other = tmp_path / "other.csv"
    other.write_text("label,review\n0,bad\n1,good\n")
    assert read_table(DataSettings(path=str(other))).texts == [("bad",), ("good",)]


@pytest.mark.parametrize(
    ("name", "content", "settings", "said"),
    [
        ("a.jsonl", '{"label": null, "sentence": "x"}', {}, "1 rows have no label, row 0 first"),
        ("a.csv", "label,text\na,x\n ,y\nnan,z\n", {}, "2 rows have no label, row 1 first"),
        (
            "a.jsonl",
            '{"label": ["a"], "text": "x"}',
            {},
            "the label in row 0 is list; give each row",
        ),
        (
            "a.csv",
            "label,text\na,x\nB,y\nb,z\n",
            {},
            "'B' (1 rows) and 'b' (1 rows) differ only in",
        ),
        (
            "a.csv",
            "label,text\na,x\nb,y\n",
            {"classes": ("b", "c")},
            "label 'a' in row 0 is none of",
        ),
        (
            "a.csv",
            "label,text\nyes,x\n",
            {"classes": (True, False)},
            "(in YAML, quote yes, no, true",
        ),
        (
            "a.tsv",
            "labels\tsentence\n1\tx\n",
            {},
            "no column 'label'; it has labels, sentence; did you mean --set data.label=labels?",
        ),
        (
            "a.tsv",
            "label\tx\ty\n1\ta\tb\n",
            {},
            "hold the text? name one or two; it has label, x, y",
        ),
        ("a.tsv", "label\tx\n1\ta\n", {"text": ("review",)}, "no column 'review'; it has label, x"),
        (
            "a.csv",
            "id,ticket_body,queue\n1,some words,a\n2,b,a\n",
            {},
            "has no column 'label'; data.text: which columns of",
        ),
        (
            "a.csv",
            "id,ticket_body,queue\n1,some words,a\n2,b,a\n",
            {},
            "did you mean --set data.label=queue --set data.text=ticket_body?",
        ),
        ("a.csv", "label,text\na,x\n", {"group": "author"}, "data.group: "),
        ("a.tsv", "label\tx\tid\n1\ta\t7\n0\tb\t7\n", {"id": "id"}, "'7' first; make them"),
        ("a.tsv", "label\tx\tsplit\n1\ta\teval\n", {}, "says 'eval'; use train"),
        ("a.tsv", "label\tsentence\n", {}, "has no rows"),
        ("a.tsv", "", {}, "has no rows"),
        ("a.tsv", "label\tsentence\n1\n", {}, "row 0 (line 2) has 1 fields where the header has 2"),
        ("a.tsv", "label\tlabel\n1\t1\n", {}, "two columns are called 'label'"),
        ("a.csv", 'label,sentence\n1,"x\n', {}, "is not CSV"),
        ("a.jsonl", "{", {}, "row 0 (line 1) is not JSON"),
        (
            "a.jsonl",
            '{"label": 1, "text": "x"}\n{"label": 1}',
            {},
            "row 1 (line 2) must be an object",
        ),
        ("a.jsonl", "[1]", {}, "row 0 (line 1) must be an object"),
        ("a.jsonl", '{"label": 1, "text": "x"}\n3', {}, "row 1 (line 2) must be"),
        ("a.jsonl", '{"label": 1, "text": 3}', {"text": ("text",)}, "'text' of"),
        ("a.parquet", "nonsense", {}, "is not Parquet"),
        ("a.xlsx", "", {}, "unknown suffix; use one of .tsv, .csv"),
        ("a", "", {}, "unknown suffix"),
        ("a.tsv.gz", "not zipped", {}, "Not a gzipped file"),
        ("a.jsonl", '{"label": 1, "text": "x", "split": [1]}', {}, "says [1]; use train"),
        (None, "", {}, "No such file or directory"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, content, settings, said):
    path = tmp_path / (name or "absent.tsv")
    if name:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        read_table(DataSettings(path=str(path), **settings))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("label", ["Class Name", "yes", "label: 1", "it's", "Étiquette"])
def test_what_is_to_be_set_is_printed_as_a_shell_takes_it(tmp_path, label):
    path = tmp_path / "a.jsonl"
    rows = [{"Review Text": f"{n} words of it", label: n % 2} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="did you mean ") as refused:
        read_table(DataSettings(path=str(path)))
    sets = shlex.split(str(refused.value).rpartition("did you mean ")[2].removesuffix("?"))
    assert sets[::2] == ["--set"] * (len(sets) // 2)
    values = {key.removeprefix("data."): value for key, value in map(override_of, sets[1::2])}
    assert values["label"] == label
    assert read_table(DataSettings(path=str(path), label=label)).labels.tolist() == [0, 1, 0, 1]


def test_names_of_columns_have_no_spaces_around_them(tmp_path):
    (tmp_path / "a.csv").write_text("text, label\nsome words, 1\nothers, 0\n")
    found = read_table(DataSettings(path=str(tmp_path / "a.csv")))
    assert (found.texts, found.labels.tolist()) == ([("some words",), ("others",)], [1, 0])


def test_a_damaged_archive_is_one_line(tmp_path):
    path = tmp_path / "a.tsv.gz"
    data = bytearray(gzip.compress(b"label\tsentence\n" + b"1\tsome words\n" * 50))
    data[20] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match="a file that can be read"):
        read_table(DataSettings(path=str(path)))


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"label\tsentence\n1\t\xff\n")
    with pytest.raises(InputError, match=r"not UTF-8 at byte 17 \(line 2\)"):
        read_table(DataSettings(path=str(path)))


# -- GLUE ----------------------------------------------------------------------------------


def loader(columns, splits=("train", "validation")):
    datasets = pytest.importorskip("datasets", reason="needs distinf[llm]")
    return lambda name, revision: {split: datasets.Dataset.from_dict(columns) for split in splits}


@pytest.mark.smoke
def test_mnli_drops_its_third_class_and_keeps_row_numbers():
    columns = {"premise": list("pqrst"), "hypothesis": list("hijkl"), "label": [2, 0, 1, 2, 1]}
    table = glue_table("mnli", load=loader(columns, ("train", "validation_matched")))
    assert table.labels.tolist() == [0, 1, 1] * 2
    assert table.rows.tolist() == [1, 2, 4] * 2
    assert table.texts[0] == ("q", "i")
    assert table.splits.tolist() == ["train"] * 3 + ["validation"] * 3


def test_mnli_has_three_classes_where_they_are_asked_for():
    columns = {"premise": list("pqrst"), "hypothesis": list("hijkl"), "label": [2, 0, 1, 2, 1]}
    load = loader(columns, ("train", "validation_matched"))
    data = DataSettings(datasets=("mnli",), classes=(0, 1, 2))
    table = glue_table("mnli", load=load, classes=data.named_classes)
    assert table.labels.tolist() == [2, 0, 1, 2, 1] * 2
    assert table.classes == ("0", "1", "2")


def test_stsb_is_cut_at_three():
    columns = {"sentence1": list("abcd"), "sentence2": list("efgh"), "label": [0.0, 2.99, 3.0, 5]}
    table = glue_table("stsb", load=loader(columns))
    assert table.labels.tolist() == [0, 0, 1, 1] * 2
    assert table.ids[:5] == ["train-0", "train-1", "train-2", "train-3", "validation-0"]


def test_a_glue_task_without_labels_or_split_is_refused():
    hidden = {"sentence": ["x", "y"], "label": [1, -1]}
    with pytest.raises(InputError, match="label '-1' in row 1"):
        glue_table("cola", load=loader(hidden))
    with pytest.raises(InputError, match="cola has no split 'validation', only train"):
        glue_table("cola", load=loader({"sentence": ["x"], "label": [1]}, ("train",)))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs distinf[llm]")

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError) as error:
        from_hub("rte", "main")
    assert "rte: nyu-mll/glue could not be loaded (ConnectionError: no route)" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.timeout(20)
def test_a_pipe_is_no_file_of_rows(tmp_path):
    """It would be waited for without an end, and read once where it is needed twice."""
    os.mkfifo(tmp_path / "rows.csv")
    for read in (read_columns, file_digest):
        with pytest.raises(InputError, match=r"Not a file that ends"):
            read(str(tmp_path / "rows.csv"))
