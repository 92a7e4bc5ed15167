"""Whole runs: right against dense algebra, the same whatever the workers, resumable, refused."""

import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.func import functional_call, hessian, jacrev

from distinf.config import load
from distinf.engine.rewriting import rewrite_report
from distinf.engine.run import open_session, reopen
from distinf.engine.session import draw
from distinf.engine.standing import stages_of
from distinf.engine.verifying import verify
from distinf.errors import CorruptionError, InputError
from distinf.report.spectral import arm_outcomes
from distinf.runtime import Unit
from distinf.spectral import actions, curvature, evaluate, gradients, pools, scores, train
from distinf.store import open_root
from tests.support.partial import points_config
from tests.support.runs import all_scores, run_points, same_bits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One points run, carried out once."""
    return run_points(tmp_path_factory.mktemp("runs") / "points")


def dense(session):
    """Per-sample gradients [N, P], targets' gradients [T, P] and mean Hessian [P, P], in fp64."""
    model = train.trained_model(session).double()
    loss = next(iter(session.task.losses.values()))
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, batch):
            return loss(self.inner, batch)

    call = Call()

    def losses(theta, batch):
        parts = theta.split(sizes)
        named = {f"inner.{n}": p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return functional_call(call, named, (batch,))

    def rows(split, ids):
        batch = session.task.batch(split, ids)
        return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}

    everything = rows("train", np.arange(session.outline.rows["train"]))
    grads_NP = jacrev(losses)(theta, everything)
    targets = rows("evaluation", evaluate.chosen_targets(session).ids)
    queries_TP = jacrev(losses)(theta, targets)
    settings = session.settings.curvature
    ids = np.sort(draw(session.seed, "curvature rows", len(grads_NP), settings.samples))
    hessian_PP = hessian(lambda t: losses(t, rows("train", ids)).mean())(theta)
    return grads_NP, queries_TP, hessian_PP


def test_every_variant_agrees_with_dense_algebra(tmp_path):
    """With the full basis nothing is approximated but the products' own rounding."""
    full = {"steps": 86, "keep": 86, "samples": 40, "probes": 0, "shards": 4}
    session = run_points(
        tmp_path / "full", curvature=full, scores={"damping": 1.0, "negative": "keep"}
    )
    grads_NP, queries_TP, hessian_PP = (x.detach() for x in dense(session))
    assert grads_NP.shape[1] == 86
    inverse_PP = torch.linalg.inv(hessian_PP + torch.eye(86, dtype=torch.float64))
    solved_NP = grads_NP @ inverse_PP
    classic = (queries_TP @ solved_NP.T).numpy()
    self_N = (grads_NP * solved_NP).sum(1).numpy()
    expected = {
        "classic": classic,
        "theta-relative": classic / solved_NP.norm(dim=1).numpy(),
        "ell-relative": classic / np.sqrt(self_N),
        "newfluence": classic / (1 - self_N / len(grads_NP)),
    }
    found = all_scores(session)
    for variant, values in expected.items():
        error = np.abs(found[f"cross-entropy.{variant}"] - values).max() / np.abs(values).max()
        assert error < 1e-4, variant


def test_refined_scores_agree_with_the_dense_solve(tmp_path):
    keep = {"damping": 1.0, "negative": "keep"}
    limits = {"refine": 2, "refine_steps": 80, "refine_tolerance": 1e-5}
    session = run_points(tmp_path / "refined", curvature=limits, scores=keep)
    grads_NP, queries_TP, hessian_PP = (x.detach() for x in dense(session))
    damped_PP = hessian_PP + torch.eye(86, dtype=torch.float64)
    expected = (torch.linalg.solve(damped_PP, queries_TP.T).T @ grads_NP.T).numpy()
    found = all_scores(session)["cross-entropy.classic"]
    assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-4


def test_a_positive_score_means_that_training_on_the_row_lowers_the_targets_loss(finished):
    found = {selection: [] for selection in ("helpful", "harmful")}
    for outcome in arm_outcomes.main_outcomes(finished):
        if outcome.selection in found:
            found[outcome.selection].append(outcome.gap_reduction_pct)
    assert np.mean(found["helpful"]) > 0 > np.mean(found["harmful"])


