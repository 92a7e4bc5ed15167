"""A run's own training unrolled: exact scores beside the stored ones in its evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distinf.cli import main
from distinf.engine.evaluating import evaluate
from distinf.engine.trainings import Design
from distinf.spectral import unrolling
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.train import step_rows
from tests.engine.test_evaluating import words_run
from tests.support.runs import run_points, silent

STEPPED = "tests.support.blobs_task:stepped"
SHARES = Design(subsets=0, shares=20, unrolled=True, patch=0)
TRAIN = {"steps": 30, "lr": 0.1, "weight_decay": 0.01}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("unrolled") / "run", task=STEPPED, train=TRAIN)


def trained(session, weights_N):
    """float64 targets' losses after torch's own training by the run's settings, rows weighted."""
    settings, task = session.settings.train, session.task
    model = task.model().double()
    loss = next(iter(task.losses.values()))

    def batch(split, ids):
        return {k: v.double() if v.is_floating_point() else v
                for k, v in task.batch(split, ids).items()}  # fmt: skip

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5, weight_decay=0.01)
    for step in range(settings.steps):
        ids = step_rows(session, step)
        optimizer.param_groups[0]["lr"] = settings.rate(step)
        optimizer.zero_grad()
        (weights_N[ids] * loss(model, batch("train", ids))).sum().div(len(ids)).backward()
        optimizer.step()
    with torch.no_grad():
        return loss(model, batch("evaluation", chosen_targets(session).ids))


def test_scores_are_what_another_weight_of_a_row_in_the_runs_training_does(finished):
    found_QN = unrolling.scores(finished, "", slice(None), lambda _: None)["cross-entropy"]
    assert found_QN.shape == (2, 240)
    largest = np.abs(found_QN).max()
    for row in (0, 5, 77, 239):
        changed = []
        for sign in (1, -1):
            weights_N = torch.ones(240, dtype=torch.float64)
            weights_N[row] += sign * 1e-4
            changed.append(trained(finished, weights_N))
        slope_Q = ((changed[0] - changed[1]) / 2e-4).numpy()
        assert found_QN[:, row] == pytest.approx(-slope_Q, rel=1e-3, abs=1e-5 * largest)


@pytest.mark.slow
def test_an_evaluation_has_them_beside_the_stored_scores_and_makes_them_once(finished):
    found = evaluate(finished.blobs.root, SHARES, silent)
    worth = {r["ranking"]: r["value"] for r in found.rows if r["measure"].startswith("LDS, 1 %")}
    assert worth["cross-entropy/unrolled"] > 0.98
    assert worth["cross-entropy/unrolled"] == max(worth.values())
    assert found.trainings == 23  # the shares, without the highest scored rows, and twice on all
    gradients = {r["ranking"]: r["gradients"] for r in found.rows}["cross-entropy/unrolled"]
    train, queries = finished.settings.train, len(chosen_targets(finished).ids)
    assert gradients == train.steps * train.batch_size * (2 + 3 * queries)
    ledger = list((finished.ledger("retrain")).committed_ids())
    assert len(ledger) == 24
    again = evaluate(finished.blobs.root, SHARES, silent)
    assert repr(again.rows) == repr(found.rows)
    more = evaluate(finished.blobs.root, replace(SHARES, patch=5), silent).rows
    stepped = {row["ranking"] for row in more if "after one step" in row["measure"]}
    assert stepped == worth.keys()  # the unrolled one among them
    assert main(["verify", finished.blobs.root]) == 0


def test_queries_in_parts_are_as_all_at_once(finished, monkeypatch):
    whole = unrolling.scores(finished, "", slice(None), lambda _: None)["cross-entropy"]
    part = unrolling.scores(finished, "", slice(1, 2), lambda _: None)["cross-entropy"]
    assert part == pytest.approx(whole[1:], rel=1e-4, abs=1e-6 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("task", "train", "line"),
    [
        pytest.param(
            *(
                "dropped",
                {},
                "losses in training are not those of evaluation (dropout, batch norms",
            ),
            marks=pytest.mark.slow,
        ),
        ("normed", {}, "losses in training are not those of evaluation (dropout, batch norms"),
        pytest.param(
            *("task", {"precision": "bfloat16"}, "needs a run of train.precision: float32"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_training_that_cannot_be_unrolled_is_refused_before_any(
    tmp_path, capsys, task, train, line
):
    run_points(tmp_path / "run", task=f"tests.support.blobs_task:{task}", train=train)
    assert main(["evaluate", str(tmp_path / "run"), "--unrolled"]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert "Traceback" not in told
    assert not (tmp_path / "run/ledger/retrain").exists()


@pytest.mark.slow
def test_a_training_that_ends_elsewhere_is_refused(tmp_path, capsys):
    """A model that is another one at each step, which no single step shows."""
    run_points(tmp_path / "run", task="tests.support.blobs_task:drifting")
    assert main(["evaluate", str(tmp_path / "run"), "--unrolled", "--subsets", "0"]) == 2
    assert "ends at other weights than the run's" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_trains_by_the_tasks_own_fit_is_refused(tmp_path, capsys):
    root = words_run(tmp_path / "run", {"seeds": 1})
    assert main(["evaluate", root, "--unrolled"]) == 2
    assert "the task's own fit(), which cannot be unrolled" in capsys.readouterr().err
