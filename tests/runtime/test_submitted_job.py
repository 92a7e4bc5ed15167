"""`ray job submit -- distinf run`: on a cluster with a token, with a task that travels along."""

import json
import subprocess
from pathlib import Path

import pytest

from distinf.engine.heartbeat import FINISHED
from distinf.engine.standing import status_of
from distinf.store import open_root
from tests.support.cluster import LocalNodes, started
from tests.support.pages import blocks

PATIENCE_S = 400
SMALLER = ("--set", "actions.seeds=2", "--set", "curvature.probes=2")


def submitted(cluster: LocalNodes, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The job's end, and what it said."""
    record = json.loads((cluster.folder / "cluster.json").read_text())
    environment = cluster.environment() | {
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{record['dashboard_port']}"
    }
    command = ["ray", "job", "submit", "--working-dir", str(folder), "--", *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(PATIENCE_S + 100)
def test_a_job_brings_its_task_and_finds_its_cluster(tmp_path, monkeypatch):
    """The README's own model, with no word of the cluster but `auto`; and where it cannot be."""
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    folder, out = tmp_path / "mine", tmp_path / "run"
    folder.mkdir()
    for block in blocks("README.md"):
        if block.file:
            (folder / block.file).write_text(block.text)
    run = ("distinf", "run", "mine.yaml", "--set", "runtime.address=auto", *SMALLER)
    gpus = ("--set", "runtime.num_gpus=3", "--out", str(tmp_path / "wrong"))
    with started(1, "--cpus", "2", dashboard=True) as cluster:
        done = submitted(cluster, folder, *run, "--out", str(out))
        wrong = submitted(cluster, folder, *run, *gpus)
    assert done.returncode == 0, done.stdout + done.stderr
    assert status_of(str(out), open_root(str(out))).state == FINISHED
    assert (out / "report" / "index.html").exists()
    assert wrong.returncode == 1
    assert "no node has" in wrong.stdout
    assert "Traceback" not in done.stdout + wrong.stdout