def test_a_finished_run_is_intact_and_needs_no_second_look(finished):
    checked = verify(finished.blobs)
    assert checked.problems == []
    assert checked.records == sum(s.done for s in stages_of(finished.blobs)) > 30
    before = {n: open_root(finished.blobs.root).get(n) for n in finished.blobs.names("ledger")}
    again = run_points(finished.blobs.root)
    assert {n: again.blobs.get(n) for n in again.blobs.names("ledger")} == before


def test_rows_and_tables_of_the_report_are_there(finished):
    page = rewrite_report(finished)
    assert Path(page).read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    names = finished.blobs.names("report")
    assert {"report/index.html", "report/trials.csv", "report/trials.json"} <= set(names)


def test_the_folders_config_replays_the_run(finished, tmp_path):
    config = load(f"{finished.blobs.root}/config.yaml", [f"out={tmp_path}/again"])
    text = finished.blobs.get("config.yaml")
    assert yaml.safe_load(text)["provenance"]["fingerprint"]["train.steps"] == 12
    assert load(finished.blobs.root).out == finished.blobs.root
    assert config.context("x")["keys"] == finished.context["keys"]


def test_chunks_and_units_change_scores_by_rounding_alone(finished, tmp_path):
    other = run_points(
        tmp_path / "chunks", gradients={"rows_per_unit": 50, "chunk": 7}, curvature={"memory_mb": 1}
    )
    for name, values in all_scores(finished).items():
        np.testing.assert_allclose(all_scores(other)[name], values, rtol=2e-3, atol=1e-5)


@pytest.mark.ray
@pytest.mark.parametrize(
    "workers",
    [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.smoke)],
)
def test_ray_gives_the_same_bits_at_any_number_of_ranks(finished, tmp_path, workers, caplog):
    runtime = {"kind": "ray", "workers": workers, "dashboard": False}
    with caplog.at_level("INFO", "distinf"):
        other = run_points(tmp_path / "ray", runtime=runtime)
    assert "starting a Ray cluster here" in caplog.messages  # said, as it takes seconds
    assert same_bits(all_scores(other), all_scores(finished))


def test_a_row_whose_gradient_is_not_finite_is_quarantined_by_id(tmp_path):
    session = run_points(
        tmp_path / "poisoned",
        task="tests.support.blobs_task:poisoned",
        train={"steps": 0},
        curvature={"samples": 20},
    )
    assert 7 not in draw(0, "curvature rows", 240, 20)
    assert gradients.quarantined_rows(session) == [7]
    for values in all_scores(session).values():
        assert np.isnan(values[:, 7]).all()
        assert np.isfinite(np.delete(values, 7, axis=1)).all()
    for job in actions.chosen_jobs(session):
        assert 7 not in pools.pool_rows(session, job).rows
        many = {**job.job, "arm": {**job.job["arm"], "retain": 0.9, "steps": 300}}
        assert 7 not in pools.job_rows(session, Unit("actions", "", job=many))
    assert all(np.isfinite(o.gap_reduction_pct) for o in arm_outcomes.main_outcomes(session))
    assert "7" in session.blobs.get("report/index.html").decode()


@pytest.mark.slow
def test_the_curvature_leaves_out_a_row_whose_loss_is_not_finite_and_says_so(tmp_path):
    session = run_points(
        tmp_path / "poisoned",
        task="tests.support.blobs_task:poisoned",
        train={"steps": 0},
        curvature={"samples": 240, "residuals": "products"},
    )
    assert curvature.left_out_rows(session) == [7]
    assert curvature.stored_pairs(session).residuals.isfinite().all()
    assert (
        "The curvature leaves out 1 drawn rows" in session.blobs.get("report/index.html").decode()
    )


def test_a_row_that_is_not_finite_stops_training_with_one_line(tmp_path):
    with pytest.raises(InputError, match=r"train: the loss or a gradient is not finite at step"):
        run_points(tmp_path / "poisoned", task="tests.support.blobs_task:poisoned")


@pytest.mark.slow
def test_another_task_is_given_another_folder_and_no_way_to_go_on(finished, tmp_path):
    out = tmp_path / "changed"
    run_points(out)
    with pytest.raises(InputError, match=r"differing: task, .* choose .* --out \S*changed-2$"):
        run_points(out, task="tests.engine.test_run:hopeless")


