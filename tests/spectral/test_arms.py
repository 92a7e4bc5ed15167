"""Families of arms: crossed, checked, and the same job wherever the work is the same."""

import numpy as np
import pytest
import torch
from rich.table import Table

from distinf.errors import InputError
from distinf.report.spectral import arm_outcomes
from distinf.report.spectral.terminal import summary
from distinf.report.spectral.warnings import warnings
from distinf.spectral import actions, evaluate, pools, scores
from distinf.spectral.action_settings import ActionSettings
from distinf.spectral.arms import ALL_TARGETS, arm_of, families, family_jobs, jobs
from tests.support.runs import POINTS, all_scores, run_points

LOSSES = ("bce", "ber")
SECOND = {"update": ["first-order", "second-order"], "steps": 4, "newton_lr": 0.5}
ALSO = {
    "table": {"variant": ["classic", "ell-relative"],
              "selections": ["helpful"], "targets": 1},
    "updates": {**SECOND, "targets": 1},
    "ascent": {"update": "ascent", "selections": ["harmful"]},
    "orders": {"order": ["random", "rank", "weighted"], "selections": ["helpful"]},
    "several": {"aim": "multi-target", "selections": ["random", "helpful", "group"]},
    "adapters": {"adapter": 2},
    "retaining": {"retain": [0.0, 0.5], "selections": ["helpful"], "targets": 1, "seeds": 1},
    "stopping": {"stop": 0.0, "selections": ["harmful"], "steps": 40, "lr": 0.05},
    "together": {"aim": "multi-target", "update": "second-order", "selections": ["helpful"],
                 "newton_pairs": ["chosen", "all"], "newton_solves": ["fresh", "stored"],
                 "newton_lr": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("arms") / "run"
    actions_ = {**POINTS["actions"], "also": ALSO, "guard": 12}
    varied = {"reduced": {"train.rows": 120, "actions.also": {"table": ALSO["table"]}}}
    return run_points(out, actions=actions_, variations=varied)


def made(**changes):
    return families(ActionSettings(**changes), LOSSES)


def test_a_family_crosses_its_lists_and_inherits_the_rest():
    family = made(lr=0.5, also={"t": {"loss": ["bce", "ber"], "variant": ["classic", "newfluence"],
                                      "selections": ["helpful"], "targets": 1}})[1]  # fmt: skip
    assert family.varied == ("loss", "variant")
    assert {(a.loss, a.variant) for a, _, _ in family.members} == {
        (loss, variant) for loss in LOSSES for variant in ("classic", "newfluence")
    }
    assert all(a.lr == 0.5 and targets == 1 and seeds == 10 for a, targets, seeds in family.members)


def test_what_plays_no_part_in_an_arm_does_not_tell_it_from_another():
    head, pools = made(also={"pools": {"pool": [24, 50], "order": ["random", "rank"]}})
    random = [arm for arm, _, _ in pools.members if arm.selection == "random"]
    assert random == [arm for arm, _, _ in head.members if arm.selection == "random"]
    second = made(update="second-order", lr=0.1)[0].members
    assert second == made(update="second-order", lr=0.9)[0].members
    assert {arm.loss for arm, _, _ in second} == {"bce"}  # random too: its signs are scores'


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ({"t": {"varant": "classic"}}, r"'actions.also.t.varant'; did you mean 'variant'"),
        ({"t": {"variant": "classical"}}, r"actions.also.t.variant: .*'classic'"),
        ({"t": {"loss": "mse"}}, r"actions.also.t.loss: 'mse' is not a loss of this task"),
        ({"t": {"steps": [3, 0]}}, r"actions.also.t: steps: 0 must be at least 1"),
        ({"t": {"selections": ["group"]}}, r"actions.also.t: .*multi-target"),
        ({"t": {"adapter": 4, "update": "second-order"}}, r"adapter.*first-order"),
        ({"t": {"retain": 0.2, "update": "ascent"}}, r"actions.also.t: retain: .*first-order"),
        ({"t": {"non_targets": 3}}, r"unknown key 'actions.also.t.non_targets'"),
    ],
)
def test_a_mistake_in_a_family_is_one_line(also, message):
    with pytest.raises(InputError, match=message) as caught:
        made(also=also)
    assert "\n" not in str(caught.value)


