"""Files as people have them: read, or refused in one line that says which row."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.errors import InputError
from distinf.studies.language.parsing import READERS, read_columns

TEXTS = ["plain", 'He said "no".', '"Yes" she said', "a\ttab", "two\nlines", "", "Näher, mein; 😀"]


def read(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_columns(str(path)).columns


def written(texts, delimiter, quoting, end):
    out = io.StringIO()
    rows = [("text", "label"), *((text, i) for i, text in enumerate(texts))]
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_what_a_writer_quotes_is_read_without_its_quotes(tmp_path, name, delimiter, quoting, end):
    texts = [text.replace("\n", end) for text in TEXTS]
    found = read(tmp_path, name, written(texts, delimiter, quoting, end))
    assert found["text"] == texts
    assert found["label"] == [str(i) for i in range(len(TEXTS))]


@pytest.mark.parametrize(
    "texts",
    [
        ['"Yes" she said', "fine"],  # as in GLUE: the mark is the text's
        ['"Yes," she said. "No."', '"a "" b'],
        ['"a ""b"" c"', '"open'],
        ['"whole"', "fine"],
    ],
)
def test_marks_that_are_the_texts_own_stay(tmp_path, texts):
    content = "text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts)
    assert read(tmp_path, "a.tsv", content)["text"] == texts


def test_rows_are_not_swallowed_between_two_marks(tmp_path):
    content = 'text\tlabel\n"open\t1\nfine\t0\nclosed"\t1\n'
    assert read(tmp_path, "a.tsv", content)["text"] == ['"open', "fine", 'closed"']


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_encodings_that_say_what_they_are(tmp_path, name, encoding):
    delimiter = "," if name == "a.csv" else "\t"
    line = (
        '{"text": "é", "label": 1}' if name == "a.jsonl" else f"text{delimiter}label\né{delimiter}1"
    )
    assert list(read(tmp_path, name, line.encode(encoding))["text"]) == ["é"]


def test_a_field_of_any_length_is_read_and_the_limit_is_as_before(tmp_path):
    before = csv.field_size_limit()
    found = read(tmp_path, "a.csv", f"text,label\n{'x' * 300_000},1\n")
    assert len(found["text"][0]) == 300_000
    assert csv.field_size_limit() == before


BAD = {
    "goes on after its mark": ("a.csv", "t,l\n" + "a,1\n" * 7 + '"b" c,0\n', "row 7 (line 9)"),
    "mark never closed": ("a.csv", 't,l\na,1\n"b,0\nc,1\n', "row 1 (line 4)"),
    "in the header": ("a.csv", '"t" x,l\na,1\n', "the header (line 1)"),
    "ragged": ("a.csv", "t,l\na,1\n\nb\n", "row 1 (line 4) has 1 fields where the header has 2"),
    "ragged TSV": ("a.tsv", "t\tl\na\t1\nb\t1\tc\n", "row 1 (line 3) has 3 fields"),
    "CSV by another name": ("a.tsv", "text,label\na,1\n", "if it is CSV, name it .csv"),
    "Latin-1": ("a.csv", "t,l\na,1\nN\u00e4he,0\n".encode("latin-1"), "at byte 9 (line 3)"),
    "half UTF-16": ("a.csv", "t,l\na,1\n".encode("utf-16")[:-1], "is not UTF-16"),
    "UTF-16 without its mark": ("a.csv", "t,l\na,1\n".encode("utf-16-le"), "a zero byte in line 1"),
    "names twice": ("a.csv", "t,t\na,1\n", "two columns are called 't'"),
    "header alone": ("a.csv", "t,l\n", "has no rows"),
    "nothing": ("a.csv", "", "has no rows"),
    "nothing but its mark": ("a.jsonl", "\ufeff", "has no rows"),
    "key twice": (
        "a.jsonl",
        '{"t": "a"}\n{"t": "b", "t": "c"}',
        "row 1 (line 2) has the key 't' twice",
    ),
    "array": ("a.jsonl", '{"t": "a"}\n["b"]', "row 1 (line 2) must be an object"),
    "comma at the end": (
        "a.jsonl",
        '{"t": "a"}\n{"t": "b"},',
        "(line 2) is not JSON (Extra data)",
    ),
    "brackets": ("a.jsonl", '{"t": "a"}\n' + "[" * 100_000, "row 1 (line 2) is not JSON"),
    "digits": (
        "a.jsonl",
        '{"t": ' + "1" * 5_000 + "}",
        "row 0 (line 1) is not JSON (Exceeds",
    ),
    "gzip cut": ("a.csv.gz", gzip.compress(b"t,l\n" * 90)[:-9], "a file that can be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line_with_its_row(tmp_path, case):
    name, content, told = BAD[case]
    with pytest.raises(InputError) as caught:
        read(tmp_path, name, content)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_half_characters_are_replaced_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "cut \ud83d", "label": 1}, {"text": "whole \U0001f600", "label": 0}]
    path.write_text("\n".join(map(json.dumps, rows)))
    content = read_columns(str(path))
    assert content.columns["text"] == ["cut \ufffd", "whole \U0001f600"]
    assert content.replaced == 1


PIECES = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=12).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b'"', b'""', b"\t", b",", b";", b"\n", b"\r", b"\0", b"{}", b"[", b'{"a":1}']),
)


@pytest.mark.parametrize("suffix", [*READERS, ".csv.gz"])
@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(PIECES, max_size=12))
def test_no_content_ends_in_anything_but_a_table_or_one_line(tmp_path_factory, suffix, pieces):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="needs distinf[llm]")
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(b"".join(pieces))
    try:
        columns = read_columns(str(path)).columns
    except InputError as error:
        told = str(error)
        columns = {}
    else:
        told = ""
    assert len(told.splitlines()) == (0 if columns else 1)
    assert len({len(values) for values in columns.values()}) <= 1
