"""What a run shows in TensorBoard: every step's loss, a rate of every stage; and who lacks it."""

import numpy as np
import pytest

from distinf.config import resolve
from distinf.engine import board
from distinf.engine.run import execute
from distinf.errors import InputError
from distinf.spectral import train
from tests.support.runs import POINTS, merged, run_points, silent


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """() -> {tag: [(step, value)]} of what was written into the folder `curves`."""
    pytest.importorskip("tensorboard", reason="optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(board, "EVERY_S", 0.02)

    def read():
        found = EventAccumulator(str(tmp_path / "curves"), size_guidance={"scalars": 0})
        found.Reload()
        tags = found.Tags()["scalars"]
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}

    return read


def test_losses_of_each_step_and_a_rate_of_each_stage(tmp_path, shown):
    runtime = {"tensorboard": str(tmp_path / "curves")}
    session = run_points(tmp_path / "run", runtime=runtime)
    found = shown()
    steps, losses = zip(*found["train/loss"], strict=True)
    assert steps == tuple(range(12))
    np.testing.assert_allclose(losses, train.loss_curve(session), rtol=1e-6)
    for stage in ("train", "curvature", "gradients", "scores", "actions", "report"):
        assert found[f"units a second/{stage}"][-1][0] > 0  # units done
    assert max(rate for _, rate in found["units a second/gradients"]) > 0


@pytest.mark.slow
def test_epochs_of_each_training(tmp_path, shown):
    raw = {
        "task": "tests.support.words_task:task", "recipe": "gram", "out": str(tmp_path / "run"),
        "runtime": {"kind": "local", "tensorboard": str(tmp_path / "curves")},
        "train": {"epochs": 3, "lr": 0.05, "batch_size": 10},
        "scores": {"estimators": ["tracin"]}, "actions": {"configurations": ["random"]},
    }  # fmt: skip
    session = execute(resolve(raw), silent)
    found = shown()
    for cell in session.outline.cells:
        assert [step for step, _ in found[f"train/query_loss/{cell}"]] == [0, 1, 2]
    again = [tag for tag in found if tag.startswith("actions/query_loss/")]
    assert len(again) == len(session.outline.cells)


def test_who_has_none_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(board.importlib.util, "find_spec", lambda name: None)
    raw = merged(POINTS, {"out": str(tmp_path / "run"), "runtime": {"tensorboard": "curves"}})
    with pytest.raises(InputError, match="not installed here: pip install tensorboard") as refused:
        execute(resolve(raw), silent)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
