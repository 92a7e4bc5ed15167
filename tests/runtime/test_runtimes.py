"""One suite over both runtimes: every promise of the protocol, with scripted failures."""

from collections.abc import Iterator

import pytest

from distinf.errors import InputError, InternalError, Interrupted
from distinf.runtime import (
    Ledger,
    Resources,
    Runtime,
    RuntimeSettings,
    Unit,
    Work,
    machine,
    open_runtime,
)
from distinf.store import open_root, read_group
from tests.support.bodies import at_once, calls, shared_records, work

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", params=["local", "ray"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    opened = open_runtime(RuntimeSettings(kind=request.param, workers=2, dashboard=False))
    yield opened
    opened.close()


@pytest.fixture
def root(tmp_path) -> str:
    return str(tmp_path)


def units(count: int) -> list[Unit]:
    return [Unit("square", "key", i, i + 1) for i in range(count)]


def values(root: str, wanted: list[Unit]) -> list[float]:
    blobs = open_root(root)
    records = Ledger(blobs, "square").read(wanted)
    return [float(read_group(blobs, records[u.id]["manifest"])["value"][0]) for u in wanted]


def is_ray(runtime: Runtime) -> bool:
    return type(runtime).__name__ == "RayRuntime"


def test_nodes_are_the_machines_that_workers_run_on(runtime):
    (node,) = runtime.nodes()
    assert node.memory == machine.memory_here()
    assert node.cpus >= (2 if is_ray(runtime) else 1)  # Ray is told of as many as workers ask for


def test_pool_commits_every_unit_once(runtime, root):
    runtime.pool(work(root, "square"), units(7), Ledger(open_root(root), "square"))
    assert values(root, units(7)) == [i**2 for i in range(7)]
    assert [calls(root, f"row{i}") for i in range(7)] == [1] * 7


def test_pool_skips_what_is_committed(runtime, root):
    ledger = Ledger(open_root(root), "square")
    runtime.pool(work(root, "square"), units(3), ledger)
    runtime.pool(work(root, "square"), units(5), ledger)
    assert [calls(root, f"row{i}") for i in range(5)] == [1] * 5


def test_pool_retries_a_unit_that_raises(runtime, root):
    scripted = work(root, "square", **{"2": {"before1": "raise", "before2": "raise"}})
    runtime.pool(scripted, units(4), Ledger(open_root(root), "square"))
    assert values(root, units(4)) == [0, 1, 4, 9]
    assert calls(root, "row2") == 3


def test_pool_gives_up_resumably_and_names_the_unit(runtime, root):
    always = {f"before{n}": "raise" for n in range(1, 5)}
    ledger = Ledger(open_root(root), "square")
    with pytest.raises(Interrupted, match=r"square rows 1:2 failed .*attempt 3 of 3.*scripted"):
        runtime.pool(work(root, "square", **{"1": always}), units(3), ledger)
    assert calls(root, "row1") == 3
    runtime.pool(work(root, "square"), units(3), ledger)
    assert values(root, units(3)) == [0, 1, 4]


def test_bad_input_is_raised_at_once_with_its_own_line(runtime, root):
    scripted = work(root, "square", **{"0": {"before1": "refuse"}})
    with pytest.raises(InputError, match="change the script"):
        runtime.pool(scripted, units(2), Ledger(open_root(root), "square"))
    assert calls(root, "row0") == 1


def test_duplicate_jobs_run_once(runtime, root):
    jobs = [*units(2), *units(2)]
    ledger = Ledger(open_root(root), "square")
    runtime.pool(work(root, "square"), jobs, ledger, Resources(num_cpus=1))
    assert [calls(root, f"row{i}") for i in range(2)] == [1, 1]


def test_gang_gives_the_same_ordered_sum_at_any_size(runtime, root):
    result = runtime.gang(work(root, "ordered_mean"), 2)
    alone = open_runtime(RuntimeSettings(kind="local")).gang(work(root, "ordered_mean"), 1)
    assert result[:5] == alone[:5]
    size = result[5]
    assert size == (2 if is_ray(runtime) else 1)
    assert result[6] == (2.0 if size == 2 else 0.0)
    assert result[7] == size


