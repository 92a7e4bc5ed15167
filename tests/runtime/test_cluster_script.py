"""cluster/local_nodes.py: what it starts is whole, closed to others, and gone afterwards."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import SCRIPT, LocalNodes, local_nodes, started

pytestmark = pytest.mark.slow

ON_BOTH_NODES = """
import json, os, ray, time
ray.init(log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=1)
def where():
    time.sleep(1.0)
    return os.path.basename(os.getcwd())

print(json.dumps(sorted(set(ray.get([where.remote() for _ in range(4)])))))
"""
LOST_NODE = """
import ray, time
ray.init(log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 30
alive = 2
while alive != 1 and time.monotonic() < deadline:
    time.sleep(0.2)
    alive = sum(node["Alive"] for node in ray.nodes())
    print(alive, flush=True)
assert alive == 1, alive
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalNodes]:
    with started(2) as nodes:
        yield nodes


def listening(pids: set[int]) -> set[str]:
    """Hexadecimal local addresses on which these processes accept TCP connections."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(file))
            except OSError:
                continue
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                addresses.add(fields[1].partition(":")[0])
    return addresses


@pytest.mark.ray
def test_a_driver_with_the_token_runs_on_both_nodes(cluster):
    driver = cluster.driver(ON_BOTH_NODES)
    output, errors = driver.communicate(timeout=60)
    assert driver.returncode == 0, errors
    assert json.loads(output.splitlines()[-1]) == ["n0", "n1"]


@pytest.mark.ray
def test_without_the_token_or_with_another_a_driver_is_refused(cluster, tmp_path):
    other = tmp_path / "token"
    other.write_text("0" * 64)
    fewer = {"RAY_NUM_REDIS_GET_RETRIES": "2", "HOME": str(tmp_path)}  # 20 attempts are 20 s
    drivers = [
        cluster.driver(ON_BOTH_NODES, RAY_AUTH_MODE="disabled", **fewer),
        cluster.driver(ON_BOTH_NODES, RAY_AUTH_TOKEN_PATH=str(other), **fewer),
    ]
    for driver in drivers:
        output, errors = driver.communicate(timeout=60)
        assert driver.returncode == 1
        assert output == ""
        assert "Failed to connect to Ray cluster" in errors or "Auth" in errors


@pytest.mark.ray
def test_it_listens_on_loopback_alone_and_keeps_its_token_to_itself(cluster):
    addresses = listening(set(cluster.processes()))
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert addresses
    assert (cluster.folder / "token").stat().st_mode & 0o777 == 0o600
    assert cluster.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.ray
def test_a_cluster_is_not_started_twice_and_its_head_is_not_killed(cluster):
    for done in (cluster.run("up"), cluster.run("kill-node", "0"), cluster.run("kill-node", "7")):
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
    assert cluster.run("status").returncode == 0


@pytest.mark.ray
def test_a_killed_node_is_gone_at_once_and_noticed_soon(cluster):
    raylets = [pid for pid, words in cluster.processes().items() if "/raylet " in words]
    driver = cluster.driver(LOST_NODE)
    assert driver.stdout.readline() == "2\n"
    cluster.kill_node(1)
    left = cluster.processes()
    assert sum(pid in left for pid in raylets) == 1  # the head's; which it is, the status says
    killed = time.monotonic()
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 0, errors
    assert time.monotonic() - killed < 10
    assert "node 1 (worker): killed, 0 processes" in cluster.run("status").stdout


@pytest.mark.ray
def test_down_leaves_no_process_alive(cluster):  # the last test on this cluster
    before = cluster.processes()
    assert len(before) > 4
    record = (cluster.folder / "cluster.json").read_text()
    assert cluster.run("down").returncode == 0
    assert list(cluster.folder.iterdir()) == []
    (cluster.folder / "cluster.json").write_text(record)  # what `processes` looks up
    assert cluster.processes() == {}
    (cluster.folder / "cluster.json").unlink()


@pytest.mark.ray
def test_an_interrupted_start_leaves_nothing_running():
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as name:
        words = ["up", "--dir", name, "--nodes", "3", "--no-dashboard"]
        script = subprocess.Popen(
            [sys.executable, str(SCRIPT), *words], stderr=subprocess.PIPE, text=True
        )
        assert script.stderr.readline() == "node 0 of 3 is up\n"
        record = Path(name, "cluster.json").read_text()
        script.send_signal(signal.SIGINT)
        assert script.wait(60) == 130
        assert not Path(name, "cluster.json").exists()
        Path(name, "cluster.json").write_text(record)
        assert LocalNodes(Path(name), "").processes() == {}


# -- without Ray: whom `down` ends -------------------------------------------------------------


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def record_of(folder: Path, pid: int, started: int) -> None:
    """A cluster's record that names `pid` as the head's only process and its session."""
    node = {"number": 0, "role": "head", "state": "up", "session": pid}
    node["processes"] = [{"pid": pid, "started": started, "command": "raylet"}]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = {"id": "0" * 16, "boot": boot, "address": "127.0.0.1:1", "nodes": [node]}
    (folder / "cluster.json").write_text(json.dumps(record))


def started_at(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_down_spares_a_process_that_was_given_a_recorded_pid(tmp_path, bystander):
    record_of(tmp_path, bystander.pid, started_at(bystander.pid) - 1)
    done = local_nodes("down", "--dir", tmp_path)
    assert (done.returncode, done.stdout) == (0, "stopped 0 processes\n")
    assert bystander.poll() is None


def test_down_ends_the_recorded_process_itself(tmp_path, bystander):
    record_of(tmp_path, bystander.pid, started_at(bystander.pid))
    done = local_nodes("down", "--dir", tmp_path)
    assert (done.returncode, done.stdout) == (0, "stopped 1 processes\n")
    assert bystander.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--nodes", "0"], "'0' is not a whole number of at least 1"),
        (["up", "--nodes", "two"], "'two' is not a whole number of at least 1"),
        (["up", "--dir", "/tmp/" + "x" * 60], "give a shorter one"),
        (["up", "--dir", "/dev/null"], "File exists"),
        (["up"], "stranger"),
        (["down"], "no cluster in"),
        (["kill-node", "1"], "no cluster in"),
        (["status", "--dir", "/nowhere"], "no folder /nowhere"),
        (["sideways"], "invalid choice: 'sideways'"),
    ],
)
def test_bad_input_is_told_in_one_line_and_changes_nothing(words, said):
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as name:
        Path(name, "stranger").touch()
        done = local_nodes(words[0], "--dir", name, *words[1:])
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert [file.name for file in Path(name).iterdir()] == ["stranger"]
    assert not Path("/tmp/" + "x" * 60).exists()
