"""A finished run's scores held against training again: what is trained, what is done once."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from distinf.cli import main
from distinf.config import resolve
from distinf.engine.evaluating import evaluate
from distinf.engine.evaluation_plan import plan
from distinf.engine.patching import random_sets
from distinf.engine.recipe import Draws
from distinf.engine.run import execute, reopen
from distinf.engine.session import Session
from distinf.engine.trainings import Design, every_unit, kept_rows
from distinf.spectral import retraining
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.solves import solves
from distinf.spectral.train import step_rows, trained_model
from tests.support.partial import points_config, run_until
from tests.support.runs import copied, run_points, silent

ONE_OUT = "one row left out, Spearman"
SMALL = Design(subsets=10, repeats=2, shares=3, ones=4, fraction=0.02)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("evaluated") / "run")


def losses(session, kept, seed=0, own_start=False):
    return retraining.losses(session, "", np.asarray(kept), Draws(seed, own_start), lambda _: None)


def words_run(out, settings):
    """A finished run of the Gram recipe -> its folder."""
    execute(resolve({
        "task": "tests.support.words_task:task", "recipe": "gram", "out": str(out),
        "runtime": {"kind": "local"}, "settings": settings,
        "train": {"epochs": 3, "lr": 0.05, "batch_size": 10}, "actions": {"configurations": []},
    }), silent)  # fmt: skip
    return str(out)


def test_training_again_on_all_rows_gives_the_runs_own_losses_to_the_last_bit(finished):
    rows, ids = finished.outline.training_rows, chosen_targets(finished).ids
    model, batch = trained_model(finished), finished.batch("evaluation", ids)
    found = losses(finished, range(rows))
    for name, loss in finished.task.losses.items():
        with torch.no_grad():
            assert np.array_equal(found[name], loss(model, batch).double().numpy())


@pytest.mark.parametrize("left_out", [3, 120])
def test_rows_that_are_left_out_have_no_part_in_it(finished, tmp_path, left_out):
    """Whatever they hold: the same bits with other values in them."""
    session = copied(finished, tmp_path / "run")
    rows = session.outline.training_rows
    out = np.arange(1, 1 + left_out)  # the first row is among those that every process looks at
    kept = np.setdiff1d(np.arange(rows), out)
    before = losses(session, kept)
    whole = losses(session, range(rows))
    session.task._data["train"]["x"][out] += 7.0
    after, otherwise = losses(session, kept), losses(session, range(rows))
    for name in before:
        assert np.array_equal(before[name], after[name])
        assert not np.array_equal(whole[name], otherwise[name])


def test_another_seed_is_another_training_of_the_same_rows(finished):
    rows = range(finished.outline.training_rows)
    one, two = losses(finished, rows, 1), losses(finished, rows, 2)
    again = losses(finished, rows, 1)
    for name in one:
        assert np.array_equal(one[name], again[name])
        assert not np.array_equal(one[name], two[name])


def test_a_start_of_its_own_is_that_of_a_task_of_another_seed(finished):
    """And what is trained for no step is that start."""
    rows = range(finished.outline.training_rows)
    one, two = losses(finished, rows, 1, True), losses(finished, rows, 1)
    again = losses(finished, rows, 1, True)
    for name in one:
        assert np.array_equal(one[name], again[name])
        assert not np.array_equal(one[name], two[name])
    first, second = (retraining._other_start(finished, seed).state_dict() for seed in (1, 2))
    run = finished.task.model().state_dict()
    assert not any(torch.equal(first[k], second[k]) or torch.equal(first[k], run[k]) for k in run)


@pytest.mark.slow
def test_independent_halves_have_a_ceiling_of_their_own(finished):
    found = evaluate(finished.blobs.root, Design(subsets=10, shares=0, independent=True), silent)
    cell = next(iter(retraining.foretold(finished)))
    units = list(every_unit(finished, cell, Design(subsets=10, shares=0, independent=True)))
    assert len({u.job["seed"] for u in units if "half" in u.job}) == 20 == found.trainings
    assert all(row["ceiling"] < 1 for row in found.rows if "ceiling" in row)


def test_products_and_cosines_are_of_the_gradients(finished):
    cell = next(iter(retraining.foretold(finished)))
    model, task = trained_model(finished), finished.task
    ids = chosen_targets(finished).ids

    def gradient(split, row):
        model.zero_grad()
        loss = task.losses["cross-entropy"](model, task.batch(split, np.array([row])))
        loss.sum().backward()
        return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double()

    for row in (0, 100, 239):
        train, query = gradient("train", row), gradient("evaluation", ids[1])
        dot, cosine = (cell.scores[f"cross-entropy/{k}"][1][1, row] for k in ("dot", "cosine"))
        assert dot == pytest.approx(float(train @ query), rel=1e-4)
        lengths = float(train.norm() * query.norm())
        assert cosine == pytest.approx(float(train @ query) / lengths, rel=1e-4)


def test_measures_are_those_of_the_trainings(finished):
    """The first line's LDS, from the ledger's losses by scipy."""
    found = evaluate(finished.blobs.root, SMALL, silent)
    row = next(r for r in found.rows if r["measure"].startswith("LDS"))
    cell = next(iter(retraining.foretold(finished)))
    loss, scores_QN = cell.scores[row["ranking"]]
    every = {u.id: u for u in every_unit(finished, cell, SMALL) if "half" in u.job}
    assert len(every) == 20
    trained: dict[int, list[np.ndarray]] = {}
    for unit in every.values():
        stored = finished.arrays(unit)[loss]
        kept = np.flatnonzero(kept_rows(finished.seed, unit.job))
        assert np.array_equal(stored, losses(finished, kept, unit.job["seed"])[loss])
        trained.setdefault(unit.job["half"], []).append(stored)
    mean_MQ = np.stack([np.mean(trained[k], axis=0) for k in range(10)])
    kept_MN = np.stack([kept_rows(finished.seed, u.job) for u in every.values()
                        if u.job["seed"] == 0])  # fmt: skip
    assert (kept_MN.sum(1) == kept_MN.shape[1] - kept_MN.shape[1] // 2).all()
    by_query = [
        spearmanr(kept_MN @ scores_QN[q], -mean_MQ[:, q]).statistic for q in range(len(scores_QN))
    ]
    assert row["value"] == pytest.approx(np.mean(by_query), abs=1e-12)
    assert row["of_ceiling"] == pytest.approx(row["value"] / row["ceiling"])
    assert row["ceiling_by"] == "by how far trainings under other seeds agree"
    settings = finished.settings.train
    rows = sum(kept_rows(finished.seed, unit.job).mean() for unit in every.values())
    taken = settings.steps * settings.batch_size * rows
    assert row["gradients_trained"] == pytest.approx(taken)


def test_scores_cost_the_gradients_of_their_stages(finished):
    """Written out: a pass over the rows, and products of three gradients a row."""
    (cell,) = retraining.foretold(finished)
    settings, rows = finished.settings.curvature, finished.outline.training_rows
    products = settings.steps + settings.keep + settings.probes
    products += sum(record["summary"]["steps"] for record in solves(finished).values())
    curved = 3 * products * min(settings.samples, rows)
    assert cell.costs["cross-entropy/dot"] == cell.costs["gradient norm"] == rows
    assert cell.costs["own loss"] == pytest.approx(rows / 3)
    looked = min(settings.samples, rows) / 3  # which rows have a finite loss
    assert cell.costs["cross-entropy/classic"] == pytest.approx(rows + curved + looked)


def test_rows_left_out_of_the_runs_own_order_have_a_ceiling_of_1(finished):
    design = Design(subsets=0, shares=10, ones=4, fraction=0.02, patch=0)
    rows = evaluate(finished.blobs.root, design, silent).rows
    found = [row for row in rows if row["measure"] in ("LDS, 2 % left out", ONE_OUT)]
    assert len(found) == 2 * len(next(iter(retraining.foretold(finished))).scores)
    for row in found:
        assert (row["ceiling"], row["of_ceiling"]) == (1.0, row["value"])
        assert row["ceiling_by"].startswith("1, since seed and order are held")


@pytest.mark.slow
def test_there_is_no_ceiling_where_training_again_ends_elsewhere(finished, tmp_path, monkeypatch):
    session = copied(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/ledger/retrain", ignore_errors=True)
    steady, draws = retraining._target_losses, np.random.default_rng(0)

    def unsteady(*given):
        return {k: v + 1e-9 * draws.random() for k, v in steady(*given).items()}

    monkeypatch.setattr(retraining, "_target_losses", unsteady)
    design = Design(subsets=0, shares=10, ones=4, fraction=0.02, patch=0)
    rows = evaluate(session.blobs.root, design, silent).rows
    found = [row for row in rows if row["measure"] in ("LDS, 2 % left out", ONE_OUT)]
    assert found
    for row in found:
        assert (row["ceiling"], row["of_ceiling"]) == (None, None)
        assert row["ceiling_by"] == "unknown, since training again on all rows ends at other losses"


def test_the_own_loss_is_a_ranking_beside_the_scores(finished):
    """Minus each row's loss, for every target: high losses are the least helpful."""
    (cell,) = retraining.foretold(finished)
    model, rows = trained_model(finished), finished.outline.training_rows
    loss, scores_QN = cell.scores["own loss"]
    with torch.no_grad():
        values = finished.task.losses[loss](model, finished.batch("train", np.arange(rows)))
    assert np.allclose(scores_QN, -values.numpy(), rtol=1e-5)
    assert {"gradient norm", "self influence"} < {*cell.scores}


