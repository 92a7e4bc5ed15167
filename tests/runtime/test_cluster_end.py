"""A local cluster that loses its raylet or its gcs: told soon, in one line, and resumed."""

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from tests.support.runs import POINTS, distinf, start, workers_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
CONFIG = {
    **POINTS,
    "runtime": {"kind": "ray", "workers": 1, "dashboard": False},
    "train": {**POINTS["train"], "steps": 1500, "checkpoint_every": 50},
}


@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_its_death_is_one_line_within_30_s_and_the_same_command_resumes(tmp_path, name):
    config = tmp_path / "points.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    arguments = ("run", str(config), "--out", str(tmp_path / "run"))
    process = start(*arguments)
    until = time.monotonic() + 120
    while not list(Path(tmp_path, "run").glob("ledger/train/*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    for part in workers_of(process.pid, name.encode()):
        os.kill(part, signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 4
    lines = said.strip().splitlines()
    assert f"the Ray cluster of this run has ended ({name} died); run the same command" in lines[-1]
    assert "[raylet" not in said
    assert "rpc_client" not in said
    again = distinf(*arguments, timeout_s=200)
    assert again.returncode == 0, again.stderr
