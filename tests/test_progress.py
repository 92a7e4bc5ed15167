"""What is said while a unit that takes long is worked on."""

import io
import subprocess
import sys
import time

from rich.console import Console

from distinf import progress
from distinf.runtime import RuntimeSettings, open_runtime
from distinf.stages import route
from distinf.stages import session as sessions
from distinf.stages.gram import data, train
from tests.stages.test_gram_route import session_of


def test_a_units_worker_tells_how_far_it_is_and_its_commit_ends_that(tmp_path, monkeypatch):
    session = session_of(tmp_path / "run", settings={"seeds": 1})
    runtime = open_runtime(RuntimeSettings(kind="local"))
    data.run(session, runtime)
    ((unit, _),) = train.units(session.outline)
    seen = []

    def told(self, of, share):
        tell(self, of, share)
        seen.append(route._done(session, "train", {unit.id}))

    tell = sessions.Session.tell
    monkeypatch.setattr(sessions.Session, "tell", told)
    monkeypatch.setattr(sessions, "TELL_S", 0.0)
    train.run(session, runtime)
    assert seen == [0.0, 0.3333, 0.6667, 1.0]  # three epochs
    assert not session.blobs.names("told")
    assert route._done(session, "train", {unit.id}) == 1


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
reporter = Reporter()
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as while Ray starts
with reporter("train", [None], lambda: 1.0):
    pass
"""


def test_progress_is_shown_while_standard_error_is_held_back():
    done = subprocess.run([sys.executable, "-c", ASIDE], capture_output=True, text=True, check=True)
    assert "done train" in done.stderr


def test_the_lines_count_committed_units_and_show_the_share_of_all(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_S", 0.01)
    out = io.StringIO()
    done = iter([0.0, *[1.5] * 1_000_000])
    with progress.Reporter(Console(file=out, width=40))("train", [None] * 6, lambda: next(done)):
        while "left" not in out.getvalue():
            time.sleep(0.01)
    assert "train: 1 of 6 units (25% with those begun) after" in out.getvalue()
