"""One driver a run folder: the second is refused while the first lives, and only then."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from distinf import cli
from distinf.engine import lease
from distinf.engine.lease import Driver, held, start_of
from distinf.errors import InputError, Interrupted
from distinf.store import open_root
from tests.support.runs import POINTS, ROOT, run_points, start

TAKEN = r"process \d+ on .* works in .*; wait for it or stop it, or choose another --out"


def other(blobs, **changes) -> Driver:
    """Another driver's file, as of a machine that cannot be asked."""
    found = Driver(**{"host": "far", "machine": "far 1", "process": 7, "started": "1", **changes})
    blobs.put(lease._name(3), lease._packed(found))
    return found


def hold(blobs, meanwhile) -> None:
    with held(blobs):
        meanwhile()


@pytest.fixture
def blobs(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "WATCH_S", 3.0)
    monkeypatch.setattr(lease, "RENEW_S", 0.2)
    return open_root(str(tmp_path))


def test_the_folder_is_free_again_afterwards_and_after_an_error(blobs):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            hold(blobs, lambda: len(blobs.names("driver")) // 0)
    assert blobs.names("driver") == []


def test_a_second_driver_of_this_machine_is_refused_at_once(blobs):
    with held(blobs), pytest.raises(InputError, match=TAKEN), held(blobs):
        raise AssertionError
    with held(blobs):
        pass


def test_of_many_at_once_one_has_it(blobs):
    begun, had = threading.Barrier(8), []

    def attempt() -> None:
        begun.wait()
        try:
            taken = lease._take(blobs)
        except InputError:
            return
        had.append(taken)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(had) == 1


def test_a_dead_driver_s_lease_blocks_nothing(blobs):
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    started = start_of(process.pid)
    process.wait()
    other(blobs, machine=lease._machine(), process=process.pid, started=started)
    began = time.monotonic()
    with held(blobs):
        assert blobs.names("driver") == [lease._name(4)]
    assert time.monotonic() - began < 2.0  # asked, not watched


def test_another_process_of_the_same_number_is_not_that_driver(blobs):
    other(blobs, machine=lease._machine(), process=os.getpid(), started="1")
    with held(blobs):
        pass


def test_a_driver_elsewhere_lives_while_its_counter_moves_and_no_longer(blobs):
    other(blobs)
    with held(blobs):  # it did not move
        pass
    other(blobs)
    moving = threading.Timer(0.5, lambda: other(blobs, counter=1))
    moving.start()
    with pytest.raises(InputError, match=r"process 7 on far works in"), held(blobs):
        raise AssertionError
    moving.join()


def test_a_file_that_says_nothing_is_no_living_driver(blobs):
    for text in (b"", b"[]", b'{"host": 3}', b'{"process": "x"}', b"[" * 5000):
        blobs.put(lease._name(2), text)
        with held(blobs):
            pass
    os.makedirs(os.path.join(blobs.root, "driver"))
    os.mkfifo(os.path.join(blobs.root, lease._name(7)))
    os.symlink("/nowhere", os.path.join(blobs.root, lease._name(8)))
    blobs.put("driver/²", b"")
    with held(blobs):
        pass


def test_a_driver_whose_place_was_taken_stops(blobs):
    began = time.monotonic()
    with pytest.raises(Interrupted, match="has taken over"):
        hold(blobs, lambda: (other(blobs), time.sleep(60.0)))
    assert time.monotonic() - began < 30.0
    assert blobs.names("driver") == [lease._name(3)]  # the other's is left


def test_a_driver_in_the_background_of_a_script_stops_too(blobs):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, cli._terminate)
    try:
        with pytest.raises(Interrupted, match="has taken over"):
            hold(blobs, lambda: (other(blobs), time.sleep(20.0)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_killed_run_is_resumed_at_once_and_a_living_one_is_not_disturbed(tmp_path):
    config = tmp_path / "points.yaml"
    slow = {**POINTS, "train": {**POINTS["train"], "steps": 4000}}
    config.write_text(yaml.safe_dump(slow))
    process = start("run", str(config), "--out", str(tmp_path / "run"))
    until = time.monotonic() + 100
    while not list((tmp_path / "run").glob("ledger/train/*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=rf"process {process.pid} on .* works in"):
        run_points(tmp_path / "run", train={"steps": 4000})
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "run" / "driver").iterdir())
    lines = subprocess.run(
        [sys.executable, "-m", "distinf", "status", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    assert "stopped" in lines
    with held(open_root(str(tmp_path / "run"))):
        pass


def test_a_folder_of_drivers_that_leads_out_of_the_run_is_put_aside(tmp_path, blobs):
    elsewhere = tmp_path.parent / f"{tmp_path.name} elsewhere"
    elsewhere.mkdir()
    (elsewhere / "00000001.json").write_text("{}")
    (tmp_path / "driver").symlink_to(elsewhere)
    with held(blobs):
        assert blobs.names("driver") == ["driver/00000001.json"]
    assert [p.name for p in elsewhere.iterdir()] == ["00000001.json"]
    assert (tmp_path / "damaged" / "driver").is_symlink()
