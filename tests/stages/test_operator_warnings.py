"""What the page says of operators, arms and targets that are less than they seem."""

import json

import numpy as np
import pytest

from distinf.errors import InputError
from distinf.stages.basis.scores import stored_scores
from tests.support import blobs_task
from tests.support.runs import POINTS, run_points


def warnings(session) -> list[str]:
    found: list[str] = json.loads(session.blobs.get("report/findings.json"))["warnings"]
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
     ("mean", 1e-3, "which leaves them without a score"),
     ("mean", 10.0, "")],
)  # fmt: skip
def test_newfluence_is_warned_of_where_denominators_are_not_positive(
    tmp_path, scaling, damping, said
):
    scores = {**POINTS["scores"], "negative": "absolute"}
    session = run_points(tmp_path / "run", scores=scores | {"scaling": scaling, "damping": damping})
    found = [w for w in warnings(session) if "Newfluence" in w]
    assert len(found) == bool(said)
    assert all(said in w and "of 240 samples" in w for w in found)


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
        ({"curvature": {"probes": 0}}, r"scores.complement: mean .*curvature.probes to 1 or more"),
        ({"scores": {"complement": "damping", "damping": 0.0}}, r"divides by 0 outside the Ritz"),
    ],
)
def test_a_complement_that_is_unknown_or_zero_is_refused_before_anything_runs(
    tmp_path, changes, message
):
    with pytest.raises(InputError, match=message):
        run_points(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_arms_that_chose_the_same_rows_are_said_to_be_one_experiment(tmp_path):
    also = {"all": {"variant": ["classic", "ell-relative", "newfluence"], "pool": 240,
                    "batch_size": 20, "selections": ["helpful"]}}  # fmt: skip
    session = run_points(tmp_path / "run", actions={**POINTS["actions"], "also": also})
    found = [w for w in warnings(session) if "chose the same" in w]
    assert len(found) == 1
    for variant in ("classic", "ell-relative", "newfluence"):
        assert f"cross-entropy {variant}" in found[0]
    assert "one experiment, not 3" in found[0]


def test_warnings_of_a_run_beside_this_one_are_on_the_page_with_its_name(tmp_path):
    scaled = {"other": {"scores.scaling": "paper", "scores.damping": 1e-3}}
    session = run_points(tmp_path / "run", scores={"damping": 10.0}, beside=scaled)
    said = [w for w in warnings(session) if w.startswith("other: Newfluence")]
    assert len(said) == 1
    page = session.blobs.get("report/index.html").decode()
    assert page.index(said[0]) < page.index('id="targets"')  # at its head


def test_targets_of_one_condition_and_too_few_of_them_are_warned_of(tmp_path):
    rows = {"task": "tests.stages.test_operator_warnings:alike"}
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
