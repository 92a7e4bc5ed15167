"""What others wrote is shown, not obeyed: on a terminal, in CSV and on a page; JSON keeps it."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from torch import nn

from distinf import cli
from distinf.printable import OBEYED, one_line, printable
from distinf.report.rows import csv_text, json_text
from distinf.saying import Voice
from distinf.tasks.tensor_task import TensorTask
from distinf.terminal import Terminal
from tests.support.blobs_task import loss, points

SHOWN = {
    "\x1b[31mred": "\\x1b[31mred",
    "over\rwritten": "over\\rwritten",
    "bell\x07": "bell\\x07",
    "a\x00b": "a\\x00b",
    "\x9b2J": "\\x9b2J",
    "user\u202etxt.exe": "user\\u202etxt.exe",
    "\u2066isolated\u2069": "\\u2066isolated\\u2069",
    "a\u200bb": "a\\u200bb",
    "a\u2028b": "a\\u2028b",
    "\ufeffstart": "\\ufeffstart",
    "\U000e0041tag": "\\U000e0041tag",
    "half\ud83d": "half\\ud83d",
}
UNTOUCHED = (
    "plain [red]text[/] :smile:", "עברית", "می\u200cخواهم", "👩\u200d🚀", "नमस्ते",
    "two\nlines\tand a tab",
    "dos\r\nlines", "50\u00a0%", "soft\u00adhyphen", "e\u0301",
)  # fmt: skip


@pytest.mark.parametrize("text", SHOWN)
def test_what_would_be_obeyed_is_escaped(text):
    assert printable(text) == SHOWN[text]


@pytest.mark.parametrize("text", UNTOUCHED)
def test_text_in_any_script_stays(text):
    assert printable(text) == text


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_that_is_obeyed_comes_through(text):
    found = printable(text)
    assert not OBEYED.search(found)
    assert printable(found) == found
    assert found.encode().decode() == found
    assert len(one_line(text).splitlines()) <= 1 or "\x85" in text


@pytest.mark.parametrize("text", [*SHOWN, "t[/x]", "[bold]a[/bold]", ":smile:"])
def test_a_terminal_shows_what_it_is_given(text):
    out = io.StringIO()
    terminal = Terminal(file=out, width=120, force_terminal=True, color_system="truecolor")
    table = Table("name", title=text, title_style="", header_style="")
    table.add_row(text)
    for each in (text, table):
        out.seek(0)
        out.truncate()
        terminal.print(each)
        assert printable(text) in out.getvalue()
        assert "\u202e" not in out.getvalue()


def test_what_is_said_is_one_line(capfd):
    voice = Voice()
    voice.say("a\nerror: forged \x1b[2J", again=False)
    assert capfd.readouterr().err == "a\\nerror: forged \\x1b[2J\n"


FORMULAS = ("=1+2", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\n=1", " =1", "-1_000", "+inf", "\uff1d1",
            "-", "\x1b=1\u202e")  # fmt: skip
NUMBERS = (-1, -0.5, "-1", "+1.5", "-.5e-3", " -2 ", "1e6", -(10**400))


def test_a_table_has_no_formula_and_its_numbers_are_numbers():
    rows = [{"=text": text} for text in (*FORMULAS, *NUMBERS, ["=1", "\u202e"])]
    (head,), *found = csv.reader(io.StringIO(csv_text(rows), newline=""))
    cells = [cell for (cell,) in found]
    assert head == "'=text"
    texts = cells[: len(FORMULAS)]
    assert all(cell[0] in "'\\" for cell in texts)
    assert texts[-1] == "\\x1b=1\\u202e"
    assert cells[len(FORMULAS) : -1] == [str(number) for number in NUMBERS]
    assert cells[-1] == "['=1', '\\u202e']"
    assert json.loads(json_text(rows)) == rows


RED, TURNED = "\x1b[31mred [bold]", "user\u202etxt"


def odd(settings: dict, seed: int) -> TensorTask:
    data = {"train": points(40, 1), "evaluation": points(8, 2)}
    notes = {"text": [f"{RED} {TURNED} <b>{k}" for k in range(40)], RED: ["=1"] * 40}
    return TensorTask(lambda: nn.Linear(4, 2), data, {"[bold] own": loss}, seed=seed, notes=notes)


def test_a_run_of_odd_names_and_notes_shows_them_all(tmp_path, capfd):
    out = tmp_path / "a[bold]b \x1b[31m\u202e[/x]"
    words = ["--out", str(out), "--set", "runtime.kind=local"]
    assert cli.main(["score", f"{__name__}:odd", *words]) == 0
    said = "".join(capfd.readouterr())
    assert not OBEYED.search(said)
    assert "a[bold]b \\x1b[31m\\u202e[/x]/report/index.html" in said
    assert "\\x1b[31mred [bold] user\\u202etxt" in said
    report = out / "report"
    for file in report.iterdir():
        if file.suffix in (".html", ".csv"):
            assert not OBEYED.search(file.read_text()), file.name
    assert "user\\u202etxt &lt;b&gt;" in (report / "index.html").read_text()
    with open(report / "ranked_rows.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert rows[0][printable(RED)] == "'=1"
    top, every = (
        json.loads((report / f"{name}.json").read_text()) for name in ("ranking", "ranked_rows")
    )
    assert [row["row"] for row in every] == [int(row["row"]) for row in rows]
    for row in (*top, *every):
        assert row["text"].startswith(f"{RED} {TURNED} <b>")
        assert row[RED] == "=1"
