"""What is said while a unit that takes long is worked on."""

import io
import subprocess
import sys
import time

from rich.cells import cell_len

from distinf import progress
from distinf.engine import running, stored
from distinf.engine import session as sessions
from distinf.gram import data, train
from distinf.report.gram import terminal
from distinf.runtime import Part, RuntimeSettings, open_runtime
from distinf.terminal import Terminal
from tests.gram.test_gram_route import session_of


def test_a_units_worker_tells_how_far_it_is_and_its_commit_ends_that(tmp_path, monkeypatch):
    session = session_of(tmp_path / "run", settings={"seeds": 1})
    runtime = open_runtime(RuntimeSettings(kind="local"))
    data.run(session, runtime)
    ((unit, _),) = train.units(session.outline)
    seen = []

    def told(self, of, share):
        tell(self, of, share)
        seen.append(running.done_of(session, "train", {unit.id}))

    tell = sessions.Session.tell
    monkeypatch.setattr(sessions.Session, "tell", told)
    monkeypatch.setattr(stored, "TELL_S", 0.0)
    train.run(session, runtime)
    assert seen == [0.0, 0.3333, 0.6667, 1.0]  # three epochs
    assert not session.blobs.names("told")
    assert running.done_of(session, "train", {unit.id}) == 1


def test_the_worst_rows_are_shown_and_nothing_in_their_texts_is_obeyed(monkeypatch, tmp_path):
    texts = ["[red]not markup[/red]", "\x1b[31mred\x07 bell", "two\nlines \u202e mirrored",
             "lone \ud800", "宽" * 90]  # fmt: skip
    rows = [
        {"place": k + 1, "score": -1.0, "own_loss": 2.5, "row": 40 + k, "label": "billing",
         "text": text, "suggested_label": "returns"}
        for k, text in enumerate(texts)
    ]  # fmt: skip
    monkeypatch.setattr(terminal, "cell_ranking", lambda *_: rows)
    out = io.StringIO()
    Terminal(file=out, width=100, force_terminal=False).print(
        terminal.worst_table(session_of(tmp_path / "run"))
    )
    told = out.getvalue()
    assert "[red]not markup[/red]" in told
    assert "\\x1b[31mred\\x07 bell" in told
    assert "two lines \\u202e mirrored" in told
    assert "lone \\ud800" in told
    told.encode()
    lines = told.rstrip().split("\n")
    assert len(lines) == 2 + len(texts)  # a title, headings, a line a row
    assert all(cell_len(line.rstrip()) <= 100 for line in lines)
    assert lines[-1].rstrip().endswith("…")
    assert lines[2].split()[:4] == ["40", "billing", "returns", "2.5"]


def test_words_in_quick_succession_are_stored_once(tmp_path):
    session = session_of(tmp_path / "run", settings={"seeds": 1})
    unit = data.units(session.outline)[0][0]
    session.tell(unit, 0.25)
    session.tell(unit, 0.5)
    assert session.told(unit.stage, {unit.id}) == 0.25
    assert session.told(unit.stage, {"another"}) == 0


ASIDE = """
import os, sys
from distinf.progress import Reporter
from distinf.runtime import Part
reporter = Reporter()
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as while Ray starts
with reporter(Part("train", "train", 1, "train"), [None], lambda: 1.0):
    pass
"""


def test_progress_is_shown_while_standard_error_is_held_back():
    done = subprocess.run([sys.executable, "-c", ASIDE], capture_output=True, text=True, check=True)
    assert "done train" in done.stderr


def test_the_lines_count_committed_units_and_show_the_share_of_all(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_S", 0.01)
    out = io.StringIO()
    done = iter([0.0, *[1.5] * 1_000_000])
    part = Part("train", "train", 6, "train")
    with progress.Reporter(Terminal(file=out, width=40))(part, [None] * 6, lambda: next(done)):
        while "left" not in out.getvalue():
            time.sleep(0.01)
    assert "train: 1 of 6 units (25% with those begun) after" in out.getvalue()
