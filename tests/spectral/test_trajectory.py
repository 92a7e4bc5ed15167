"""TracIn over checkpoints against a loop of autograd gradients, and what the stage stores."""

import numpy as np
import pytest
import torch

from distinf.errors import InputError
from distinf.runtime import RuntimeSettings, open_runtime
from distinf.spectral import evaluate, scores, train, trajectory
from distinf.spectral.session import Session
from tests.support.blobs_task import Points, task
from tests.support.partial import points_config, run_until
from tests.support.runs import merged

NAME = "tests.spectral.test_trajectory:two_losses"
CHECKPOINTS = {"trajectory": {"checkpoints": 3}}


def carry_out(out, **changes):
    """A run up to what TracIn needs, then the stage itself: no curvature, no scores."""
    session = run_until("evaluate", points_config(out, **changes))
    runtime = open_runtime(RuntimeSettings(kind="local"))
    try:
        trajectory.run(session, runtime)
    finally:
        runtime.close()
    return session


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with two losses and four checkpoints of which three are summed over."""
    return carry_out(tmp_path_factory.mktemp("runs") / "tracin", task=NAME, **CHECKPOINTS)


def two_losses(settings: dict, seed: int):
    """The points task, with a query loss beside the training loss."""
    made = task(Points(), seed)
    made.losses["doubt"] = lambda model, batch: (
        1 - torch.softmax(model(batch["x"]), 1).gather(1, batch["label"][:, None])[:, 0]
    )
    return made


def planned(tmp_path, **changes):
    """A session of settings that nothing was computed for, with the method a run chooses."""
    changes = merged({"gradients": {"method": "hooks"}}, changes)
    config = points_config(tmp_path / "run", **changes)
    return Session(config.context(str(config.out)), torch.device("cpu"))


def gradients(model, loss, batch):
    """fp64 [N, P], one backward pass after the other."""
    found = []
    for n in range(len(batch["label"])):
        model.zero_grad()
        loss(model, {k: v[n : n + 1] for k, v in batch.items()}).sum().backward()
        found.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    return torch.stack(found)


def expected_scores(session, loss, steps):
    """The sum over checkpoints, from the stored weights and autograd alone."""
    stored = {unit.stop: unit for unit, _ in train.units(session.outline)}
    rows, targets = np.arange(240), evaluate.chosen_targets(session).ids
    total = 0.0
    for step in steps:
        arrays = session.arrays(stored[step])
        model = session.fresh_model()
        state = {k: torch.from_numpy(arrays[f"model.{k}"]) for k in model.state_dict()}
        model.load_state_dict(state)
        model = model.double().eval()
        batches = [
            {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
            for batch in (session.batch("train", rows), session.batch("evaluation", targets))
        ]
        train_NP = gradients(model, session.task.losses["cross-entropy"], batches[0])
        query_TP = gradients(model, session.task.losses[loss], batches[1])
        total = total + session.settings.train.rate(step - 1) * (query_TP @ train_NP.T)
    return total.numpy()


@pytest.mark.parametrize("loss", ["cross-entropy", "doubt"])
def test_scores_are_the_sum_over_checkpoints(finished, loss):
    expected = expected_scores(finished, loss, steps=(6, 9, 12))
    found = trajectory.tracin_scores(finished, loss)
    assert found.dtype == np.float64
    assert found.shape == (2, 240)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(scores.stored_scores(finished, loss, "tracin"), found)


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_every_way_to_the_gradients_gives_the_same_scores(finished, method, tmp_path):
    changes = {"method": method, "rows": 60}
    other = carry_out(tmp_path / method, task=NAME, gradients=changes, **CHECKPOINTS)
    expected = trajectory.tracin_scores(finished)[:, :60]
    found = trajectory.tracin_scores(other)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_positive_score_means_that_a_gradient_step_on_the_row_lowers_the_targets_loss(finished):
    tracin_N = trajectory.tracin_scores(finished)[0]
    loss = finished.task.losses["cross-entropy"]
    target = finished.batch("evaluation", evaluate.chosen_targets(finished).ids[:1])
    for row in (int(np.argmax(tracin_N)), int(np.argmin(tracin_N))):
        model = train.trained_model(finished)
        before = float(loss(model, target).detach())
        loss(model, finished.batch("train", np.array([row]))).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-2 * parameter.grad
        assert (float(loss(model, target).detach()) < before) == (tracin_N[row] > 0)


@pytest.mark.parametrize(
    ("count", "steps"), [(1, [12]), (2, [6, 12]), (3, [6, 9, 12]), (4, [3, 6, 9, 12])]
)
def test_checkpoints_are_evenly_spaced_and_end_with_the_last(count, steps, tmp_path):
    session = planned(tmp_path, trajectory={"checkpoints": count})
    trajectory.check(session.outline)
    chosen = trajectory.chosen_checkpoints(session.outline)
    assert [unit.stop for unit in chosen] == steps
    wanted = [unit for unit, _ in trajectory.units(session.outline)]
    assert len(wanted) == count * 4
    assert len({unit.id for unit in wanted}) == len(wanted)


def test_more_checkpoints_than_training_stores_are_refused(tmp_path):
    session = planned(tmp_path, trajectory={"checkpoints": 5})
    with pytest.raises(InputError, match=r"trajectory.checkpoints: 5 is more than the 4 that 12 "):
        trajectory.check(session.outline)


def test_without_checkpoints_there_is_nothing_to_do_and_no_score(tmp_path):
    session = planned(tmp_path)
    trajectory.check(session.outline)
    assert trajectory.units(session.outline) == []
    with pytest.raises(InputError, match=r"set trajectory.checkpoints to at least 1"):
        scores.stored_scores(session, "", "tracin")


def test_a_further_checkpoint_keeps_the_passes_that_are_done(finished, tmp_path):
    more = planned(tmp_path, task=NAME, trajectory={"checkpoints": 4})
    ids = {unit.id for unit, _ in trajectory.units(finished.outline)}
    assert ids < {unit.id for unit, _ in trajectory.units(more.outline)}
    assert more.keys["tracin"] != finished.keys["tracin"]
    assert more.keys["scores"] == finished.keys["scores"]


def test_the_curvature_and_the_damping_play_no_part(finished, tmp_path):
    same = {"curvature": {"steps": 9}, "scores": {"damping": 1.0}, "gradients": {"rows": 120}}
    other = planned(tmp_path, task=NAME, **CHECKPOINTS, **same)
    assert other.keys["trajectory"] == finished.keys["trajectory"]
    fewer = planned(tmp_path, task=NAME, **CHECKPOINTS, targets={"count": 1})
    assert fewer.keys["trajectory"] != finished.keys["trajectory"]


def test_a_row_whose_gradient_is_not_finite_has_no_score(tmp_path):
    session = carry_out(
        tmp_path / "poisoned",
        task="tests.spectral.test_trajectory:poisoned_last",
        train={"rows": 200},
        gradients={"candidates": "all"},
        trajectory={"checkpoints": 2},
    )
    assert trajectory.quarantined_rows(session) == [230]
    found = trajectory.tracin_scores(session)
    assert np.isnan(found[:, 230]).all()
    assert np.isfinite(np.delete(found, 230, axis=1)).all()


def poisoned_last(settings: dict, seed: int):
    """One row without a finite gradient, among those that the model is not trained on."""
    made = task(Points(), seed)
    made._data["train"]["x"][230] = float("inf")
    return made
