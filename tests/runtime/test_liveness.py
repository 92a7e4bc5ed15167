"""Nothing waits for ever: a worker that is stopped, or stuck in its work, is replaced."""

import math
import time
from collections.abc import Iterator
from functools import partial

import pytest

from distinf.errors import Interrupted
from distinf.runtime import Ledger, Runtime, RuntimeSettings, Unit, open_runtime
from distinf.runtime.activity import COLLECTIVE, SHARD, UNIT, Activity, Seen
from distinf.runtime.liveness import Answers, Limits
from distinf.runtime.worker import Outcome
from distinf.store import open_root
from tests.support.bodies import calls, work

slow = partial(pytest.param, marks=pytest.mark.slow)
LIMITS = Limits(silent_s=30.0, unit_s=60.0, first_unit_s=7_200.0)


def test_a_unit_may_take_three_times_the_longest_like_it_and_at_least_the_floor():
    assert LIMITS.unit(None, 0) == 7_200.0
    assert LIMITS.unit(5.0, 0) == 60.0
    assert LIMITS.unit(100.0, 0) == 300.0
    assert LIMITS.unit(100.0, 2) == 1_200.0  # tried again, an honest long one is let be


def test_a_unit_of_more_rows_than_any_before_may_take_as_much_longer():
    """Three queries, done, beside 21 training rows of the same stage."""
    pytest.importorskip("ray")
    from distinf.runtime.ray.pool import Pool

    few, many = (Unit("gradients", "key", 0, rows, {"split": f"{rows}"}) for rows in (3, 21))
    pool = Pool(None, None, {few.id: few, many.id: many}, None, RuntimeSettings(unit_s=60.0))
    pool._attempts.update([few.id, many.id])
    assert pool._allowed_s(many, Seen()) == RuntimeSettings().first_unit_s
    pool._hear(few, Outcome(seconds=30.0))
    assert pool._allowed_s(few, Seen()) == 90.0
    assert pool._allowed_s(many, Seen()) == 7 * 90.0


def test_a_sum_hangs_once_all_ranks_are_in_it_and_not_while_one_is_on_its_way():
    inside, away = Seen(COLLECTIVE, 40.0), Seen(SHARD, 500.0)
    assert LIMITS.rank(inside, [inside, inside], 0) == 30.0
    assert LIMITS.rank(inside, [inside, away], 0) == math.inf


def test_a_shard_may_take_three_times_the_longest_one():
    assert LIMITS.rank(Seen(SHARD, 1.0), [], 0) == 7_200.0
    assert LIMITS.rank(Seen(SHARD, 1.0, 2.0), [], 0) == 60.0
    assert LIMITS.rank(Seen(SHARD, 1.0, 200.0), [], 0) == 600.0


def test_activity_tells_the_innermost_work_and_when_it_last_reported():
    here = Activity()
    assert here.seen().kind == ""
    with here.doing(UNIT):
        with here.doing(SHARD):
            time.sleep(0.05)
            assert here.seen().kind == SHARD
            assert here.seen().silent_s >= 0.05
            here.report()
            assert here.seen().silent_s < 0.05
        assert here.seen().kind == UNIT
        assert here.seen().longest_shard_s >= 0.05
    here.forget()
    assert here.seen().longest_shard_s == 0.0


def test_an_open_question_ages_and_an_answer_closes_it():
    assert Answers(asked=10.0).unanswered_s(15.0) == 5.0
    assert Answers(asked=None).unanswered_s(15.0) == 0.0


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    limits = {"silent_s": 12.0, "unit_s": 6.0, "first_unit_s": 25.0}
    opened = open_runtime(RuntimeSettings(kind="ray", workers=2, dashboard=False, **limits))
    yield opened
    opened.close()


def squares(runtime: Runtime, root: str, count: int = 6, **script) -> list[int]:
    units = [Unit("square", "key", i, i + 1) for i in range(count)]
    ledger = Ledger(open_root(root), "square")
    runtime.pool(work(root, "square", **script), units, ledger)
    assert len(ledger.read(units)) == count
    return [calls(root, f"row{i}") for i in range(count)]


@pytest.mark.ray
def test_a_unit_that_takes_long_is_tried_by_an_idle_worker_too(runtime, tmp_path, monkeypatch):
    pool = pytest.importorskip("distinf.runtime.ray.pool")
    monkeypatch.setattr(pool, "LATE_S", 1.0)
    assert squares(runtime, str(tmp_path), **{"3": {"before1": "sleep1000"}}) == [1, 1, 1, 2, 1, 1]
    record = Ledger(open_root(str(tmp_path)), "square").get(Unit("square", "key", 3, 4))
    assert record is not None
    assert record["attempt"] == 1  # it was not given up before


@pytest.mark.ray
@pytest.mark.parametrize("action", ["stop", slow("sleep1000")])
def test_a_stopped_or_stuck_worker_of_a_pool_is_replaced(runtime, tmp_path, action):
    assert squares(runtime, str(tmp_path), **{"4": {"before1": action}}) == [1, 1, 1, 1, 2, 1]


@pytest.mark.slow
@pytest.mark.ray
def test_a_first_unit_that_is_stuck_is_replaced(runtime, tmp_path):
    both = {"0": {"before1": "sleep1000"}, "1": {"before1": "sleep1000"}}
    assert squares(runtime, str(tmp_path), 2, **both) == [2, 2]


@pytest.mark.slow
@pytest.mark.ray
def test_a_long_unit_that_reports_is_let_be(runtime, tmp_path):
    assert squares(runtime, str(tmp_path), **{"5": {"before1": "work"}}) == [1] * 6


@pytest.mark.slow
@pytest.mark.ray
def test_a_worker_that_is_stopped_while_it_is_idle_holds_nothing_up(runtime, tmp_path):
    squares(runtime, str(tmp_path / "a"), **{"5": {"after1": "stop"}, "4": {"after1": "stop"}})
    assert squares(runtime, str(tmp_path / "b")) == [1] * 6


@pytest.mark.ray
@pytest.mark.parametrize(
    "script",
    [
        {"1": {"before1": "stop"}},
        slow({"0": {"before1": "stop"}}),
        slow({"0": {"before1": "hang"}, "1": {"before1": "hang"}}),
        slow({"1": {"before1": "sleep1000"}}),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_a_gang_with_a_stopped_or_stuck_rank_starts_again(runtime, tmp_path, script):
    alone = open_runtime(RuntimeSettings(kind="local")).gang(work(str(tmp_path), "ordered_mean"), 1)
    root = str(tmp_path / "b")
    assert runtime.gang(work(root, "ordered_mean", **script), 2)[:5] == alone[:5]
    assert calls(root, "rank1") == 2


@pytest.mark.slow
@pytest.mark.ray
def test_a_unit_that_always_hangs_stops_the_run_with_a_line(runtime, tmp_path):
    script = {"3": {f"before{n}": "stop" for n in range(1, 5)}}
    with pytest.raises(Interrupted, match=r"square rows 3:4 failed.*did not answer.*resume"):
        squares(runtime, str(tmp_path), **script)