def test_mistakes_are_told_before_anything_is_written(tmp_path):
    wrong = [
        ({"t": {"pool": 500}}, r"actions.also.t.pool: 500 is more than the 240 rows"),
        ({"t": {"variant": "tracin"}}, r"actions.also.t.variant: .*trajectory.checkpoints"),
    ]
    for also, message in wrong:
        with pytest.raises(InputError, match=message):
            run_points(tmp_path / "run", actions={**POINTS["actions"], "also": also})
    with pytest.raises(InputError, match=r"variations.reduced: unknown key 'train.row'"):
        run_points(tmp_path / "run", variations={"reduced": {"train.row": 3}})
    with pytest.raises(InputError, match=r"variations.other: 'runtime.kind' is the same"):
        run_points(tmp_path / "run", variations={"other": {"runtime.kind": "ray"}})
    assert not (tmp_path / "run").exists()


def test_the_same_work_in_two_families_is_one_job(finished):
    outline = finished.outline
    head, table = families(outline.settings.actions, outline.losses)[:2]
    shared = {j.id for j in family_jobs(outline, head)} & {
        j.id for j in family_jobs(outline, table)
    }
    assert len(shared) == POINTS["actions"]["seeds"]  # the headline's own cell of the table
    every = [job.id for job in jobs(outline, 2)]
    assert len(every) == len(set(every))
    assert every[: len(family_jobs(outline, head, 2))] == [
        job.id for job in family_jobs(outline, head, 2)
    ]


def test_pools_are_what_their_selections_say(finished):
    scores_TN = scores.stored_scores(finished, "cross-entropy", "ell-relative")
    by_name = {f.name: f for f in arm_outcomes.run_families(finished)}
    several = arm_outcomes.chosen_jobs(finished, by_name["several"])
    drawn = {arm_of(j).selection: pools.pool_rows(finished, j) for j in several}
    tops = [set(np.argsort(-row)[:30].tolist()) for row in scores_TN]
    assert set(drawn["helpful"].rows.tolist()) == tops[0] | tops[1]
    assert len(drawn["group"].rows) == 60
    joint_N = (scores_TN / np.sqrt((scores_TN**2).mean(1, keepdims=True))).sum(0)
    assert joint_N[drawn["group"].rows].sum() == pytest.approx(np.sort(joint_N)[-60:].sum())
    assert len(drawn["random"].rows) == 240
    orders = arm_outcomes.chosen_jobs(finished, by_name["orders"])
    rows = {arm_of(j).order: pools.job_rows(finished, j).ravel() for j in orders}
    best = np.argsort(-scores_TN[orders[-1].job["target"]])[:30]
    assert rows["rank"].tolist() == best[:20].tolist()
    assert set(rows["weighted"]) < set(best)
    assert rows["weighted"].tolist() != rows["rank"].tolist() != rows["random"].tolist()


def test_second_order_steps_lower_the_loss_from_either_side_and_ascent_raises_it(finished):
    """Eq. 11: for helpful and harmful rows alike the target's loss goes down, to first order."""
    ids = evaluate.chosen_targets(finished).ids
    loss = finished.task.losses["cross-entropy"]
    by_name = {f.name: f for f in arm_outcomes.run_families(finished)}

    def change(job):
        model = actions.trained_model(finished)
        rank = job.job["target"]
        batch = finished.batch("evaluation", ids[[rank]])
        before = float(loss(model, batch).detach())
        step = actions._stepper(finished, job, model)
        rows = pools.job_rows(finished, job)[0]
        step(rows)
        return float(loss(model, batch).detach()) - before

    for job in arm_outcomes.chosen_jobs(finished, by_name["updates"]):
        if arm_of(job).update == "second-order":
            assert change(job) < 0, arm_of(job).selection
    for job in arm_outcomes.chosen_jobs(finished, by_name["ascent"]):
        first = next(
            j for j in arm_outcomes.chosen_jobs(finished, by_name[""])
            if arm_of(j).selection == "harmful" and j.job["target"] == job.job["target"]
        )  # fmt: skip
        assert change(job) < change(first)


