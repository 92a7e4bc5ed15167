"""What only a runtime of several processes can suffer: workers that die."""

import socket
import time
from collections.abc import Iterator

import pytest

from distinf.errors import InputError, Interrupted
from distinf.runtime import Ledger, Resources, Runtime, RuntimeSettings, Unit, open_runtime
from distinf.store import open_root, read_group
from tests.support.bodies import calls, work

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    opened = open_runtime(RuntimeSettings(kind="ray", workers=2, dashboard=False))
    yield opened
    opened.close()


def units(count: int) -> list[Unit]:
    return [Unit("square", "key", i, i + 1) for i in range(count)]


def test_a_worker_killed_before_its_commit_is_replaced(runtime, tmp_path):
    root = str(tmp_path)
    ledger = Ledger(open_root(root), "square")
    runtime.pool(work(root, "square", **{"1": {"before1": "die"}}), units(4), ledger)
    records = ledger.read(units(4))
    found = [read_group(open_root(root), records[u.id]["manifest"])["value"][0] for u in units(4)]
    assert found == [0, 1, 4, 9]
    assert calls(root, "row1") == 2


def test_a_worker_killed_after_its_commit_is_not_repeated(runtime, tmp_path):
    root = str(tmp_path)
    ledger = Ledger(open_root(root), "square")
    runtime.pool(work(root, "square", **{"1": {"after1": "die"}}), units(4), ledger)
    assert len(ledger.read(units(4))) == 4
    assert calls(root, "row1") == 1


@pytest.mark.slow
def test_a_unit_that_always_kills_its_worker_stops_the_run(runtime, tmp_path):
    root = str(tmp_path)
    script = {"0": {f"before{n}": "die" for n in range(1, 5)}}
    with pytest.raises(Interrupted, match="square rows 0:1 failed"):
        runtime.pool(work(root, "square", **script), units(1), Ledger(open_root(root), "square"))
    assert calls(root, "row0") == 3


@pytest.mark.slow
def test_one_ranks_death_stops_all_quickly_and_the_gang_restarts(runtime, tmp_path):
    root = str(tmp_path)
    alone = open_runtime(RuntimeSettings(kind="local")).gang(work(root, "ordered_mean"), 1)
    runtime.gang(work(root, "ordered_mean"), 2)  # warm
    scripted = work(str(tmp_path / "b"), "ordered_mean", **{"1": {"before1": "die"}})
    started = time.monotonic()
    result = runtime.gang(scripted, 2)
    assert result[:5] == alone[:5]
    assert calls(str(tmp_path / "b"), "rank1") == 2
    assert time.monotonic() - started < 60  # the collective's own time-out is twice that


def test_a_shape_that_no_node_has_is_refused(runtime, tmp_path):
    ledger = Ledger(open_root(str(tmp_path)), "square")
    with pytest.raises(InputError, match=r"lower runtime.num_cpus or runtime.num_gpus"):
        runtime.pool(work(str(tmp_path), "square"), units(1), ledger, Resources(num_gpus=4))


def test_another_shape_takes_the_place_of_the_warm_workers(runtime, tmp_path):
    root = str(tmp_path)
    runtime.pool(work(root, "square"), units(2), Ledger(open_root(root), "square"))
    wide = [Unit("where", "wide", i, i + 1) for i in range(2)]
    ledger = Ledger(open_root(root), "where")
    runtime.pool(work(root, "where"), wide, ledger, Resources(num_cpus=2))
    assert len({record["pid"] for record in ledger.read(wide).values()}) == 1


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("The current node timed out during startup. This could happen because", Interrupted),
        ("Ray has no such option", InputError),
    ],
)
def test_a_machine_too_busy_to_start_a_cluster_is_worth_another_try(monkeypatch, said, kind):
    def refuse(**options):
        raise Exception(said)  # of no class of its own, as Ray's

    monkeypatch.setattr("ray.init", refuse)
    opened = open_runtime(RuntimeSettings(kind="ray", workers=1, dashboard=False))
    with pytest.raises(kind, match=said) as raised:
        opened.nodes()
    assert ("run the same command to resume" in str(raised.value)) is (kind is Interrupted)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.55.1\n",
            "install the same Ray",
        ),
        ("RPC error: InvalidAuthToken: Authentication token is missing", "set RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_a_cluster_that_cannot_be_joined_says_what_to_do(monkeypatch, said, told):
    def refuse(**options):
        raise RuntimeError(said)

    monkeypatch.setattr("ray.init", refuse)
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        opened = open_runtime(RuntimeSettings(address=address))
        with pytest.raises(InputError, match=f"cannot join {address}: .*{told}") as refused:
            opened.nodes()
    assert "\n" not in str(refused.value)
