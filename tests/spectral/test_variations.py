"""Variations have the run's targets, each in its own model, so that they can be compared."""

import numpy as np
import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.report.spectral.warnings import warnings
from distinf.spectral import evaluate
from distinf.tasks.tensor_task import TensorTask
from tests.support import blobs_task
from tests.support.runs import run_points

UNTRAINED = {"variations": {"other": {"train.steps": 1}}, "train": {"steps": 40}}


class Mistakes:
    """The points task with the metric 0 where the model is right: no gap there."""

    def __init__(self, inner: TensorTask):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def evaluate(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        odds = model(batch["x"]).softmax(1).gather(1, batch["label"][:, None])[:, 0]
        return {"metric": torch.relu(0.5 - odds)}


def mistakes(settings: blobs_task.Points, seed: int) -> Mistakes:
    return Mistakes(blobs_task.task(settings, seed))


def run(out, **changes):
    task = {"task": "tests.spectral.test_variations:mistakes"}
    return run_points(out, **{**task, "settings": {"flipped": 110}, **changes})


def test_a_variation_has_the_runs_targets_though_its_own_gaps_are_others(tmp_path):
    finished = run_points(tmp_path / "run", **UNTRAINED)
    ours, theirs = (evaluate.chosen_targets(s) for s in (finished, finished.variations["other"]))
    own = evaluate.choose_targets(
        evaluate.evaluation(finished.variations["other"]), finished.task, finished.settings.targets
    )
    assert ours.ids.tolist() == theirs.ids.tolist() != own.ids.tolist()
    columns = evaluate.evaluation(finished.variations["other"])
    assert np.array_equal(theirs.gaps, columns["metric"][theirs.ids].astype(np.float64))
    assert finished.keys["queries"] != finished.variations["other"].keys["queries"]


@pytest.mark.slow
def test_other_settings_of_targets_choose_in_the_variations_own_model(tmp_path):
    varied = {"other": {"train.steps": 1, "targets.count": 3}}
    other = run_points(tmp_path / "run", **{**UNTRAINED, "variations": varied}).variations["other"]
    own = evaluate.choose_targets(evaluate.evaluation(other), other.task, other.settings.targets)
    assert evaluate.chosen_targets(other).ids.tolist() == own.ids.tolist()


@pytest.mark.slow
def test_the_runs_targets_are_part_of_a_variations_identity(tmp_path):
    other = {"variations": {"other": {"train.steps": 1}}}
    one, two = (run_points(tmp_path / str(n), train={"steps": n}, **other) for n in (12, 13))
    first, second = one.variations["other"].keys, two.variations["other"].keys
    assert first["evaluate"] == second["evaluate"]
    assert all(first[stage] != second[stage] for stage in ("queries", "trajectory", "actions"))


@pytest.mark.slow
def test_targets_without_a_gap_in_the_variations_model_are_left_out_and_named(tmp_path):
    varied = {"other": {"train.rows": 40}}
    finished = run(tmp_path / "run", targets={"count": 12}, variations=varied, train={"steps": 40})
    other = finished.variations["other"]
    ours, theirs = (evaluate.chosen_targets(s).ids.tolist() for s in (finished, other))
    metric = evaluate.evaluation(other)["metric"]
    assert theirs == [row for row in ours if metric[row] > 0]
    left_out = sorted(set(ours) - set(theirs))
    assert 0 < len(left_out) < len(ours)
    assert any(str(left_out[0]) in line and "left out of it" in line for line in warnings(other))


@pytest.mark.slow
def test_a_variation_without_a_usable_target_is_one_line(tmp_path):
    fewer = {"other": {"train.rows": 40}}
    finished = run(tmp_path / "first", targets={"count": 60}, variations=fewer,
                   train={"steps": 40}, curvature={"probes": 1})  # fmt: skip
    right = evaluate.unusable_targets(finished.variations["other"])
    with pytest.raises(InputError, match=r"variations.other: row .* usable gap .*targets.ids"):
        run(tmp_path / "second", targets={"ids": right[:1]}, variations=fewer,
            train={"steps": 40})  # fmt: skip
