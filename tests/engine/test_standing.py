"""How a run stands, once and again, by folders that hold records and no run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distinf.cli import main
from distinf.engine.standing import stages_of, status_of, status_view
from distinf.runtime import Agenda, Ledger, Part, Unit
from distinf.store import open_root
from distinf.terminal import Terminal
from tests.support.runs import ROOT, command

pytestmark = pytest.mark.timeout(600)
UNITS = [Unit("gradients", "key", i, i + 1) for i in range(4)]


def commit(folder: Path, unit: Unit, attempt: int = 1, **content) -> None:
    summary = content.pop("summary", {})
    Ledger(open_root(str(folder)), unit.stage).commit(
        unit, attempt, {"summary": summary, "name": "a", **content}
    )


def beat(folder: Path, **said) -> None:
    last = {"state": "running", "stage": "gradients", "done": 0, "units": 4, "stages_done": 0,
            "stages": 1, "at": time.time(), "host": socket.gethostname(),
            "process": os.getpid(), "why": "", **said}  # fmt: skip
    open_root(str(folder)).put("heartbeat.json", json.dumps(last).encode())


def gone() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three of four units; memory ran out on two of them."""
    blobs = open_root(str(tmp_path))
    blobs.put("config.yaml", b"{}")
    agenda = Agenda(blobs)
    agenda.begin("{}", [Part("gradients", "gradients", 4, "per-sample gradients")])
    agenda.know(0, [unit.id for unit in UNITS])
    cut = {"gradients.chunk": (64, 16)}
    commit(tmp_path, UNITS[0], seconds=1800.0, gpus=0.5, summary={"quarantined": [3, 4]})
    commit(tmp_path, UNITS[1], 2, seconds=3600.0, gpus=1.0, microbatch=cut, summary={"ranks": 2})
    commit(tmp_path, UNITS[2], microbatch={"gradients.chunk": (60, 30)}, committed=2.0)
    return tmp_path


def shown(found, width=100) -> str:
    out = Terminal(width=width, record=True)
    out.print(status_view(found, out))
    return out.export_text()


def test_a_stage_tells_its_rate_rows_hours_and_memory(folder):
    (stage,) = stages_of(open_root(str(folder)))
    assert (stage.done, stage.total, stage.retries, stage.quarantined) == (3, 4, 1, 2)
    assert stage.worker_hours == pytest.approx(2.5)
    assert stage.gpu_hours == pytest.approx(2.25)
    assert stage.rate * stage.left_s == pytest.approx(1)
    (lowered,) = stage.lowered
    assert vars(lowered) == {"setting": "gradients.chunk", "rows": 64, "to": 16, "units": 2}
    text = shown(status_of(str(folder), open_root(str(folder))))
    assert "gradients: gradients.chunk lowered from 64 to 16 rows at once on 2 units" in text
    assert "quarantined" in text
    assert "GPU h" in text


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, {"a": [1]}, {"a": ["b", "c"]}, None, 1e300])
def test_notes_that_are_none_are_left_out(folder, value):
    commit(folder, UNITS[3], seconds=value, gpus=value, microbatch=value,
           summary={"quarantined": value if isinstance(value, dict) else 7})  # fmt: skip
    (stage,) = stages_of(open_root(str(folder)))
    assert stage.done == 4
    assert stage.quarantined == 2
    assert stage.worker_hours == pytest.approx(2.5)


def test_a_driver_that_is_gone_is_told_of(folder):
    beat(folder, process=gone())
    found = status_of(str(folder), open_root(str(folder)))
    assert (found.state, found.is_orphaned) == ("stopped", True)
    assert "no driver is alive" in found.words
    beat(folder, process=gone(), state="stopped", why="by hand")
    found = status_of(str(folder), open_root(str(folder)))
    assert not found.is_orphaned
    assert "no driver" not in found.words


def test_watching_ends_with_the_run(folder, capsys):
    commit(folder, UNITS[3])
    beat(folder, state="finished")
    assert main(["status", str(folder), "--watch"]) == 0
    assert capsys.readouterr().out.startswith("finished")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_how_often_must_be_a_time(folder, seconds, capsys):
    assert main(["status", str(folder), "--watch", seconds]) == 2
    assert "--watch" in capsys.readouterr().err


def test_watching_outlives_a_driver_and_is_ended_by_hand(folder):
    beat(folder, process=gone())
    watching = subprocess.Popen(
        command("status", str(folder), "--watch", "0.1"), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "no driver is alive" in watching.stdout.readline()
        beat(folder)
        while "running: at per-sample gradients, 3 of 4 units" not in watching.stdout.readline():
            assert watching.poll() is None
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=300) == 0
        assert "Traceback" not in watching.stderr.read()
    finally:
        watching.kill()
        watching.wait()


@pytest.mark.parametrize("width", [20, 30, 45, 60, 100])
def test_in_a_narrow_terminal_no_number_is_cut(folder, width):
    """All stand that have room, and what is done of how many in any."""
    stage = replace(stages_of(open_root(str(folder)))[0], done=1234, total=5678)
    text = shown(replace(status_of(str(folder), open_root(str(folder))), stages=[stage]), width)
    assert "1234" in text
    assert "5678" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