def test_the_second_order_step_is_the_damped_inverse_times_the_signed_mean(finished):
    by_name = {f.name: f for f in arm_outcomes.run_families(finished)}
    job = next(
        j for j in arm_outcomes.chosen_jobs(finished, by_name["updates"])
        if arm_of(j).update == "second-order"
    )  # fmt: skip
    pairs, spectrum = actions.stored_pairs(finished), actions.damped_spectrum(finished)
    rows = pools.job_rows(finished, job)[0]
    model = actions.trained_model(finished)
    layout = actions.Layout.of(model)
    start_P = layout.gather(model).double()
    signs_N = np.sign(scores.stored_scores(finished, "cross-entropy", "classic")[0][rows])
    from distinf.numerics.capture import flat_gradients

    grads_NP = flat_gradients(
        model, finished.task.losses["cross-entropy"], finished.batch("train", rows), layout
    ).double()
    mean_P = (grads_NP * torch.from_numpy(signs_N)[:, None]).mean(0)
    vectors_PK = pairs.vectors.double().T
    dense_PP = vectors_PK @ torch.diag(spectrum.values_K) @ vectors_PK.T
    rest_PP = torch.eye(len(start_P)).double() - vectors_PK @ vectors_PK.T
    damped_PP = dense_PP + spectrum.complement * rest_PP
    damped_PP += spectrum.damping * torch.eye(len(start_P)).double()
    expected_P = start_P - 0.5 * torch.linalg.solve(damped_PP, mean_P)
    actions._stepper(finished, job, model)(rows)
    found_P = layout.gather(model).double()
    assert (found_P - expected_P).abs().max() < 1e-4 * (expected_P - start_P).abs().max()


def test_a_second_order_row_takes_the_signs_of_the_targets_it_was_chosen_for(finished):
    """M of Eq. 16; or of all targets, where that is asked for."""
    by_name = {f.name: f for f in arm_outcomes.run_families(finished)}
    jobs_of = {
        arm_of(j).newton_pairs: j for j in arm_outcomes.chosen_jobs(finished, by_name["together"])
    }
    ranked_TN = scores.stored_scores(finished, "cross-entropy", "ell-relative")
    signs_TN = np.sign(scores.stored_scores(finished, "cross-entropy", "classic"))
    chosen_TN = np.zeros(signs_TN.shape, bool)
    for chosen, row in zip(chosen_TN, ranked_TN, strict=True):
        chosen[np.argsort(-row)[:30]] = True
    assert (chosen_TN.sum(0) == 1).sum() > 0  # rows in one pool and not in the other
    assert (
        pools.signs(finished, jobs_of["chosen"]).tolist() == (signs_TN * chosen_TN).sum(0).tolist()
    )
    assert pools.signs(finished, jobs_of["all"]).tolist() == signs_TN.sum(0).tolist()


@pytest.mark.parametrize("solves", ["fresh", "stored"])
def test_a_second_order_step_takes_gradients_anew_or_those_of_the_trained_weights(finished, solves):
    by_name = {f.name: f for f in arm_outcomes.run_families(finished)}
    job = next(
        j for j in arm_outcomes.chosen_jobs(finished, by_name["together"])
        if arm_of(j).newton_solves == solves
    )  # fmt: skip
    loss = finished.task.losses["cross-entropy"]
    model = actions.trained_model(finished)
    layout = actions.Layout.of(model)
    trained_P, step = layout.gather(model), actions._stepper(finished, job, model)
    weights_N = torch.from_numpy(pools.signs(finished, job))
    pairs, spectrum = actions.stored_pairs(finished), actions.damped_spectrum(finished)
    for rows in pools.job_rows(finished, job):
        batch, before_P = finished.batch("train", rows), layout.gather(model)
        at_P = before_P if solves == "fresh" else trained_P
        other = actions.trained_model(finished)
        layout.scatter_(other, at_P)
        mean = (loss(other.eval(), batch) * weights_N[rows]).mean()
        parts = torch.autograd.grad(mean, [p for _, p in other.named_parameters()])
        change_P = actions.damped_inverse(
            torch.cat([g.reshape(-1) for g in parts]), pairs.vectors, spectrum
        )
        step(rows)
        torch.testing.assert_close(layout.gather(model), before_P - 0.5 * change_P)


def test_a_share_of_random_rows_takes_the_place_of_rows_of_the_pool(finished):
    by_name = {f.name: f for f in arm_outcomes.run_families(finished)}
    kept = {arm_of(j).retain: j for j in arm_outcomes.chosen_jobs(finished, by_name["retaining"])}
    pool = set(pools.pool_rows(finished, kept[0.0]).rows.tolist())
    assert set(pools.job_rows(finished, kept[0.0]).ravel().tolist()) <= pool
    rows = pools.job_rows(finished, kept[0.5])
    own, random = rows[:, :5], rows[:, 5:]
    assert np.array_equal(own, pools.job_rows(finished, kept[0.0])[:, :5])
    assert not set(random.ravel().tolist()) <= pool
    assert rows.shape == (2, 10)


