"""What is said before the stages have progress of their own."""

import os
import re
import sys
import time

import pytest

from distinf import saying
from distinf.cli import _drop_what_nobody_reads
from distinf.terminal import Terminal


def test_what_takes_long_is_said_again_until_something_else_is(monkeypatch, capsys):
    monkeypatch.setattr(saying, "AGAIN_S", 0.05)
    voice = saying.Voice()
    voice.say("first", again=False)
    voice.say("second")
    said = ""
    until = time.monotonic() + 30
    while said.count("second: after") < 2 and time.monotonic() < until:
        time.sleep(0.01)
        said += capsys.readouterr().err
    assert re.match(r"first\nsecond\n     second: after \d+ s\n", said)
    voice.say("third")
    voice.rest()
    voice.say("fourth")
    time.sleep(0.2)
    after = capsys.readouterr().err.splitlines()
    assert [line for line in after if "second" not in line][-1] == "fourth"
    assert "     fourth" not in "".join(after)
    assert "first: after" not in said


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_nobody_reads_stops_nothing(monkeypatch, stream):
    reading, writing = os.pipe()
    os.close(reading)
    closed = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, stream, closed)
    if stream == "stderr":
        saying.Voice().say("said", again=False)
        Terminal(file=saying.own_stderr()).print("said")
        os.close(os.dup2(os.open(os.devnull, os.O_WRONLY), writing))
        return
    Terminal().print("said")
    print("more")
    _drop_what_nobody_reads()
    closed.flush()  # as at the end of the process


def test_a_full_disk_or_a_terminal_that_is_gone_stops_nothing(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        saying.Voice().say("said", again=False)
        Terminal(file=saying.own_stderr()).print("said")