@pytest.mark.parametrize("recipe", ["spectral", "gram"])
def test_a_step_on_the_top_rows_is_one_of_plain_gradient_descent(finished, tmp_path, recipe):
    """The mean of what it did, from torch's own backward pass over the highest scored rows."""
    root = finished.blobs.root
    if recipe == "gram":
        root = words_run(tmp_path / "run", {"seeds": 1})
    design = Design(subsets=0, shares=0, patch=5)
    found = evaluate(root, design, silent)
    assert found.trainings == 0
    session = reopen(root)
    evaluates = session.recipe.evaluates
    cell = next(iter(evaluates.foretold(session)))
    assert {row["ranking"] for row in found.rows if "one step" in row["measure"]} == {*cell.scores}
    row = next(row for row in found.rows if "one step" in row["measure"])
    loss, scores_QN = cell.scores[row["ranking"]]
    random = random_sets(session.seed, cell, 5)["patch"]
    assert len({tuple(rows) for rows in random}) == 10

    trained = evaluates.trained(session, cell.cell)
    first = next(iter(trained.losses.values()))

    def after(rows, query):
        model = copy.deepcopy(trained.model)
        first(model, trained.rows(np.array(rows))).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= session.settings.train.lr * parameter.grad
            return float(trained.losses[loss](model, trained.queries(np.array([query])))[0])

    lower = [
        np.mean([after(rows, q) for rows in random]) - after(np.argsort(-scores_N)[:5], q)
        for q, scores_N in enumerate(scores_QN)
    ]
    assert row["value"] == pytest.approx(np.mean(lower), rel=2e-3)
    half = 1.96 * np.std(lower, ddof=1) / np.sqrt(len(lower))
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=2e-3)


