"""A Gram run held against training again: texts with wrong labels, and a task that has no fit."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs distinf[llm]")

from distinf.cli import main
from distinf.config import resolve
from distinf.engine.evaluating import evaluate
from distinf.engine.recipe import Draws
from distinf.engine.run import execute, reopen
from distinf.engine.trainings import Design
from distinf.gram import retraining
from distinf.gram.session import QUERY
from distinf.gram.train import trained_model
from tests.support.noisy import tiny_model, write_classes
from tests.support.runs import silent

pytestmark = pytest.mark.slow

CLASSES = ("billing", "delivery", "praise")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_classes(folder / "queues.csv", CLASSES, rows=80)
    raw = {
        "task": "noisy_labels", "out": str(folder / "run"), "seeds": 2,
        "data": {"path": str(folder / "queues.csv"), "train_rows": 40, "query_rows": 12,
                 "test_rows": 12, "flips": 0.2},
        "model": {"name": tiny_model(folder / "model"), "max_length": 12},
        "runtime": {"kind": "local"},
        "train": {"epochs": 3, "batch_size": 10, "lr": 0.05, "selected_epoch": "last"},
        "actions": {"configurations": []},
    }  # fmt: skip
    return execute(resolve(raw), lambda *_: nullcontext())


def losses(session, cell: str, kept, seed: int = 0):
    return retraining.losses(session, cell, np.asarray(kept), Draws(seed), lambda share: None)


def test_training_again_on_all_rows_gives_the_queries_losses_of_the_run(finished):
    for name, cell in finished.outline.cells.items():
        found = losses(finished, name, range(40))
        model, loss = trained_model(finished, name), finished.task(name).losses["cross-entropy"]
        batch = finished.batch(name, QUERY, np.arange(cell.rows[QUERY]))
        with torch.no_grad():
            expected = loss(model, batch).double().numpy()
        np.testing.assert_allclose(found["cross-entropy"], expected, rtol=1e-6)


def test_another_seed_trains_the_same_rows_from_the_same_start_otherwise(finished):
    name = next(iter(finished.outline.cells))
    task = finished.task(name)
    other = task.reseeded(1)
    for one, two in zip(task.model().parameters(), other.model().parameters(), strict=True):
        assert torch.equal(one, two)
    start = task.reseeded(1, own_start=True).model()
    adapters = dict(task.model().named_parameters())
    assert any(not torch.equal(p, adapters[n]) for n, p in start.named_parameters())
    first, second = (losses(finished, name, range(30), seed) for seed in (1, 2))
    assert not np.array_equal(first["cross-entropy"], second["cross-entropy"])
    again = losses(finished, name, range(30), 1)
    assert np.array_equal(first["cross-entropy"], again["cross-entropy"])


def test_every_cell_has_its_measures_of_every_estimator_and_free_ranking(finished):
    found = evaluate(finished.blobs.root, Design(subsets=10, repeats=2, shares=0), silent)
    assert {row["cell"] for row in found.rows} == finished.outline.cells.keys()
    halves = [row for row in found.rows if row["measure"] == "LDS, half left out"]
    names = {row["ranking"] for row in halves}
    assert {"datainf/all", "tracin/all", "own loss", "gradient norm"} <= names
    assert all(-1 <= row["value"] <= 1 and row["queries"] == 12 for row in halves)
    assert len({row["ceiling"] for row in halves}) == 2  # one for each cell
    of_labels = [row for row in found.rows if row["measure"].startswith("AUC")]
    assert len(of_labels) == len(halves)
    assert main(["verify", finished.blobs.root]) == 0


def test_a_task_without_fit_is_refused_with_the_way_to_one_that_trains_it(tmp_path, capsys):
    raw = {
        "task": "tests.support.blobs_task:task", "recipe": "gram", "out": str(tmp_path / "run"),
        "runtime": {"kind": "local"}, "actions": {"configurations": []},
    }  # fmt: skip
    execute(resolve(raw), lambda *_: nullcontext())
    reopen(str(tmp_path / "run"))
    assert main(["evaluate", str(Path(tmp_path) / "run")]) == 2
    told = capsys.readouterr().err
    assert "has no fit(); a run of the spectral recipe trains any task" in told