def test_another_config_is_refused_by_key_and_can_be_accepted(finished, tmp_path):
    out = tmp_path / "changed"
    first = run_points(out)
    with pytest.raises(InputError, match=r"belongs to another run \(differing: scores.damping\)"):
        run_points(out, scores={"damping": 0.5})
    second = run_points(out, accept=["scores.damping"], scores={"damping": 0.5})
    assert yaml.safe_load(second.blobs.get("config.yaml"))["provenance"]["accepted"] == [
        "scores.damping"
    ]
    assert not same_bits(all_scores(first), all_scores(second))
    assert second.keys["curvature"] == first.keys["curvature"]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match=r"is not empty and holds no config.yaml"):
        run_points(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_no_eligible_target_is_refused_before_the_curvature(tmp_path):
    with pytest.raises(InputError, match=r"lower targets.min_reference"):
        run_points(tmp_path / "none", task="tests.engine.test_run:hopeless")
    assert "curvature" not in {
        n.split("/")[1] for n in open_root(str(tmp_path / "none")).names("ledger")
    }


def hopeless(settings: dict, seed: int):
    """A task whose reference is below every threshold."""
    from tests.support.blobs_task import Points, task

    made = task(Points(), seed)
    made.reference = "reference"
    metric = made.evaluate
    made.evaluate = lambda model, batch: {
        **metric(model, batch),
        "reference": torch.zeros(len(batch["label"])),
    }
    return made


def test_an_indefinite_solve_is_refused_and_names_the_way_out(tmp_path):
    with pytest.raises(InputError, match=r"scores: .*set damping to .* --accept scores.damping"):
        run_points(
            tmp_path / "indefinite",
            train={"steps": 0},
            curvature={"steps": 40, "keep": 40},
            scores={"damping": 1e-6, "negative": "refuse"},
        )


def test_not_enough_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("distinf.store.blobs.Folder.free_bytes", lambda self: 1_000)
    with pytest.raises(InputError, match=r"out: the run stores about .* GB free"):
        run_points(tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_units_are_planned_without_data(finished):
    planned = {s.name: s.units(finished.outline) for s in finished.recipe.working}
    assert [len(planned[s]) for s in ("train", "curvature", "gradients")] == [4, 8 + 1 + 2, 4]
    assert all(cost.flops > 0 for _, cost in planned["train"])
    assert sum(cost.bytes for _, cost in planned["gradients"]) < 1e6


def test_stored_pairs_are_ritz_pairs_of_the_dense_hessian(finished):
    pairs = curvature.stored_pairs(finished)
    hessian_PP = dense(finished)[2].detach()
    vectors_KP = pairs.vectors.double()
    residuals = (vectors_KP @ hessian_PP - pairs.values[:, None] * vectors_KP).norm(dim=1)
    np.testing.assert_allclose(residuals.numpy(), pairs.residuals.numpy(), atol=1e-5)
    assert pairs.seen is not None
    assert math.isnan(pairs.trace)  # which nobody asks for


def test_step_rows_cover_an_epoch_once(finished):
    rows = np.concatenate([train.step_rows(finished, step) for step in range(10)])
    assert sorted(rows) == list(range(240))


def test_reopen_names_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"give the folder of a run"):
        reopen(str(tmp_path))


def test_a_run_in_a_bucket_is_the_same_run(finished):
    bucket = f"memory://run-{time.time_ns()}"
    session = run_points(bucket)
    assert session.blobs.root == bucket
    assert same_bits(all_scores(session), all_scores(finished))
    assert verify(session.blobs).problems == []
    assert "report/index.html" in session.blobs.names("report")


def test_a_unit_without_a_record_is_told_and_not_left_out_of_a_sum(tmp_path):
    session = run_points(tmp_path)
    wanted = [unit for unit, _ in scores.units(session.outline)]
    (record,) = [n for n in session.blobs.names("ledger/scores") if wanted[-1].id in n]
    session.blobs.delete(record)
    again = reopen(str(tmp_path))
    for read in (scores.nonpositive_counts, scores.outside_shares):
        with pytest.raises(CorruptionError, match="has no commit record; run again"):
            read(again)


def test_settings_that_the_model_rules_out_are_refused_before_anything_is_written(tmp_path):
    wrong = [
        ({"curvature": {"steps": 90, "keep": 90}}, r"curvature.keep: 90 is more than 86"),
        ({"curvature": {"blocks": "absent"}}, r"matches no trainable parameter"),
        ({"curvature": {"kind": "gauss-newton"}}, r"curvature.kind: gauss-newton needs the loss"),
        ({"curvature": {"memory_mb": 1e-6}}, r"curvature.memory_mb: one sample needs"),
        ({"actions": {"loss": "ber"}}, r"actions.loss: 'ber' is not a loss of this task"),
        ({"gradients": {"rows": 20}}, r"actions.pool: 30 is more than the 20 rows"),
        ({"targets": {"count": 64}}, r"leave none to measure side effects"),
    ]
    for changes, message in wrong:
        with pytest.raises(InputError, match=message):
            run_points(tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_more_seeds_keep_the_jobs_that_are_done(tmp_path):
    first = run_points(tmp_path / "run")
    more = run_points(tmp_path / "run", accept=["actions.seeds"], actions={"seeds": 3})
    kept = {job.id for job in actions.chosen_jobs(first)}
    assert kept < {job.id for job in actions.chosen_jobs(more)}
    assert len(arm_outcomes.main_outcomes(more)) == 18


def test_another_damping_keeps_the_pass_over_the_gradients_where_nothing_is_refined(tmp_path):
    one, other, third = (
        open_session(points_config(tmp_path / str(place), **changes))
        for place, changes in enumerate(
            (
                {"curvature": {"refine": 0}},
                {"curvature": {"refine": 0}, "scores": {"damping": 0.5}},
                {"scores": {"damping": 0.5}},
            )
        )
    )
    assert one.keys["gradients"] == other.keys["gradients"] != third.keys["gradients"]
    assert one.keys["scores"] != other.keys["scores"]


@pytest.mark.slow
def test_dropout_is_the_same_however_often_and_wherever_a_step_is_taken(tmp_path):
    once = run_points(tmp_path / "once", task="tests.engine.test_run:noisy")
    torch.rand(17)
    again = run_points(
        tmp_path / "again", task="tests.engine.test_run:noisy", train={"checkpoint_every": 1}
    )
    assert same_bits(all_scores(once), all_scores(again))


def noisy(settings: dict, seed: int):
    """A task with dropout and batch statistics."""
    from tests.support.blobs_task import Points, task

    made = task(Points(), seed)
    made._model = lambda: torch.nn.Sequential(
        torch.nn.Linear(4, 12), torch.nn.BatchNorm1d(12), torch.nn.Dropout(0.5),
        torch.nn.Tanh(), torch.nn.Linear(12, 2),
    )  # fmt: skip
    return made


@pytest.mark.slow
def test_a_report_that_was_deleted_is_made_again(tmp_path):
    session = run_points(tmp_path / "run")
    session.blobs.delete("report/index.html")
    run_points(tmp_path / "run")
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_verify_lists_all_that_is_damaged(tmp_path):
    session = run_points(tmp_path / "run")
    chunks = [n for n in session.blobs.names("gradients.zarr") if "/c/" in n][:3]
    for chunk in chunks:
        session.blobs.delete(chunk)
    record = session.blobs.names("ledger/actions")[0]
    session.blobs.put(record, b"{}")
    problems = verify(session.blobs).problems
    assert len(problems) == 4
    assert all(any(name in line for line in problems) for name in [*chunks, record])


def test_a_mean_loss_is_refused_in_the_first_step(tmp_path):
    with pytest.raises(InputError, match=r"return one value per sample"):
        run_points(tmp_path / "run", task="tests.engine.test_run:averaging")


def averaging(settings: dict, seed: int):
    """A task whose loss is wrongly a mean."""
    from tests.support.blobs_task import Points, loss, task

    made = task(Points(), seed)
    made.losses = {"mean": lambda model, batch: loss(model, batch).mean()}
    return made


def test_a_bug_in_a_task_leaves_its_traceback_beside_the_run(tmp_path):
    with pytest.raises(
        InputError, match=r"engine/test_run.py:\d+: KeyError: 'y'.*details: .*log/failure-"
    ):
        run_points(tmp_path / "run", task="tests.engine.test_run:buggy")
    notes = list((tmp_path / "run" / "log").iterdir())
    assert "Traceback" in notes[0].read_text()


def buggy(settings: dict, seed: int):
    """A task that fails in evaluation."""
    from tests.support.blobs_task import Points, task

    made = task(Points(), seed)
    whole = made.evaluate
    made.evaluate = lambda model, batch: (
        whole(model, batch) if len(batch["label"]) <= 2 else {"metric": batch["y"]}
    )
    return made


WRONG = {
    "import": ("import nothing_like_it", r"task: .*nothing_like_it"),
    "syntax": ("def task(", r"failed at .*SyntaxError"),
    "none": ("def task(settings, seed): pass", r"returned None; did you forget its return\?"),
    "raises": ("def task(settings, seed): return 1 / 0", r"mine.py:1: ZeroDivisionError"),
    "members": ("def task(settings, seed): return 3", r"returned an object without axis, batch"),
    "loss": ("LOSS = lambda m, b: b['label']", r"task: .* failed at .*KeyError: 'label'"),
    "shape": ("METRIC = lambda m, b: m(b['x'])", r"'metric' has shape \(2, 2\) for two rows"),
    "texts": ("Y = ['a'] * 40", r"task: column 'y' of 'train' "),
    "shared": ("X = 0 * X + 0.5", r"task: 40 of 40 evaluation rows are training rows too \(0 = tr"),
    "width": ("MODEL = lambda: torch.nn.Linear(3, 2)", r"mat1 and mat2 shapes cannot be"),
}
MINE = """
import torch, distinf
LOSS = lambda m, b: torch.nn.functional.cross_entropy(m(b["x"]), b["y"], reduction="none")
X, Y, METRIC, MODEL = torch.randn(40, 4), torch.arange(40) % 2, None, lambda: torch.nn.Linear(4, 2)
"""
TASK = """
def task(settings, seed):
    data = {"train": {"x": X, "y": Y}, "evaluation": {"x": 1 - X, "y": Y}}
    return distinf.TensorTask(MODEL, data, {"loss": LOSS}, metric=METRIC, seed=seed)
"""


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_in_a_users_task_is_one_line_before_anything_is_written(
    name, tmp_path, monkeypatch
):
    line, message = WRONG[name]
    whole = line if "def task" in line else f"{MINE}{line}\n{TASK}"
    (tmp_path / f"mine_{name}.py").write_text(whole.replace("mine.py", f"mine_{name}.py"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        run_points(tmp_path / "run", task=f"mine_{name}:task", actions={"pool": 10})
    assert "\n" not in str(caught.value)
    assert re.search(message.replace("mine.py", f"mine_{name}.py"), str(caught.value))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_evaluation_row_without_a_finite_metric_is_left_out_and_named(tmp_path):
    session = run_points(tmp_path / "run", task="tests.engine.test_run:gapped")
    page = session.blobs.get("report/index.html").decode()
    assert "The metric of 1 of 64 evaluation rows is not finite" in page
    assert all(o.non_target_change_pct is not None for o in arm_outcomes.main_outcomes(session))


def gapped(settings: dict, seed: int):
    """A task with one evaluation row that is not a number."""
    from tests.support.blobs_task import Points, task

    made = task(Points(), seed)
    made._data["evaluation"]["x"][50] = float("nan")
    return made


@pytest.mark.slow
def test_a_kept_optimizer_goes_on_from_the_end_of_training(finished, tmp_path):
    kept = run_points(tmp_path / "kept", actions={"optimizer": "kept"})
    one, two = arm_outcomes.main_outcomes(finished), arm_outcomes.main_outcomes(kept)
    assert [a.metric_by_step[0] for a in one] == [b.metric_by_step[0] for b in two]
    assert [a.metric_by_step[-1] for a in one] != [b.metric_by_step[-1] for b in two]
    model = train.trained_model(kept)
    optimizer = kept.task.optimizer(model.parameters(), 0.1, 0.0)
    train.trained_optimizer(kept, model, optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {12}
