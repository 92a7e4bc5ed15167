"""Batches that do not fit in memory are halved, remembered and recorded; results agree."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from distinf.config import dump
from distinf.engine.run import reopen
from distinf.errors import InputError, Interrupted
from distinf.microbatch import (
    Microbatches,
    each_part,
    from_the_start,
    is_out_of_memory,
    rows_at_once,
)
from distinf.spectral.gradients import projected, scored_rows
from tests.support.partial import points_config
from tests.support.runs import ROOT, all_scores, run_points

pytestmark = pytest.mark.timeout(1_000)  # whole runs, one of them in a process of its own
TASK = "tests.support.crowded_task:task"
SETTINGS = {
    "task": TASK, "trajectory": {"checkpoints": 2}, "evaluate": {"batch_size": 16},
    "curvature": {"shards": 2, "steps": 4, "keep": 3, "probes": 1},
    "scores": {"ekfac": True, "ekfac_damping": 0.1},
    "train": {"steps": 6}, "actions": {"seeds": 0},
}  # fmt: skip
AGREE = 1e-5  # of the largest entry


@pytest.fixture
def memory(monkeypatch) -> Microbatches:
    """Of a process that has just begun."""
    found = Microbatches()
    monkeypatch.setattr("distinf.microbatch.MICROBATCHES", found)
    return found


def fitting(most: int, sizes: list[int]):
    def compute(part):
        sizes.append(len(part))
        if len(part) > most:
            raise MemoryError
        return sum(part)

    return compute


def test_a_batch_is_halved_until_it_fits_and_the_next_one_starts_there(memory):
    sizes: list[int] = []
    found = list(each_part(range(21), fitting(6, sizes), "a"))
    assert [part for part, _ in found] == [range(6), range(6, 12), range(12, 18), range(18, 21)]
    assert sizes == [21, 11, 6, 6, 6, 3]
    assert memory.lowered == {"a": (21, 6)}
    sizes.clear()
    memory.begin()
    assert sum(value for _, value in each_part(range(21), fitting(6, sizes), "a")) == 210
    assert sizes == [6, 6, 6, 3]
    assert memory.lowered == {"a": (21, 6)}
    assert (
        len(list(each_part(range(8), fitting(8, sizes), "b"))) == 1
    )  # another setting's are whole
    memory.forget()
    assert len(list(each_part(range(6), fitting(6, sizes), "a"))) == 1


def test_one_row_is_the_end(memory):
    sizes: list[int] = []
    with pytest.raises(MemoryError):
        list(each_part(range(5), fitting(0, sizes), "a"))
    assert sizes == [5, 3, 2, 1]
    assert memory.alone == "a"


def test_a_sum_is_begun_again(memory):
    asked: list[int] = []

    def total() -> int:
        asked.append(rows_at_once("a", 12))
        if asked[-1] > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return sum(range(12))

    assert from_the_start(total, "a") == 66
    assert asked == [12, 6, 3]
    with pytest.raises(MemoryError):  # what asks for no rows has none to take fewer of
        from_the_start(lambda: fitting(0, [])([0]), "a")


def test_a_worker_after_killed_ones_starts_at_less(memory):
    memory.begin(halvings=2)
    assert rows_at_once("any", 40) == 10


def test_whether_less_may_fit_goes_by_what_was_taken(memory):
    assert not memory.less_may_fit
    rows_at_once("a", 2)
    assert memory.less_may_fit
    memory.begin(halvings=1)
    rows_at_once("a", 2)
    assert not memory.less_may_fit
    memory.begin()
    rows_at_once("b", 9)
    with pytest.raises(MemoryError):
        list(each_part(range(2), fitting(0, []), "a"))
    assert not memory.less_may_fit  # a single row does not fit


def test_other_errors_halve_nothing(memory):
    sizes: list[int] = []

    def fail(part):
        sizes.append(len(part))
        raise InputError("out of memory, says a user")

    with pytest.raises(InputError):
        list(each_part(range(4), fail, "a"))
    assert sizes == [4]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)  # fmt: skip
def test_what_running_out_of_memory_is(error, told):
    assert is_out_of_memory(error) == told
    outer = ValueError("a method failed")
    outer.__cause__ = error
    assert is_out_of_memory(outer) == told


def same_to_rounding(session, other):
    count = scored_rows(other.outline)
    pairs = [(projected(s, 0, count) | all_scores(s)) for s in (session, other)]
    assert pairs[0].keys() == pairs[1].keys()
    for name, expected in pairs[1].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(pairs[0][name], expected, rtol=0, atol=AGREE * scale)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("roomy") / "run", **SETTINGS)


def lowered(session) -> dict[str, dict[str, list[int]]]:
    """By stage: the settings that were lowered in any unit of it."""
    found: dict[str, dict[str, list[int]]] = {}
    for stage in session.recipe.every:
        for record in session.ledger(stage.name).read().values():
            found.setdefault(stage.name, {}).update(record.get("microbatch", {}))
    return {stage: settings for stage, settings in found.items() if settings}


def test_every_stage_goes_on_with_less_and_agrees(tmp_path, roomy):
    session = run_points(tmp_path / "run", **SETTINGS, settings={"fits": 3})
    found = lowered(session)
    assert found["gradients"] == {"gradients.chunk": [20, 3]}
    assert found["trajectory"] == found["factors"] == found["gradients"]
    assert found["curvature"] == {"curvature.memory_mb": [20, 3]}
    same_to_rounding(session, roomy)


@pytest.mark.slow
def test_a_process_that_really_runs_out_agrees(tmp_path, roomy):
    changed = {**SETTINGS, "settings": {"megabytes": 100}}  # 20 rows are 2 GB
    folder = tmp_path / "run"
    config = tmp_path / "crowded.yaml"
    config.write_text(dump(points_config(folder, **changed), {}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.crowded_task", str(config), "1500", folder],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3_000:]
    session = reopen(str(folder))
    assert lowered(session)["gradients"] == {"gradients.chunk": [20, 10]}
    same_to_rounding(session, roomy)


def test_a_row_that_does_not_fit_ends_in_a_line_that_says_what_to_lower(tmp_path):
    with pytest.raises(Interrupted) as error:
        run_points(tmp_path / "run", **SETTINGS, settings={"huge": 100})
    line = str(error.value)
    assert error.value.exit_code == 4
    assert "can't allocate memory" in line
    assert "with one row at once" in line
    assert "runtime.workers; run the same command" in line