def test_a_step_after_which_others_are_worse_than_allowed_is_taken_back(finished):
    by_name = {f.name: f for f in arm_outcomes.run_families(finished)}
    guard = actions.guard_ids(finished)
    others = [*evaluate.chosen_targets(finished).ids, *actions.non_target_ids(finished)]
    assert len(guard) == 12
    assert not set(guard.tolist()) & set(others)
    metric = evaluate.evaluation(finished)[finished.task.metric]
    for job in arm_outcomes.chosen_jobs(finished, by_name["stopping"]):
        path = finished.arrays(job)["metric_by_step"][:, 0]
        (record,) = finished.done([job]).values()
        taken = record["summary"]["steps"]
        assert (path[taken:] == path[taken]).all()
        assert len(path) == arm_of(job).steps + 1
        if taken == 0:
            assert finished.arrays(job)["others"] == pytest.approx(
                metric[actions.non_target_ids(finished)], rel=1e-5
            )
    steps = [
        finished.done([j])[j.id]["summary"]["steps"]
        for j in arm_outcomes.chosen_jobs(finished, by_name["stopping"])
    ]
    assert min(steps) < 40  # one was stopped
    for measured in (0, 62, 64):  # of 64 rows, two of them targets
        with pytest.raises(InputError, match=r"actions.stop: .* none is left to decide the stop"):
            run_points(
                "nowhere", actions={**POINTS["actions"], "stop": 1.0, "non_targets": measured}
            )


def test_outcomes_of_several_targets_are_one_for_each(finished):
    by_name = {f.name: f for f in arm_outcomes.run_families(finished)}
    found = arm_outcomes.outcomes(finished, by_name["several"])
    assert len(found) == 3 * 2 * 2  # selections, seeds, targets
    assert {o.aim for o in found} == {"multi-target"}
    assert {o.target for o in found} == set(evaluate.chosen_targets(finished).ids.tolist())
    job = arm_outcomes.chosen_jobs(finished, by_name["several"])[0]
    assert job.job["target"] == ALL_TARGETS
    assert finished.arrays(job)["metric_by_step"].shape == (3, 2)


def test_a_variation_shares_what_it_does_not_change_and_is_in_the_report(finished):
    reduced = finished.variations["reduced"]
    assert reduced.outline.training_rows == 120
    assert scores.stored_scores(reduced).shape == (2, 120)
    assert reduced.keys["data"] == finished.keys["data"]
    assert reduced.keys["train"] != finished.keys["train"]
    found = finished.blobs.get("report/findings.json").decode()
    assert '"reduced"' in found
    records = finished.ledger("train").committed_ids()
    assert len(records) == 8  # four checkpoints of each


def test_fine_tunings_that_were_stopped_are_counted_at_the_head(finished):
    early = [w for w in warnings(finished) if w.startswith("actions.stop ended")]
    assert len(early) == 1
    assert "harmful" in early[0]


def test_less_than_one_row_to_retain_is_refused():
    with pytest.raises(ValueError, match=r"retain: 0.01 of a step's 24 rows .* less than one row"):
        ActionSettings(retain=0.01)


@pytest.mark.parametrize(("selection", "by"), [("nearest", "conditions"), ("matched", "classes")])
def test_a_choice_by_what_stored_rows_lack_is_refused_before_anything_runs(tmp_path, selection, by):
    with pytest.raises(InputError, match=rf"actions.selections: {selection} goes by {by}"):
        run_points(tmp_path / "run", actions={"selections": ["random", selection]})
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_of_no_seeds_fine_tunes_nothing_and_reports_its_scores(tmp_path):
    session = run_points(tmp_path / "run", actions={"seeds": 0}, targets={"count": 64})
    assert not (tmp_path / "run/jobs").exists()
    page = (tmp_path / "run/report/index.html").read_text()
    assert "This run did not act on its scores" in page
    assert "fine-tuned for" not in page
    assert np.isfinite(all_scores(session)["cross-entropy.classic"]).all()
    assert not [item for item in summary(session) if isinstance(item, Table)]