def test_gang_restarts_after_a_rank_raises(runtime, root):
    result = runtime.gang(work(root, "ordered_mean", **{"0": {"before1": "raise"}}), 2)
    assert len(result) == 8
    assert calls(root, "rank0") == 2


@pytest.mark.parametrize(
    "runtime", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True
)
def test_a_gang_that_runs_out_of_memory_takes_half_on_all_ranks_until_it_fits(runtime, root):
    found = runtime.gang(work(root, "crowded_gang", holds=2), 2)
    assert found == [2] * (2 if is_ray(runtime) else 1)
    assert calls(root, "rank0") == 5  # at 32, 16, 8, 4 and 2 rows: more than runtime.attempts
    with pytest.raises(Interrupted, match=r"attempt 3 of 3.*MemoryError"):
        runtime.gang(work(root, "crowded_gang", holds=0), 2)


def test_units_are_shared_out_among_gangs_side_by_side(runtime, root):
    found = shared_records(runtime, root, 1, seconds=0.2)
    pids = {record["ranks"][0] for record in found}
    assert len(pids) == (2 if is_ray(runtime) else 1)
    if is_ray(runtime):
        assert at_once(found[0], found[1])
        assert [r["ranks"] for r in found] == [found[i % 2]["ranks"] for i in range(6)]


def test_a_missing_body_is_bad_input(runtime, root):
    with pytest.raises(InputError, match="has no 'absent'"):
        runtime.pool(work(root, "absent"), units(1), Ledger(open_root(root), "square"))


def test_workers_prepare_once_and_use_the_threads_they_were_given(runtime, root):
    wanted = [Unit("where", "key", i, i + 1) for i in range(4)]
    ledger = Ledger(open_root(root), "where")
    runtime.pool(work(root, "where"), wanted, ledger)
    records = ledger.read(wanted).values()
    assert {record["threads"] for record in records} == {1}
    prepared = len(list(open_root(root).names("calls")))
    assert prepared == len({record["pid"] for record in records})
    if is_ray(runtime):
        assert {record["mode"] for record in records} == {"token"}


@pytest.mark.parametrize("action", ["fail", "exit"])
def test_what_fails_twice_in_the_same_way_is_the_tasks(runtime, root, action):
    scripted = work(root, "square", **{"1": {f"before{n}": action for n in range(1, 5)}})
    with pytest.raises(InputError, match=r"task: square rows 1:2 failed at .*bodies.py:\d+: "):
        runtime.pool(scripted, units(3), Ledger(open_root(root), "square"))
    assert calls(root, "row1") == 2


def test_a_failure_that_may_pass_uses_every_attempt(runtime, root):
    scripted = work(root, "square", **{"1": {f"before{n}": "memory" for n in range(1, 5)}})
    with pytest.raises(Interrupted, match=r"attempt 3 of 3.*MemoryError"):
        runtime.pool(scripted, units(3), Ledger(open_root(root), "square"))
    assert calls(root, "row1") == 3


def test_a_bug_of_ours_is_no_bad_input_and_not_resumable(runtime, root):
    odd = Work("tests.support.bodies:square", "distinf.runtime.units:digest", {})
    with pytest.raises(InternalError, match=r"failed twice .*this is a bug of distinf") as raised:
        runtime.pool(odd, units(1), Ledger(open_root(root), "square"))
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    "runtime", ["local", pytest.param("ray", marks=pytest.mark.slow)], indirect=True
)
def test_a_gang_whose_rank_fails_twice_in_the_same_way_stops(runtime, root):
    scripted = work(root, "ordered_mean", **{"0": {f"before{n}": "fail" for n in range(1, 5)}})
    with pytest.raises(InputError, match=r"task: bodies failed at .*scripted failure"):
        runtime.gang(scripted, 2)
    assert calls(root, "rank0") == 2