@pytest.mark.slow
def test_the_plan_counts_what_is_left_and_takes_the_runs_own_time(finished, tmp_path, capsys):
    session = copied(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/ledger/retrain", ignore_errors=True)
    root, rows = session.blobs.root, session.outline.training_rows
    design = Design(subsets=10, repeats=2, shares=3, fraction=0.05, patch=5)
    found = plan(root, design)
    share = (rows - int(0.05 * rows)) / rows
    assert (found.trainings, found.done) == (24, 0)
    assert found.wholes == pytest.approx(20 * (rows - rows // 2) / rows + 4 * share)
    noted = [json.loads(p.read_text()) for p in (tmp_path / "run/timing").glob("train-*.json")]
    assert found.whole_s == pytest.approx(sum(note["busy_s"] for note in noted))
    assert found.seconds == pytest.approx(found.wholes * found.whole_s)
    cell = next(iter(retraining.foretold(session)))
    tops = {str(np.sort(np.argsort(-s, 1)[:, :5], 1).tolist()) for _, s in cell.scores.values()}
    assert found.steps == 10 + len(tops) * len(cell.queries)  # rankings of the same rows share
    evaluate(root, Design(subsets=10, repeats=1, shares=0, patch=0), silent)
    found = plan(root, design)
    assert (found.trainings, found.done) == (24, 10)
    evaluate(root, design, silent)
    found = plan(root, design)
    assert (found.done, found.wholes, found.seconds, found.steps) == (24, 0, 0, 0)
    before = len(list((tmp_path / "run/ledger/retrain").iterdir()))
    assert main(["evaluate", root, "--plan", "--subsets", "40"]) == 0
    told = capsys.readouterr().out
    assert "93 trainings, 20 of them done" in told
    assert "the run's own training took" in told
    assert len(list((tmp_path / "run/ledger/retrain").iterdir())) == before


def test_nothing_is_trained_twice_and_verify_finds_all_of_it(finished):
    root = Path(finished.blobs.root)
    evaluate(str(root), SMALL, silent)
    before = {p.name: p.stat().st_mtime_ns for p in root.glob("ledger/retrain/*")}
    assert before
    more = Design(subsets=11, repeats=2, shares=3, ones=4, fraction=0.02)
    evaluate(str(root), more, silent)
    after = {p.name: p.stat().st_mtime_ns for p in root.glob("ledger/retrain/*")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 2
    assert main(["verify", str(root)]) == 0
    assert run_points(root).keys == finished.keys  # resumed: nothing of it is swept
    assert {p.name for p in root.glob("ledger/retrain/*")} == set(after)
    assert main(["verify", str(root)]) == 0


def test_an_evaluation_that_was_stopped_ends_in_the_same_table(finished, tmp_path, monkeypatch):
    session = copied(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/ledger/retrain", ignore_errors=True)
    commit, left = Session.commit, iter(range(7))

    def stopped(self, unit, *given, **more):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return commit(self, unit, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluate(session.blobs.root, SMALL, silent)
    assert len(list((tmp_path / "run/ledger/retrain").iterdir())) == 7
    one = evaluate(session.blobs.root, SMALL, silent)
    two = evaluate(finished.blobs.root, SMALL, silent)
    assert repr(one.rows) == repr(two.rows)


def test_the_command_prints_the_table_and_names_its_files(finished, capsys):
    root = finished.blobs.root
    assert main(["evaluate", root, "--subsets", "10", "--shares", "0"]) == 0
    told = capsys.readouterr().out
    assert "LDS, half left out" in told
    assert "20 trainings" in told
    folder = Path(told.strip().rsplit(" ", 1)[-1])
    stored = json.loads((folder / "measures.json").read_text())
    assert stored["design"]["subsets"] == 10
    assert stored["measures"]
    assert (folder / "measures.csv").exists()


def test_the_runs_page_has_a_sentence_and_the_tables_of_it(finished):
    root = Path(finished.blobs.root)
    evaluate(str(root), SMALL, silent)
    page = (root / "report/index.html").read_text()
    stored = json.loads((root / "report/worth.json").read_text())
    best = max(r["value"] for r in stored if r["measure"] == "LDS, half left out")
    assert f"Held against training again: LDS {best:.2f} of a possible" in page
    assert "What the scores are worth" in page
    assert 'href="worth.csv"' in page
    assert main(["report", str(root)]) == 0  # made anew it is the same
    assert (root / "report/index.html").read_text() == page
    assert main(["verify", str(root)]) == 0


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--subsets", "5"], "--subsets 5: fewer than 10 give no interval"),
        (["--repeats", "0"], "--repeats 0: must be 1 or more"),
        (["--fraction", "0.6"], "--fraction 0.6: must lie between 0 and 0.5"),
        (["--subsets", "0", "--shares", "0", "--patch", "0"], "nothing to train"),
        (["--patch", "-1"], "--patch -1: must be 0 or more"),
        (["--repeats", "100000"], "evaluate: 3,000,010 trainings; at most 1,000,000"),
    ],
)
def test_a_design_that_measures_nothing_is_one_line(finished, capsys, given, line):
    assert main(["evaluate", finished.blobs.root, *given]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert "Traceback" not in told


def test_a_run_that_is_not_finished_is_refused(tmp_path, capsys):
    run_until("train", points_config(tmp_path / "run"))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "stage 'evaluate' is not done; finish the run first" in capsys.readouterr().err


def test_a_run_without_training_is_refused(tmp_path, capsys):
    run_points(tmp_path / "run", train={"steps": 0})
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert "train.steps is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_shows_no_evaluation_of_scores_that_the_run_no_longer_has(finished, tmp_path):
    session = copied(finished, tmp_path / "run")
    root, said = Path(session.blobs.root), "Held against training again: LDS"
    evaluate(str(root), SMALL, silent)
    assert said in (root / "report/index.html").read_text()
    run_points(root, ["scores.damping"], scores={"damping": 5.0})
    assert said not in (root / "report/index.html").read_text()
    assert not (root / "report/worth.json").exists()
    evaluate(str(root), SMALL, silent)
    assert said in (root / "report/index.html").read_text()
    run_points(root, ["scores.damping"])  # and what was measured of the first is there again
    assert said in (root / "report/index.html").read_text()
    assert main(["verify", str(root)]) == 0


@pytest.mark.slow
def test_rows_left_out_of_small_shards_leave_batch_statistics_to_train_with(tmp_path):
    """A shard of two rows that loses one is a batch of one, of which there is no variance."""
    session = run_points(
        tmp_path / "run",
        task="tests.support.blobs_task:normed",
        train={"batch_size": 8, "shards": 4, "steps": 60},
    )
    rows = session.outline.training_rows
    ran = [np.split(step_rows(session, step), 4) for step in range(60)]
    for out in ([5], [5, 9, 70, 71]):
        kept = np.setdiff1d(np.arange(rows), out)
        pieces = list(retraining._batches(session, kept, 0, 60, True))
        for shards, left in zip(ran, pieces, strict=True):
            assert min(map(len, left)) > 1
            assert np.concatenate(left).tolist() == [r for r in np.concatenate(shards) if r in kept]
            whole = [shard.tolist() for shard in shards if not set(shard) & set(out)]
            joined = sum(len(piece) > 2 for piece in left)
            assert sum(piece.tolist() in whole for piece in left) >= len(whole) - joined
        assert all(np.isfinite(values).all() for values in losses(session, kept).values())


@pytest.mark.slow
def test_a_query_without_a_finite_loss_takes_no_measure_from_the_others(tmp_path):
    """And a training row whose own loss is infinite, none from that ranking."""
    root = words_run(tmp_path / "run", {"dark": 3, "seeds": 1})
    design = Design(subsets=10, repeats=1, shares=10, ones=6, fraction=0.05)
    rows = evaluate(root, design, silent).rows
    assert len({row["measure"] for row in rows}) == 7
    shares = [row for row in rows if row["measure"] == "LDS, 5 % left out"]
    assert {row["ceiling"] for row in shares} == {None}  # fit() goes through another order
    assert all(row["ceiling_by"].startswith("unknown, since rows that") for row in shares)
    costs = {row["ranking"]: row["gradients"] for row in shares}
    assert costs["tracin/all"] == pytest.approx(3 * costs["own loss"])
    assert all(np.isfinite(row["value"]) for row in rows), rows


def test_a_task_that_cannot_be_trained_otherwise_is_refused_before_any_training(tmp_path, capsys):
    root = words_run(tmp_path / "run", {"seeds": 1})
    for given, line in (
        (["--fraction", "0.05"], "take --repeats 1, without a ceiling\n"),
        (["--fraction", "0.05", "--repeats", "1", "--independent"], "leave out --independent\n"),
    ):
        assert main(["evaluate", root, *given]) == 2
        assert capsys.readouterr().err.endswith(line)
    assert not (tmp_path / "run/ledger/retrain").exists()


@pytest.mark.slow
def test_starts_of_their_own_from_a_checkpoint_are_refused_before_any_training(
    finished, tmp_path, capsys
):
    run_points(tmp_path / "run", train={"checkpoint": f"{finished.blobs.root}/model.safetensors"})
    assert main(["evaluate", str(tmp_path / "run"), "--independent"]) == 2
    assert "leave out --independent" in capsys.readouterr().err
    assert not (tmp_path / "run/ledger/retrain").exists()
