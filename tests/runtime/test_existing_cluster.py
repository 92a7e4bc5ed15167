"""On a cluster that is there already: several nodes, their GPUs, their loss, and what is refused.

Drivers run in processes of their own: Ray reads its authentication mode once.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distinf import __version__
from distinf.engine.run import reopen
from distinf.runtime import Ledger, RuntimeSettings, Unit, open_runtime
from distinf.runtime.machine import memory_here
from distinf.spectral import train
from distinf.store import open_root, read_group
from tests.support.bodies import calls, work
from tests.support.cluster import SCRIPT, LocalNodes, started
from tests.support.runs import POINTS, all_scores, merged, run_points, same_bits

PATIENCE_S = 300  # several processes at once import torch, which takes a busy machine a minute
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(PATIENCE_S + 60)]

DRIVER = """
import json, os, sys
from distinf.runtime import Ledger, RuntimeSettings, Unit, open_runtime
from distinf.store import open_root
from tests.support.bodies import work

root, settings, script, units = json.loads(sys.stdin.readline())
runtime = open_runtime(RuntimeSettings(address=os.environ["RAY_ADDRESS"], **settings))

def pool(body):
    wanted = [Unit(body, "key", i, i + 1) for i in range(units)]
    ledger = Ledger(open_root(root), body)
    runtime.pool(work(root, body, **script), wanted, ledger)
    return list(ledger.read(wanted).values())

def gang(body):
    return runtime.gang(work(root, body, **script), 0)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalNodes]:
    with started(2, "--cpus", "2", "--gpus", "2") as nodes:
        yield nodes


@contextlib.contextmanager
def another_node(cluster: LocalNodes, *before: str) -> Iterator[int]:
    """One more node, started by the command `before`, lost at the end at the latest."""
    number = len(json.loads((cluster.folder / "cluster.json").read_text())["nodes"])
    words = [sys.executable, str(SCRIPT), "add-node", "--dir", str(cluster.folder)]
    subprocess.run([*before, *words], check=True, capture_output=True, timeout=60)
    try:
        yield number
    finally:
        cluster.kill_node(number)


def driver(
    cluster: LocalNodes,
    last_line: str,
    root: Path,
    settings: dict[str, Any],
    script: dict[str, Any] | None = None,
    units: int = 4,
) -> subprocess.Popen[str]:
    """Starts the driver; `last_line` is the expression whose value it prints as JSON."""
    code = f"{DRIVER}\nprint('result', json.dumps({last_line}))\nruntime.close()"
    process = cluster.driver(code)
    assert process.stdin is not None
    process.stdin.write(json.dumps([str(root), settings, script or {}, units]) + "\n")
    process.stdin.flush()
    return process


def result(process: subprocess.Popen[str], timeout_s: float = PATIENCE_S) -> Any:
    output, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    said = [line for line in output.splitlines() if line.startswith("result ")]  # Ray talks too
    return json.loads(said[0].removeprefix("result "))


