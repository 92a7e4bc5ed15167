"""Two ranks killed, then one killed, then two again: training and Arnoldi end where they should.

The worker and the drivers get a real SIGKILL in the middle of the stage; the gangs are Ray's.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from distinf.engine.run import reopen
from distinf.spectral import curvature, train
from distinf.studies.receiver.lamb import Lamb
from distinf.tasks.tensor_task import TensorTask
from tests.support import blobs_task
from tests.support.partial import points_config, run_until
from tests.support.runs import POINTS, ROOT, merged, same_bits, workers_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

RUN = {
    "task": "tests.runtime.test_rank_kills:slow",
    "settings": {"pause_s": 0.01},
    "train": {"steps": 60, "checkpoint_every": 3},
    "curvature": {"steps": 30, "keep": 10, "samples": 240, "probes": 3},
    "scores": {"complement": "mean"},  # which takes the trace
}


@dataclass(frozen=True)
class Pause:
    """Of every look at the loss: for a kill to come in the middle."""

    pause_s: float = 0.0


def slow(settings: Pause, seed: int) -> TensorTask:
    points = blobs_task.points

    def loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        time.sleep(settings.pause_s)
        return blobs_task.loss(model, batch)

    return TensorTask(
        model=lambda: torch.nn.Sequential(
            torch.nn.Linear(4, 12), torch.nn.BatchNorm1d(12), torch.nn.Dropout(0.3),
            torch.nn.Tanh(), torch.nn.Linear(12, 2),
        ),
        data={"train": points(240, seed + 1), "evaluation": points(64, seed + 2)},
        losses={"cross-entropy": loss},
        seed=seed,
        optimizer=Lamb,
    )  # fmt: skip


class Driver:
    """`run_until` with so many Ray workers, in a process of its own."""

    def __init__(self, config: Path, stage: str, workers: int):
        self._ledger = Path(yaml.safe_load(config.read_text())["out"], "ledger", stage)
        changes = [f"runtime.workers={workers}", "runtime.kind=ray"]
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.partial", str(config)]
        self._process = subprocess.Popen([*command, stage, *changes], cwd=ROOT)

    def wait_for(self, more: int) -> "Driver":
        """Until so many further units of the stage are committed."""
        goal = self._committed() + more
        while self._committed() < goal:
            assert self._process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        return self

    def _committed(self) -> int:
        return len(list(self._ledger.glob("*.json")))

    def kill_a_worker(self) -> "Driver":
        os.kill(workers_of(self._process.pid)[-1], signal.SIGKILL)
        return self

    def kill(self) -> None:
        """The driver, and its workers, which would go on for some seconds without it."""
        workers = workers_of(self._process.pid)
        self._process.kill()
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def finish(self) -> None:
        assert self._process.wait(timeout=600) == 0

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()


def killed_between(config: Path, stage: str) -> None:
    """Two ranks, one of them killed; the driver killed; one rank, killed; two to the end."""
    with Driver(config, stage, 2) as driver:
        driver.wait_for(3).kill_a_worker().wait_for(3).kill()
    with Driver(config, stage, 1) as driver:
        driver.wait_for(3).kill()
    with Driver(config, stage, 2) as driver:
        driver.finish()


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    return {
        reduction: run_until(
            "curvature",
            points_config(
                root / reduction,
                **merged(RUN, {"settings": {"pause_s": 0}, "curvature": {"reduction": reduction}}),
            ),
        )
        for reduction in ("ordered", "allreduce")
    }


@pytest.mark.parametrize("reduction", ["ordered", "allreduce"])
def test_killed_between_two_ranks_and_one_it_ends_in_the_same_weights_and_pairs(
    golden, tmp_path, reduction
):
    changes = merged(RUN, {"curvature": {"reduction": reduction}})
    config = tmp_path / "points.yaml"
    raw = {**merged(POINTS, changes), "out": str(tmp_path / "run")}
    config.write_text(yaml.safe_dump(raw))
    if reduction == "ordered":  # training is the same in both
        killed_between(config, "train")
    killed_between(config, "curvature")
    session, expected = reopen(str(tmp_path / "run")), golden[reduction]

    steps = curvature.step_units(session.outline)
    training = [unit for unit, _ in train.units(session.outline)]
    for units in (training, steps) if reduction == "ordered" else (steps,):
        done = session.done(units)
        ranks = [done[unit.id]["summary"]["ranks"] for unit in units]
        print(reduction, ranks)
        assert set(ranks) == {1, 2}
        assert ranks[0] == ranks[-1] == 2
    trained = expected.arrays(train.units(expected.outline)[-1][0])
    assert same_bits(session.arrays(training[-1]), trained)
    found, wanted_pairs = curvature.stored_pairs(session), curvature.stored_pairs(expected)
    error = (found.values - wanted_pairs.values).abs() / wanted_pairs.values.abs()
    print(reduction, "largest relative error of a Ritz value", float(error.max()))
    if reduction == "ordered":
        assert torch.equal(found.values, wanted_pairs.values)
        assert torch.equal(found.vectors, wanted_pairs.vectors)
        assert found.trace == wanted_pairs.trace
    assert float(error.max()) < 1e-5
    assert np.isfinite(found.trace)
