"""cluster/slurm/distinf.sbatch, with stand-ins for `srun` and `scontrol` that work on this machine.

Ray and distinf are real. `ray symmetric-run` is not run: it ends every Ray on its machine.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from distinf.engine.run import reopen
from distinf.spectral import train
from tests.support.runs import POINTS, REPOSITORY, merged

SCRIPT = REPOSITORY / "cluster" / "slurm" / "distinf.sbatch"
PATIENCE_S = 400
SRUN = """#!/bin/sh
echo "srun $*" >>"$STANDIN_LOG"
while [ "${1#-}" != "$1" ]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*" >>"$STANDIN_LOG"
[ "$1" != show ] || printf 'one\\ntwo\\n' | head -n "$STANDIN_NODES"
"""
# Two nodes share this machine's ports and folders, as two machines would not.
SHARED = "node-manager object-manager min-worker max-worker runtime-env-agent metrics-export"
AGENTS = "dashboard-agent-listen dashboard-agent-grpc"


@dataclass
class Slurm:
    """One job: the script's environment and what the stand-ins were asked."""

    folder: Path
    nodes: int = 1
    changes: dict[str, str | None] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "state" / "77"

    @property
    def asked(self) -> list[str]:
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def start(self, *words: str) -> subprocess.Popen[str]:
        ports = [f"--{name}-port=0" for name in (SHARED + " " + AGENTS).split()]
        options = [*ports, f"--temp-dir={self.folder}/ray", "--object-store-memory=100000000"]
        commands = self.folder / "bin"
        commands.mkdir(exist_ok=True)
        for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o700)
        environment = os.environ | {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "STANDIN_LOG": str(self.folder / "asked"),
            "STANDIN_NODES": str(self.nodes),
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "one,two",
            "SLURM_CPUS_ON_NODE": "2",
            "DISTINF_LAUNCH": "srun",
            "DISTINF_STATE": str(self.folder / "state"),
            "DISTINF_RAY_PORT": "26379",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as where a local cluster was used before
            "DISTINF_RAY_OPTIONS": " ".join(options),
            "RAY_memory_monitor_refresh_ms": "0",  # what else this machine does is not our affair
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            env={k: v for k, v in (environment | self.changes).items() if v is not None},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
        )

    def left(self) -> dict[int, str]:
        """Living processes with this folder in their command line."""
        words = ["ps", "-ww", "-eo", "pid=,stat=,args="]
        listed = subprocess.run(words, capture_output=True, text=True, check=True)
        lines = [line.split(None, 2) for line in listed.stdout.splitlines()]
        return {int(p): a for p, state, a in lines if f"{self.folder}/" in a and state[0] != "Z"}


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name:  # short: Ray's sockets
        job = Slurm(Path(name))
        yield job
        for pid in job.left():  # of a test that failed
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def config(tmp_path) -> str:
    file = tmp_path / "points.yaml"
    file.write_text(yaml.safe_dump(merged(POINTS, {"runtime": {"kind": "ray", "num_cpus": 2.0}})))
    return str(file)


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_what_cannot_work_is_refused_in_one_line(slurm):
    cases = {
        "no configuration; sbatch": ((), {}),
        "this is no Slurm job": (("a.yaml",), {"SLURM_JOB_ID": None}),
        "DISTINF_LAUNCH is symmetric or srun": (("a.yaml",), {"DISTINF_LAUNCH": "mpi"}),
    }
    for said, (words, changes) in cases.items():
        slurm.changes = changes
        process = slurm.start(*words)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2, output
        assert output.startswith(f"distinf.sbatch: {said}")
        assert output.count("\n") == 1
        assert not slurm.asked


def test_a_head_that_does_not_start_ends_the_job(slurm):
    slurm.changes = {"DISTINF_RAY_OPTIONS": "--no-such-option", "DISTINF_HEAD_IP": "127.0.0.1"}
    process = slurm.start("a.yaml")
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "No such option" in output
    assert "the head did not start at 127.0.0.1:26379" in output.splitlines()[-1]
    assert not slurm.state.exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(PATIENCE_S + 60)
def test_a_run_on_two_nodes_ends_and_leaves_nothing(slurm, config, tmp_path):
    slurm.nodes = 2
    process = slurm.start(config, "--out", str(tmp_path / "run"))
    wait_for((slurm.state / "token").exists, process)
    assert (slurm.state / "token").stat().st_mode & 0o777 == 0o600
    assert slurm.state.stat().st_mode & 0o777 == 0o700
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output
    session = reopen(str(tmp_path / "run"))
    last = session.done([unit for unit, _ in train.units(session.outline)][-1:])
    assert [record["summary"]["ranks"] for record in last.values()] == [2]  # one a node
    assert [line.split()[0] for line in slurm.asked] == ["scontrol", "srun", "srun"]
    assert not slurm.state.exists()
    assert not slurm.left()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(PATIENCE_S + 60)
def test_before_the_time_limit_a_run_stops_and_goes_back_into_the_queue(slurm, config, tmp_path):
    out = tmp_path / "run"
    process = slurm.start(config, "--out", str(out), "--set", "train.steps=100000")
    wait_for((out / "ledger" / "train").exists, process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 4, output
    assert "stopped; run the same command to resume" in output
    assert slurm.asked[-1] == "scontrol requeue 77"
    assert not slurm.state.exists()
    assert not slurm.left()