def wait_for(condition: Any, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def config(tmp_path, cluster) -> str:
    runtime = {"kind": "ray", "address": cluster.address, "num_cpus": 2.0}
    file = tmp_path / "points.yaml"
    file.write_text(yaml.safe_dump(merged(POINTS, {"runtime": runtime})))
    return str(file)


def test_a_whole_run_gives_the_bits_of_one_process(cluster, config, tmp_path):
    process = cluster.distinf("run", config, "--out", str(tmp_path / "run"))
    golden = all_scores(run_points(tmp_path / "golden"))
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    session = reopen(str(tmp_path / "run"))
    assert same_bits(all_scores(session), golden)
    last = session.done([unit for unit, _ in train.units(session.outline)][-1:])
    assert [record["summary"]["ranks"] for record in last.values()] == [2]


# -- GPUs, by Ray's count: none is needed ------------------------------------------------------


@pytest.mark.slow
def test_whole_gpus_go_to_one_worker_each_on_both_nodes(cluster, tmp_path):
    settings = {"num_gpus": 1.0}
    both = driver(cluster, '[pool("where"), gang("visible_of_ranks")]', tmp_path, settings,
                  {"together": 4})  # fmt: skip
    records, visible = result(both)
    assert {record["device"] for record in records} == {"cpu"}
    workers = {record["pid"]: (record["node"], record["visible"]) for record in records}
    assert sorted(workers.values()) == [("n0", "0"), ("n0", "1"), ("n1", "0"), ("n1", "1")]
    assert sorted(visible) == [0, 0, 1, 1]


@pytest.mark.slow
def test_two_workers_of_half_a_gpu_share_one(cluster, tmp_path):
    settings = {"num_gpus": 0.5, "num_cpus": 0.5, "workers": 3}
    both = driver(cluster, '[pool("where"), gang("visible_of_ranks")]', tmp_path, settings,
                  {"together": 3}, units=3)  # fmt: skip
    records, visible = result(both)
    places = Counter((record["node"], record["visible"]) for record in records)
    assert len({record["pid"] for record in records}) == len(visible) == 3
    assert max(places.values()) == 2
    assert {gpu for _, gpu in places} <= {"0", "1"}
    assert sorted(str(gpu) for gpu in visible) == sorted(gpu for _, gpu in places.elements())


def test_nodes_of_one_machine_are_one(cluster, tmp_path):
    said = "[[n.cpus, n.memory, n.gpus] for n in runtime.nodes()]"
    ((cpus, memory, gpus),) = result(driver(cluster, said, tmp_path, {}))
    assert cpus == 4
    assert memory == memory_here()
    assert len(gpus) == 4


# -- what is refused ---------------------------------------------------------------------------


def test_workers_that_the_machines_do_not_hold_are_refused_after_joining(cluster, config, tmp_path):
    large = "--set", "settings.width=100000", "--set", "gradients.chunk=2000000"
    process = cluster.distinf("run", config, "--out", str(tmp_path / "run"), *large)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, errors
    assert "workers need about" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not list((tmp_path / "run").rglob("*"))


def test_what_cannot_work_is_refused_in_one_line(cluster, config, tmp_path):
    other = tmp_path / "token"
    other.write_text("0" * 64)
    few = "--set", "runtime.num_gpus=3"
    nobody = "--set", "runtime.address=127.0.0.1:1"
    open_one = "--set", "runtime.address=192.0.2.1:6379"
    wrong = {"RAY_AUTH_TOKEN_PATH": str(other), "RAY_NUM_REDIS_GET_RETRIES": "2"}
    cases = {
        "no node has 2 CPUs and 3 GPUs for one worker": (few, {}),
        "nothing answers at 127.0.0.1:1": (nobody, {}),
        "RAY_AUTH_MODE is not 'token'": (open_one, {"RAY_AUTH_MODE": "disabled"}),
        f"cannot join {cluster.address}: Unauthenticated": ((), wrong),
    }
    processes = {
        said: cluster.distinf("run", config, "--out", str(tmp_path / f"run{i}"), *words, **changes)
        for i, (said, (words, changes)) in enumerate(cases.items())
    }
    for said, process in processes.items():
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2, errors
        assert said in errors.splitlines()[-1], errors
        assert sum(line.startswith("error: ") for line in errors.splitlines()) == 1, errors
        assert "Traceback" not in errors
    for i in range(len(cases)):
        left = {path.name for path in (tmp_path / f"run{i}").rglob("*")}
        assert left <= {"config.yaml"}


def may_unshare() -> bool:
    command = shutil.which("unshare")
    return bool(command) and subprocess.run([command, "-m", "true"], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="needs a mount namespace of its own")
def test_a_folder_that_one_node_does_not_see_is_refused(cluster, config, tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    hidden = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh")
    with another_node(cluster, *hidden) as number:
        process = cluster.distinf("run", config, "--out", str(folder / "run"))
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, errors
    last = errors.splitlines()[-1]
    assert f"is not seen by node-{number}; put it on a folder that all nodes share" in last
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    assert {path.name for path in folder.rglob("*")} <= {"run", "config.yaml"}


@pytest.mark.slow
def test_nodes_without_distinf_or_with_another_are_named_in_one_line(cluster, config, tmp_path):
    for name, text in {"without": "raise ImportError", "other": "__version__ = '0.0.1'"}.items():
        (tmp_path / name / "distinf").mkdir(parents=True)
        (tmp_path / name / "distinf" / "__init__.py").write_text(text)
    (tmp_path / "other" / "numpy-0.0.1.dist-info").mkdir()
    told = "Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n"
    (tmp_path / "other" / "numpy-0.0.1.dist-info" / "METADATA").write_text(told)
    (tmp_path / "empty").mkdir()
    without, other = (f"PYTHONPATH={tmp_path / name}" for name in ("without", "other"))
    with another_node(cluster, "env", without) as one, another_node(cluster, "env", other) as two:
        nowhere = f"runtime.working_dir={tmp_path / 'empty'}"  # or Ray adds the driver's folder
        words = ("--out", str(tmp_path / "run"), "--set", nowhere)
        process = cluster.distinf("run", config, *words)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2, errors
    assert f"node-{one} has no distinf" in errors.splitlines()[-1]
    (of_two,) = (part for part in errors.split("; ") if f"node-{two} has " in part)
    assert f"distinf 0.0.1 where the driver has {__version__}" in of_two
    assert "numpy 0.0.1 where the driver has" in of_two
    assert "Traceback" not in errors
    assert "node-0" not in errors
    assert not (tmp_path / "run" / "ledger").exists()


# -- what is lost on the way -------------------------------------------------------------------


def test_a_node_lost_in_the_middle_of_a_pool_costs_the_unit_in_flight(cluster, tmp_path):
    wanted = [Unit("square", "key", i, i + 1) for i in range(9)]
    script = {str(i): {"before1": "sleep1.2"} for i in range(9)}
    blobs = open_root(str(tmp_path))
    with another_node(cluster) as number:
        process = driver(cluster, 'len(pool("square"))', tmp_path, {"num_cpus": 2.0}, script, 9)

        def at_work() -> bool:
            records = Ledger(blobs, "square").read().values()
            return any(record["node"] == f"n{number}" for record in records)

        wait_for(at_work)
        cluster.kill_node(number)
        assert result(process) == 9
    records = Ledger(blobs, "square").read(wanted)
    found = [read_group(blobs, records[unit.id]["manifest"])["value"][0] for unit in wanted]
    assert found == [i**2 for i in range(9)]
    assert {record["node"] for record in records.values()} == {"n0", "n1", f"n{number}"}
    assert sum(calls(str(tmp_path), f"row{i}") for i in range(9)) - 9 in (0, 1)


@pytest.mark.slow
def test_a_node_lost_in_the_middle_of_a_gang_leaves_a_smaller_one(cluster, tmp_path):
    script = {str(rank): {"before1": "sleep30"} for rank in range(3)}
    with another_node(cluster) as number:
        process = driver(cluster, 'gang("ordered_mean")', tmp_path, {"num_cpus": 2.0}, script)
        wait_for(lambda: all(calls(str(tmp_path), f"rank{rank}") for rank in range(3)))
        cluster.kill_node(number)
        killed = time.monotonic()
        found = result(process)
        assert time.monotonic() - killed < 25
    alone = open_runtime(RuntimeSettings(kind="local")).gang(
        work(str(tmp_path / "b"), "ordered_mean"), 1
    )
    assert found[:6] == [*alone[:5], 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_driver_leaves_no_worker_behind(cluster, config, tmp_path, number):
    out = tmp_path / "run"
    process = cluster.distinf("run", config, "--out", str(out), "--set", "train.steps=100000")
    wait_for((out / "ledger" / "train").exists)
    assert workers(cluster)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "stopped; run the same command to resume" in errors
    assert "Traceback" not in errors
    wait_for(lambda: not workers(cluster), 10)


def workers(cluster: LocalNodes) -> list[str]:
    return [words for words in cluster.processes().values() if words.startswith("ray::NodeWorker")]
