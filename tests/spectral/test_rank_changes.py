"""Training and Arnoldi stopped in the middle and resumed with another number of ranks.

Two ranks, then one, then two again must end where one that was never stopped ends: bitwise with
ordered sums, to 1e-5 with all-reduce.
"""

import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch

from distinf.engine.run import open_session
from distinf.spectral import curvature, train
from distinf.studies.receiver.lamb import Lamb
from distinf.tasks.tensor_task import TensorTask
from tests.support.blobs_task import loss, points
from tests.support.gangs import gang_of_two
from tests.support.partial import points_config, run_until
from tests.support.runs import same_bits

CHANGES = {
    "task": "tests.spectral.test_rank_changes:noisy",
    "train": {"steps": 18, "checkpoint_every": 4},
    "curvature": {"steps": 12, "keep": 8, "probes": 3},
    "variations": {"allreduce": {"curvature.reduction": "allreduce"}},
}


def noisy(settings: dict, seed: int) -> TensorTask:
    """Dropout, batch statistics and LAMB: random numbers, buffers and moments to bring back."""
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


@pytest.fixture(scope="module")
def gang():
    with gang_of_two() as ready:
        yield ready


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """Never stopped, one rank: by reduction."""
    config = points_config(tmp_path_factory.mktemp("golden") / "run", **CHANGES)
    session = run_until("curvature", config)
    return {
        "ordered": session,
        "allreduce": run_until("curvature", config, session.variations["allreduce"]),
    }


def checkpoints(session):
    """Weights, moments, counters and losses at every commit."""
    units = [unit for unit, _ in train.units(session.outline)]
    return {
        f"{unit.stop}.{name}": values
        for unit in units
        for name, values in session.arrays(unit).items()
    }


def ranks_of(session, units):
    """Of each unit, how many ranks the gang had that committed it."""
    done = session.done(units)
    return [done[unit.id]["summary"]["ranks"] for unit in units]


def pairs(session):
    found = curvature.stored_pairs(session)
    names = ("values", "vectors", "residuals", "hessenberg")
    arrays = {name: getattr(found, name).numpy() for name in names}
    arrays |= {f"seen.{name}": values.numpy() for name, values in asdict(found.seen).items()}
    return arrays | {"trace": np.array([found.trace, found.trace_error, found.orthogonality])}


def test_training_is_the_same_bits_from_two_ranks_to_one_and_back(golden, gang, tmp_path):
    session = open_session(points_config(tmp_path / "run", **CHANGES))
    body = "distinf.spectral.train:body"
    assert not gang.run(body, session, 2, stop_at=11)  # a look into the ledger, and a sum a step
    assert not gang.run(body, session, 1, stop_at=8)
    assert gang.run(body, session, 2)
    units = [unit for unit, _ in train.units(session.outline)]
    assert ranks_of(session, units) == [2, 2, 1, 2, 2]
    assert same_bits(checkpoints(session), checkpoints(golden["ordered"]))


@pytest.mark.parametrize("reduction", ["ordered", "allreduce"])
def test_arnoldi_ends_in_the_same_pairs_from_two_ranks_to_one_and_back(
    golden, gang, tmp_path, reduction
):
    expected = golden[reduction]
    shutil.copytree(f"{expected.blobs.root}", tmp_path / "run")
    for name in ("ledger/curvature", "curvature.zarr"):
        shutil.rmtree(tmp_path / "run" / name)
    session = open_session(points_config(tmp_path / "run", **CHANGES), accept=["code"])
    session = session.variations.get(reduction, session)
    body = "distinf.spectral.curvature:body"
    assert not gang.run(body, session, 2, stop_at=22)
    assert not gang.run(body, session, 1, stop_at=25)
    assert gang.run(body, session, 2)
    assert ranks_of(session, curvature.step_units(session.outline)) == [2] * 2 + [1] * 3 + [2] * 7
    found, golden_pairs = pairs(session), pairs(expected)
    if reduction == "ordered":
        assert same_bits(found, golden_pairs)
    np.testing.assert_allclose(found["values"], golden_pairs["values"], rtol=1e-5)
