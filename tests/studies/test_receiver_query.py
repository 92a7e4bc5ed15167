"""A finished receiver run is asked about other slots, and other slots are scored as candidates."""

from contextlib import nullcontext

import numpy as np
import pytest

pytest.importorskip("sionna", reason="needs sionna-no-rt")

from distinf.config import resolve
from distinf.engine.query import ask
from distinf.engine.run import execute
from distinf.errors import InputError
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.scores import stored_scores

RAW = {
    "task": "receiver",
    "settings": {
        "scenario": {
            "prbs": 1, "snr_db": [0, 10], "train_models": ["TDL-B"], "dmrs_types": [1],
            "evaluation_models": ["TDL-A"], "train_slots": 96, "evaluation_slots": 48,
            "frames_per_unit": 2,
        },
        "model": {"widths": [4, 4]},
    },
    "runtime": {"kind": "local"},
    "train": {"steps": 20, "batch_size": 24, "lr": 0.03, "shards": 2},
    "targets": {"count": 2},
    "curvature": {"steps": 4, "keep": 3, "samples": 24, "probes": 2},
    "gradients": {"rows_per_unit": 48},
    "scores": {"damping": 1.0, "negative": "absolute"},
    "actions": {"pool": 24, "steps": 1, "seeds": 1, "batch_size": 12, "non_targets": 12},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("receiver") / "run"
    return execute(resolve({**RAW, "out": str(out)}), lambda *_: nullcontext())


def test_other_evaluation_slots_are_asked_about(run):
    changes = [("scenario.evaluation_models", ["TDL-E"]), ("scenario.evaluation_slots", 24)]
    (answer,) = ask(run.blobs.root, changes, lambda *_: nullcontext()).answers
    assert answer.scores_QN.shape == (24, 96)
    assert np.isfinite(answer.scores_QN).all()


def test_slots_of_other_channels_are_scored_for_the_targets(run):
    others = [("scenario.train_models", ["TDL-D"]), ("scenario.train_slots", 48)]
    (answer,) = ask(run.blobs.root, [], lambda *_: nullcontext(), candidates=others).answers
    assert answer.scores_QN.shape == (2, 48)
    assert np.isfinite(answer.scores_QN).all()
    assert [query["row"] for query in answer.queries] == sorted(chosen_targets(run).ids.tolist())


def test_more_of_the_same_slots_begin_with_those_that_the_run_has_scored(run):
    others = [("scenario.train_slots", 144)]
    name = "bce/classic"
    found = ask(run.blobs.root, [], lambda *_: nullcontext(), candidates=others, ranking=name)
    expected_QN = stored_scores(run, "bce", "classic")[np.argsort(chosen_targets(run).ids)]
    np.testing.assert_allclose(
        found.answers[0].scores_QN[:, :96], expected_QN, rtol=1e-4, atol=1e-6
    )


def test_candidates_that_are_the_training_slots_are_refused(run):
    others = [("scenario.evaluation_models", ["TDL-E"])]
    with pytest.raises(InputError, match="the run's own training rows"):
        ask(run.blobs.root, [], lambda *_: nullcontext(), candidates=others)
