"""cluster/netns_hosts.sh: a study on three hosts with networks of their own and a token, and again
with the link of one cut in the middle of it."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from distinf.runtime import Ledger
from distinf.store import open_root
from tests.support.noisy import tiny_model, write_classes

pytest.importorskip("peft", reason="needs distinf[llm]")

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "cluster" / "netns_hosts.sh"
TIMED = ("costs.csv", "estimator_times.csv")
PATIENCE_S = 900
CAN = "ip netns add {0} && ip -n {0} link add bridge type bridge; ip netns del {0}"
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE_S)]
ALIVE = """
import json, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(json.dumps(sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])))
"""


def hosts(*words: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Runs the script with these words; what it leaves running has no pipe to it."""
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            ["bash", str(SCRIPT), *map(str, words)], stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, env={**os.environ, **changes}, cwd=REPOSITORY,
            timeout=PATIENCE_S,
        )  # fmt: skip
        said.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, said.read())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    name = f"distinf-probe-{os.getpid()}"
    if os.geteuid() or subprocess.run(CAN.format(name), shell=True, capture_output=True).returncode:
        pytest.skip("network namespaces need root and iproute2")
    with tempfile.TemporaryDirectory(prefix="ns-", dir="/tmp") as folder:  # short: Ray's sockets
        directory = Path(folder) / "h"
        found = hosts("up", directory, FAST="1", PYTHONPATH=str(REPOSITORY))
        assert found.returncode == 0, found.stdout
        try:
            yield directory
        finally:
            hosts("down", directory)


def alive(cluster: Path) -> list[str]:
    found = hosts("exec", cluster, "0", sys.executable, "-c", ALIVE)
    assert found.returncode == 0, found.stdout
    return json.loads(found.stdout.splitlines()[-1])


def study(cluster: Path, folder: Path, cut_at: int = 0) -> dict[str, bytes]:
    """Runs it from the first host -> the tables of its report but times. With `cut_at` the last
    host's link is cut when so many units of gradients are committed."""
    folder.mkdir()
    config = {
        "task": "noisy_labels", "out": str(folder / "run"), "seeds": 2,
        "data": {"path": write_classes(folder / "rows.csv", ("good", "bad"), rows=96),
                 "train_rows": 64, "query_rows": 16, "test_rows": 16, "flips": 0.2},
        "model": {"name": tiny_model(folder / "model"), "max_length": 12},
        "runtime": {"address": "auto", "workers": 3},
        "train": {"epochs": 2, "batch_size": 16},
        "gradients": {"rows_per_unit": 1},
        "scores": {"estimators": ["tracin", "datainf"]},
        "actions": {"configurations": ["random", "full"]},
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    words = ["exec", cluster, "0", sys.executable, "-m", "distinf", "run", folder / "run.yaml"]
    with (folder / "said").open("w+") as said:
        run = subprocess.Popen(
            ["bash", str(SCRIPT), *map(str, words)], stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, cwd=REPOSITORY,
        )  # fmt: skip
        try:
            ledger = Ledger(open_root(str(folder / "run")), "gradients")
            while cut_at and run.poll() is None and len(ledger.committed_ids()) < cut_at:
                time.sleep(0.05)
            if cut_at:
                assert hosts("cut", cluster, "2").returncode == 0
                assert cut_at <= len(ledger.committed_ids()) < 2 * (64 + 16)
            run.wait(PATIENCE_S)
        finally:
            run.kill()
        said.seek(0)
        assert run.returncode == 0, said.read()[-3000:]
    found = {p.name: p.read_bytes() for p in sorted((folder / "run" / "report").glob("*.csv"))}
    return {name: data for name, data in found.items() if name not in TIMED}


def test_a_folder_too_long_for_sockets_is_refused_in_a_line(tmp_path):
    found = hosts("up", tmp_path / ("long" * 10))
    assert found.returncode == 2
    assert found.stdout.count("\n") == 1
    assert "is too long for Ray's sockets; give 40 letters at most" in found.stdout
    assert not [*tmp_path.iterdir()]


def test_a_study_ends_in_the_same_tables_with_the_link_of_a_host_cut(cluster, tmp_path):
    assert alive(cluster) == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    whole = study(cluster, tmp_path / "whole")
    assert "ranked_rows" in " ".join(whole)
    assert study(cluster, tmp_path / "cut", cut_at=20) == whole
    assert alive(cluster) == ["10.77.0.1", "10.77.0.2"]
