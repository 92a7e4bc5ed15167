"""A cluster that a run starts for itself lets nobody in, whatever the environment says."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distinf.runtime.address import LITERAL_LOOPBACK, TOKENS, close_to_others
from tests.support.cluster import AUTHENTICATION
from tests.support.runs import REPOSITORY

# Ray is imported first, as by a task. A gang's own sockets are there while its ranks work.
DRIVER = """
import json, sys, threading, time, ray
from tests.runtime.test_own_cluster import listening
from distinf.runtime import Ledger, open_runtime
from distinf.runtime.protocol import RuntimeSettings
from tests.support.bodies import work
runtime = open_runtime(RuntimeSettings(workers=2, num_cpus=0.5))
runtime.nodes()
seen, over = set(), threading.Event()
def look():
    while not over.is_set():
        seen.update(listening())
        time.sleep(0.2)
thread = threading.Thread(target=look)
thread.start()
total = runtime.gang(work(sys.argv[1], "slow_gang"), 2)
over.set()
thread.join()
told = {"gcs": ray.get_runtime_context().gcs_address, "total": total, "listening": sorted(seen)}
print(json.dumps(told), flush=True)
sys.stdin.read()
runtime.close()
"""
STRANGER = """
import ray, sys
ray.init(address=sys.argv[1], logging_level="ERROR")
print("JOINED", ray.get(ray.remote(lambda: 42).options(num_cpus=0).remote(), timeout=20))
"""


def _descendants() -> set[int]:
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path("/proc", name, "stat").read_text()
        except OSError:  # it ended
            continue
        parents[int(name)] = int(stat.rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _sockets(pid: int) -> set[str]:
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return set()
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def listening() -> list[str]:
    """Addresses, as the kernel writes them, at which this process or one below it listens."""
    own = set().union(*map(_sockets, _descendants()))
    text = "".join(Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))
    lines = [line.split() for line in text.splitlines()]
    return [row[1].partition(":")[0] for row in lines if row[3] == "0A" and row[9] in own]


@pytest.mark.ray
@pytest.mark.timeout(180)
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")
def test_a_cluster_of_our_own_asks_for_a_token_and_listens_on_loopback_alone(tmp_path):
    plain = {k: v for k, v in os.environ.items() if k not in AUTHENTICATION}
    open_one = {**plain, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    driver = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DRIVER, str(tmp_path)], env=open_one, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    limit = threading.Timer(150, driver.kill)
    limit.start()
    try:
        told = json.loads(driver.stdout.readline())
        stranger = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", STRANGER, told["gcs"]], check=False,
            env={**open_one, LITERAL_LOOPBACK: "0"}, text=True, capture_output=True, timeout=60,
        )  # fmt: skip
    finally:
        driver.communicate("")
        limit.cancel()
    assert "JOINED" not in stranger.stdout
    assert "Unauthenticated" in stranger.stderr
    assert told["gcs"].startswith("127.0.0.1:")
    assert told["total"] == [2.0, 2.0]
    assert set(told["listening"]) == {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_TOKEN": ""}, {"RAY_AUTH_TOKEN_PATH": ""}])
def test_without_a_token_of_the_user_s_there_is_a_fresh_one(monkeypatch, given):
    environment = {"RAY_AUTH_MODE": "disabled", **given}
    monkeypatch.setattr(os, "environ", environment)
    close_to_others()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
    assert environment.keys() & TOKENS == {"RAY_AUTH_TOKEN"}


@pytest.mark.parametrize("name", sorted(TOKENS))
def test_a_token_that_is_given_stays(monkeypatch, name):
    environment = {name: "mine"}
    monkeypatch.setattr(os, "environ", environment)
    close_to_others()
    assert environment[name] == "mine"
    assert environment.keys() & TOKENS == {name}


def stopped_while_it_starts():
    from distinf.runtime.ray.cluster import _own_sigterm  # which imports Ray

    with _own_sigterm():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)


def test_a_sigterm_while_ray_starts_stops_the_run_as_any_other_does():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        stopped_while_it_starts()
    assert signal.getsignal(signal.SIGTERM) is before
