"""What dead drivers and attempts leave: taken away at the next start, and nothing else."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from distinf.cli import main
from distinf.engine.run import reopen
from distinf.engine.verifying import verify
from distinf.runtime import Ledger, Unit
from distinf.runtime.litter import sweep
from distinf.runtime.orphans import PROCESSES, end_orphans
from distinf.store import open_root
from tests.support.runs import POINTS, all_scores, copied, distinf, run_points, same_bits, start

STAGES = ["gradients", "actions"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("litter") / "run")


@pytest.fixture
def session(pristine, tmp_path):
    return copied(pristine, tmp_path / "run")


def files(blobs):
    return {str(p.relative_to(blobs.root)) for p in Path(blobs.root).rglob("*") if p.is_file()}


def test_drafts_and_attempts_without_a_record_go_and_nothing_else(session):
    blobs, before = session.blobs, files(session.blobs)
    left = [
        "gradients.zarr/0123456789abcdef0123/1-aaaa/zarr.json",
        "gradients.zarr/0123456789abcdef0123/1-aaaa/x/c/0",
        f"jobs/{blobs.names('jobs')[0].split('/')[1]}/9-bbbb/zarr.json",  # lost against another
        "told/train/0123456789abcdef0123",
    ]
    for name in left:
        blobs.put(name, b"1")
    for folder in ("", "ledger/train", "gradients.zarr"):
        Path(blobs.root, folder, ".x.json.0123456789ab.partial").write_bytes(b"1")
    Path(blobs.root, "mine.partial").write_bytes(b"somebody's own")
    assert sweep(blobs, STAGES, ["actions"]) == 6
    assert files(blobs) == before | {"mine.partial"}
    assert verify(blobs).problems == []


def test_nothing_is_swept_for_a_ledger_that_cannot_be_read(session):
    blobs = session.blobs
    blobs.put(blobs.names("ledger/gradients")[0], b"{}")
    before = files(blobs)
    assert sweep(blobs, STAGES, ["actions"]) == 0
    assert files(blobs) == before


UNIT = Unit("gradients", "late")


class Late:
    """A store in which a worker of a dead driver commits while its group is deleted."""

    def __init__(self, session):
        self._session = session

    def __getattr__(self, name):
        return getattr(self._session.blobs, name)

    def delete(self, key):
        if UNIT.id in key:
            manifest = {"group": key.rsplit("/", 1)[0], "files": {"zarr.json": "0"}, "bytes": 1}
            self._session.ledger("gradients").commit(UNIT, 1, {"manifest": manifest})
        self._session.blobs.delete(key)


def test_a_record_that_came_while_its_group_was_swept_is_taken_out(session):
    session.blobs.put(f"gradients.zarr/{UNIT.id}/1-late/zarr.json", b"{}")
    sweep(Late(session), STAGES, ["actions"])
    assert Ledger(session.blobs, "gradients").get(UNIT) is None
    assert verify(session.blobs).problems == []


def test_whoever_commits_after_the_sweep_sees_that_its_group_is_gone(session, monkeypatch):
    commit = Ledger.commit

    def late(ledger, unit, attempt, content):
        sweep(session.blobs, STAGES, ["actions"])
        return commit(ledger, unit, attempt, content)

    monkeypatch.setattr(Ledger, "commit", late)
    with pytest.raises(FileNotFoundError, match="another driver swept it"):
        session.commit(UNIT, "1-late", {"x": np.ones(3)})
    assert Ledger(session.blobs, "gradients").get(UNIT) is None


def test_an_attempt_that_lost_is_no_swept_one(session):
    session.commit(UNIT, "1-first", {"x": np.ones(3)})
    record = session.commit(UNIT, "2-second", {"x": np.ones(3)})
    assert record["name"] == "1-first"
    assert sweep(session.blobs, STAGES, ["actions"]) > 0
    assert session.arrays(UNIT)["x"].tolist() == [1, 1, 1]


def sessions_files(driver):
    """Processes that hold a file of the driver's Ray session, by number."""
    found = []
    for process in PROCESSES.glob("[0-9]*"):
        try:
            names = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(f"_{driver}/logs" in name for name in names):
            found.append(int(process.name))
    return found


def killed_driver(arguments):
    """A driver on Ray that is killed amid its gradients -> its number."""
    process = start(*arguments)
    out = Path(arguments[-1])
    until = time.monotonic() + 240
    while not list(out.glob("ledger/curvature/*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.pid


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.skipif(not PROCESSES.is_dir(), reason="there is no /proc to find processes in")
def test_a_killed_driver_leaves_nothing_once_its_command_ran_again(tmp_path, pristine, capsys):
    runtime = {"kind": "ray", "workers": 2, "dashboard": False}
    config = tmp_path / "points.yaml"
    config.write_text(yaml.safe_dump({**POINTS, "runtime": runtime}))
    out = tmp_path / "run"
    arguments = ("run", str(config), "--out", str(out))
    driver = killed_driver(arguments)
    draft = out / "ledger" / "curvature" / ".0.json.0123456789ab.partial"
    draft.write_bytes(b"{")
    until = time.monotonic() + 60
    while len(sessions_files(driver)) > 2 and time.monotonic() < until:  # Ray ends what it can
        time.sleep(0.2)
    assert sessions_files(driver)  # or there is nothing to show here
    again = distinf(*arguments, timeout_s=400)
    assert again.returncode == 0, again.stderr
    assert sessions_files(driver) == []
    assert not list(out.rglob("*.partial"))
    named = {
        record["manifest"]["group"]
        for stage in os.listdir(out / "ledger")
        for record in Ledger(open_root(str(out)), stage).read().values()
    }
    groups = [p for kind in ("*.zarr/*/*", "jobs/*/*") for p in out.glob(kind)]
    assert {str(p.relative_to(out)) for p in groups if list(p.rglob("*.json"))} <= named
    assert same_bits(all_scores(reopen(str(out))), all_scores(pristine))
    assert main(["verify", str(out)]) == 0


def test_a_living_process_of_somebody_else_is_let_alone():
    assert end_orphans(os.getpid() + 4_000_000) == 0
