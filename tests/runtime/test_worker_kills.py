"""Workers killed at random moments: the run ends, now or when run again, with the same bits."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from distinf.engine.run import reopen
from distinf.runtime import Ledger, RuntimeSettings, Unit, open_runtime
from distinf.runtime.machine import processes_killed_for_memory
from distinf.store import open_root
from tests.support.bodies import calls, work
from tests.support.runs import (
    POINTS,
    all_scores,
    distinf,
    merged,
    run_points,
    same_bits,
    start,
    workers_of,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

LONGER: dict[str, Any] = {
    "train": {"steps": 600, "checkpoint_every": 20},
    "curvature": {"steps": 40, "keep": 10, "samples": 240, "probes": 4},
    "gradients": {"rows_per_unit": 4},
    "actions": {"seeds": 12, "steps": 4},
}
STAGES = ("train", "curvature", "gradients", "actions")


@pytest.fixture(scope="module")
def golden(tmp_path_factory) -> dict[str, Any]:
    return all_scores(run_points(tmp_path_factory.mktemp("golden") / "run", **LONGER))


def kill_in_each_stage(process: subprocess.Popen[str], out: Path, moments: random.Random) -> int:
    """SIGKILL to a random worker a while after each stage's first commit -> how many."""
    killed = 0
    for stage in STAGES:
        folder = out / "ledger" / stage
        while process.poll() is None and not folder.exists():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.6))
        if process.poll() is None and (workers := workers_of(process.pid)):
            os.kill(moments.choice(workers), signal.SIGKILL)
            killed += 1
    return killed


@pytest.mark.parametrize("seed", range(4))
def test_killed_workers_change_no_bit(golden, tmp_path, seed):
    runtime = {"kind": "ray", "workers": 2, "dashboard": False}
    config, out = tmp_path / "points.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(merged(merged(POINTS, LONGER), {"runtime": runtime})))
    process = start("run", str(config), "--out", str(out))
    try:
        killed = kill_in_each_stage(process, out, random.Random(seed))
        _, errors = process.communicate(timeout=150)
    finally:
        process.kill()
    assert killed >= 3
    assert "Traceback" not in errors
    assert process.returncode in (0, 4), errors
    if process.returncode == 4:
        assert "run the same command to resume" in errors
        again = distinf("run", str(config), "--out", str(out))
        assert again.returncode == 0, again.stderr
    assert distinf("verify", str(out)).returncode == 0
    assert same_bits(all_scores(reopen(str(out))), golden)


def test_workers_that_died_while_idle_cost_no_attempt(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # without an address of ours it means nothing
    settings = RuntimeSettings(kind="ray", workers=2, dashboard=False, attempts=1)
    runtime = open_runtime(settings)
    root = str(tmp_path)
    wanted = [Unit("square", "key", i, i + 1) for i in range(4)]
    ledger = Ledger(open_root(root), "square")
    try:
        runtime.pool(work(root, "square"), wanted[:2], ledger)
        for pid in workers_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        runtime.pool(work(root, "square"), wanted, ledger)
        assert len(ledger.read(wanted)) == 4
        for pid in workers_of(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        assert runtime.gang(work(root, "ordered_mean"), 2)[5] == 2
    finally:
        runtime.close()


@pytest.fixture
def group():
    """A control group of 250 MiB; the kernel kills a process in it that takes more."""
    first = Path("/sys/fs/cgroup/memory")
    folder = (first if first.is_dir() else Path("/sys/fs/cgroup")) / f"distinf-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if first.is_dir() else "memory.max"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(250 << 20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    for _ in range(100):
        try:
            folder.rmdir()
            return
        except OSError:  # its last process has not gone yet
            time.sleep(0.1)


def test_a_worker_that_the_kernel_kills_for_memory_is_replaced_at_half_the_rows(
    group, tmp_path, caplog
):
    """640 MiB, then 320 in a group of 250: two kills at least, and what takes 160 or less commits.
    On a slow machine one that was killed may hold its memory when the next begins."""
    before = processes_killed_for_memory()
    ledger = Ledger(open_root(str(tmp_path)), "greedy")
    runtime = open_runtime(RuntimeSettings(workers=1, attempts=6))
    try:
        asked = work(str(tmp_path), "greedy", group=str(group))
        runtime.pool(asked, [Unit("greedy", "key", 7)], ledger)
    finally:
        runtime.close()
    (record,) = ledger.read().values()
    assert 1 <= record["rows"] <= 16
    assert record["lowered"] == {"greedy.rows": [64, record["rows"]]}
    assert calls(str(tmp_path), "row7") >= 3
    assert processes_killed_for_memory() >= before + 2
    assert "most likely by the kernel of its node, out of memory" in caplog.text
