"""What the driver says of a run, and what can be told from it."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from distinf.engine.heartbeat import SILENT_S, Beating, Heartbeat, last_heartbeat
from distinf.errors import InputError
from distinf.runtime import Part
from distinf.store import open_root
from tests.support.runs import silent

TRAIN = Part("train", "train", 7)


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


HERE = {"host": socket.gethostname()}


@pytest.mark.parametrize(
    ("said", "alive"),
    [
        ({**HERE, "process": os.getpid()}, True),
        ({**HERE, "process": os.getpid(), "state": "stopped"}, False),
        ({**HERE, "process": ended_process()}, False),
        ({**HERE, "process": 10**30}, True),  # nothing can be known of it; a word too many
        ({"host": "elsewhere", "process": 1}, True),
        ({"host": "elsewhere", "process": 1, "at": -2 * SILENT_S}, False),
    ],
)
def test_a_driver_is_looked_up_here_and_timed_out_elsewhere(said, alive):
    at = time.time() + said.get("at", 0.0)  # now, not when the tests were collected
    assert Heartbeat(**{**said, "at": at}).is_alive is alive


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"state": 1', "\xff"])
def test_what_is_no_heartbeat_is_none(tmp_path, text):
    assert last_heartbeat(str(tmp_path)) is None
    (tmp_path / "heartbeat.json").write_text(text, encoding="latin-1")
    assert last_heartbeat(str(tmp_path)) is None


def test_every_word_of_a_run_is_kept(tmp_path):
    blobs = open_root(str(tmp_path))
    beat = Beating(blobs, ["data", "train", "report"])
    with beat.beating():
        begun = last_heartbeat(blobs.root)
        with beat.watching(silent)(TRAIN, range(7), lambda: 3.5):
            during = last_heartbeat(blobs.root)
    ended = last_heartbeat(blobs.root)
    assert (begun.state, begun.stage, begun.stages) == ("running", "", 3)
    assert (during.state, during.stage, during.stages_done) == ("running", "train", 1)
    assert (during.done, during.units, during.process) == (3, 7, os.getpid())
    assert (ended.state, ended.stages_done, ended.why) == ("finished", 3, "")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (InputError("train: it fell over"), "train: it fell over"),
        (KeyboardInterrupt(), "by hand"),
        (ZeroDivisionError(), "by a failure"),
    ],
)
def test_where_and_why_a_run_stopped_is_kept(tmp_path, error, why):
    blobs = open_root(str(tmp_path))
    beat = Beating(blobs, ["data", "train"])
    with (
        pytest.raises(type(error)),
        beat.beating(),
        beat.watching(silent)(TRAIN, range(7), lambda: 2),
    ):
        raise error
    last = last_heartbeat(blobs.root)
    assert (last.state, last.stage, last.done, last.units) == ("stopped", "train", 2, 7)
    assert last.why == why


def test_a_word_that_cannot_be_written_stops_nothing():
    class Full:
        def put(self, key: str, data: bytes) -> None:
            raise OSError("No space left on device")

    @contextmanager
    def watch(stage, units, done):
        yield

    beat, reached = Beating(Full(), ["data"]), False
    with beat.beating(), beat.watching(watch)(Part("data", "data", 0), [], lambda: 0):
        reached = True
    assert reached
