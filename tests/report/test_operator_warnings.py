"""What the page says of operators, arms and targets that are less than they seem."""

import json

import numpy as np
import pytest
import torch

from distinf.errors import InputError
from distinf.spectral.scores import stored_scores
from distinf.tasks.tensor_task import TensorTask
from tests.support import blobs_task
from tests.support.runs import POINTS, run_points


class OneFrame:
    """The points task; all of its evaluation rows were measured under the same conditions."""

    conditions = ("snr",)

    def __init__(self, inner: TensorTask):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def evaluate(self, model, batch):
        found = self._inner.evaluate(model, batch)
        return found | {"snr": torch.full_like(found[self._inner.metric], 3.0)}


def one_frame(settings: blobs_task.Points, seed: int) -> OneFrame:
    return OneFrame(blobs_task.task(settings, seed))


def warnings(session, of: str = "warnings") -> list[str]:
    found: list[str] = json.loads(session.blobs.get("report/findings.json"))[of]
    return found


def test_a_truncated_inverse_contradicts_a_refined_solve_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match=r"curvature.refine: .*scores.complement none truncates"):
        run_points(
            tmp_path / "run",
            curvature={**POINTS["curvature"], "refine": 1},
            scores={**POINTS["scores"], "complement": "none"},
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("scaling", "damping", "said"),
    [("paper", 1e-3, "which turns the sign of their scores"),
     pytest.param("mean", 1e-3, "which leaves them without a score", marks=pytest.mark.slow),
     ("mean", 10.0, "")],
)  # fmt: skip
def test_newfluence_is_warned_of_where_denominators_are_not_positive(
    tmp_path, scaling, damping, said
):
    scores = {**POINTS["scores"], "negative": "absolute", "complement": "mean"}
    session = run_points(tmp_path / "run", scores=scores | {"scaling": scaling, "damping": damping})
    found = [w for w in warnings(session) if "Newfluence" in w]
    assert len(found) == bool(said)
    assert all(said in w and "of 240 samples" in w for w in found)


@pytest.mark.slow
def test_rows_without_a_relative_score_are_warned_of(tmp_path):
    scores = {"complement": "none", "damping": 0.0, "negative": "keep"}
    some = {"kind": "hessian", "keep": 8}
    session = run_points(
        tmp_path / "run", scores=scores, curvature=some, train={"steps": 60, "lr": 0.3}
    )
    found = [w for w in warnings(session) if w.startswith("Ell-relative")]
    assert len(found) == 1
    assert "which leaves them without a score" in found[0]
    lost = int(found[0].split(" for ")[1].split()[0])
    assert lost == int(np.isnan(stored_scores(session, variant="ell-relative")[0]).sum()) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curvature": {"probes": 0}}, r"complement: gradients .*curvature.probes to 1 or more"),
        ({"scores": {"complement": "damping", "damping": 0.0}}, r"divides by 0 outside the Ritz"),
    ],
)
def test_a_complement_that_is_unknown_or_zero_is_refused_before_anything_runs(
    tmp_path, changes, message
):
    with pytest.raises(InputError, match=message):
        run_points(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_arms_that_chose_the_same_rows_are_said_to_be_one_experiment(tmp_path):
    also = {"all": {"variant": ["classic", "ell-relative", "newfluence"], "pool": 240,
                    "batch_size": 20, "selections": ["helpful"]}}  # fmt: skip
    session = run_points(tmp_path / "run", actions={**POINTS["actions"], "also": also})
    found = [w for w in warnings(session) if "chose the same" in w]
    assert len(found) == 1
    for variant in ("classic", "ell-relative", "newfluence"):
        assert f"cross-entropy {variant}" in found[0]
    assert "one experiment, not 3" in found[0]


@pytest.mark.slow
def test_warnings_of_a_run_beside_this_one_are_on_the_page_with_its_name(tmp_path):
    scaled = {"other": {"scores.scaling": "paper", "scores.damping": 1e-3}}
    scores = {"damping": 10.0, "complement": "mean"}
    session = run_points(tmp_path / "run", scores=scores, variations=scaled)
    said = [w for w in warnings(session) if w.startswith("other: Newfluence")]
    assert len(said) == 1
    page = session.blobs.get("report/index.html").decode()
    assert page.index(said[0]) < page.index('id="targets"')  # at its head


@pytest.mark.slow
def test_targets_of_one_condition_and_too_few_of_them_are_warned_of(tmp_path):
    rows = {"task": "tests.report.test_operator_warnings:alike"}
    named = run_points(tmp_path / "named", **rows, targets={"ids": [0, 2, 4]})
    assert any("Targets 0, 2, 4 have the same conditions" in w for w in warnings(named))
    assert any("3 targets are evidence like 1 independent ones" in w for w in warnings(named))
    few = run_points(tmp_path / "few", **rows, targets={"count": 3})
    said = "Only 2 of the 3 targets asked for were eligible, at most 1 under the same conditions."
    assert said in warnings(few)


class Alike:
    """The points task, whose rows of one parity were measured under one condition."""

    conditions = ("parity",)

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def evaluate(self, model, batch):
        return {**self._inner.evaluate(model, batch), "parity": batch["label"].float()}


def alike(settings: blobs_task.Points, seed: int) -> Alike:
    return Alike(blobs_task.task(settings, seed))


@pytest.mark.slow
def test_an_evaluation_set_of_one_condition_is_said_to_give_no_interval_over_conditions(tmp_path):
    task = "tests.report.test_operator_warnings:one_frame"
    session = run_points(tmp_path / "run", task=task, targets={"per_condition": 0})
    assert any(w.startswith("All 64 evaluation rows have the same") for w in warnings(session))
    other = warnings(run_points(tmp_path / "other"))
    assert not any("same conditions" in w for w in other)


def test_where_an_operator_is_not_the_published_one_is_a_deviation(tmp_path):
    second = {"also": {"both": {"update": "second-order", "variant": "newfluence"}}}
    curved = {"keep": 8}
    scores = {"damping": 1e-3, "negative": "absolute"}
    ours = warnings(
        run_points(
            tmp_path / "ours", task="tests.report.test_operator_warnings:one_frame",
            scores=scores, curvature=curved, actions=second, train={"steps": 60, "lr": 0.3},
        ),
        "deviations",
    )  # fmt: skip
    said = [
        "at most 1 can be targets", "raised by 0.001", "count by their size", "1 - self / rows",
        "scores.complement: gradients", "the mean over its rows", "newton_solves: stored",
    ]  # fmt: skip
    for words in said:
        assert sum(words in line for line in ours) == 1, words
    scores = {"damping": 0.0, "complement": "none", "scaling": "paper"}
    curved = {"keep": 2}
    also = {"also": {"one": {"variant": "newfluence"}}}
    theirs = run_points(tmp_path / "theirs", scores=scores, curvature=curved, actions=also)
    assert warnings(theirs, "deviations") == []
