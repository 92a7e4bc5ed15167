"""The stage baselines and what stands beside influence, against definitions written out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from distinf.engine.session import draw
from distinf.gram import baselines, ranking, train
from distinf.gram.configurations import all_scores, headline
from distinf.gram.session import QUERY, TRAIN
from distinf.numerics import text_baselines
from distinf.numerics.label_noise import normal_scores
from distinf.runtime import RuntimeSettings, open_runtime
from tests.gram.test_gram_route import CHAIN, dense, scored, session_of
from tests.support import words_task


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scored(session_of(tmp_path_factory.mktemp("gram") / "run"))


def embedded(task, split):
    """The mean token embedding of each row by itself."""
    table = task.model().embedding.weight.detach()
    ids, offsets = task.words(split)
    return torch.stack([table[ids[a:b]].mean(0) for a, b in pairwise(offsets)]).double()


def test_baselines_of_texts_are_those_of_embeddings_before_training(run):
    for name, cell in run.outline.cells.items():
        task, found = run.task(name), baselines.columns(run, cell)
        train_ND, query_QD = embedded(task, TRAIN), embedded(task, QUERY)
        labels_N, asked_Q = (torch.from_numpy(task.labels(split)) for split in (TRAIN, QUERY))
        alone = text_baselines.regression_losses(query_QD, asked_Q, train_ND, labels_N, 2)
        apart = text_baselines.neighbours_apart(train_ND, labels_N)
        folds = draw(0, f"folds {name}", 60, None) % 5
        assert np.bincount(folds).tolist() == [12] * 5
        out = torch.from_numpy(folds == 3)
        fit = train_ND[~out], labels_N[~out]
        judged = text_baselines.regression_losses(*fit, train_ND[out], labels_N[out], 2)
        both = torch.cat([fit[0], query_QD]), torch.cat([fit[1], asked_Q])
        trusted = text_baselines.regression_losses(*both, train_ND[out], labels_N[out], 2)
        near = {"rtol": 1e-3, "atol": 1e-4}  # the model's embeddings are float32 sums
        np.testing.assert_allclose(found["embedding_loss"][out], judged, **near)
        np.testing.assert_allclose(found["embedding_loss_trusted_too"][out], trusted, **near)
        np.testing.assert_allclose(found["embedding_loss_trusted_only"], alone, **near)
        np.testing.assert_allclose(found["embedding_neighbours"], apart, atol=0.05)
        similar = text_baselines.bm25(task.words(TRAIN), task.words(QUERY), 30)
        same = labels_N.numpy() == task.labels(QUERY)[:, None]
        np.testing.assert_allclose(-found["bm25"], np.where(same, similar, -similar).mean(0))


def test_self_influence_is_that_of_the_dense_inverse(run):
    for name, cell in run.outline.cells.items():
        train_of, _ = dense(run, name)
        grads_NP = torch.cat([train_of[block.name] for block in cell.blocks.dense], 1)
        damping = float(grads_NP.square().sum(1).mean()) / 10
        fisher = grads_NP.T @ grads_NP / len(grads_NP) + damping * torch.eye(grads_NP.shape[1])
        wanted = (grads_NP * torch.linalg.solve(fisher, grads_NP.T).T).sum(1)
        found = baselines.columns(run, cell)["self_influence"]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.slow
def test_narrow_blocks_need_no_stored_products(run, tmp_path):
    few = scored(session_of(tmp_path / "run", scores={"estimators": ["tracin", "fisher"]}))
    for name, cell in few.outline.cells.items():
        assert all(b.width <= 60 for b in cell.blocks.dense)
        found = baselines.columns(few, cell)["self_influence"]
        stored = baselines.columns(run, run.cell(name))["self_influence"]
        np.testing.assert_allclose(found, stored, rtol=1e-4)


def test_without_products_there_is_no_self_influence(run, monkeypatch):
    cell = run.cell("words-0")
    settings = replace(run.settings, scores=replace(run.settings.scores, estimators=("tracin",)))
    monkeypatch.setattr(baselines, "MOST_ROWS", 59)
    assert [u.job["of"] for u in baselines.cell_units(settings, cell)] == ["texts"]
    assert [u.job["of"] for u in baselines.cell_units(run.settings, cell)] == ["texts", "self"]


@pytest.mark.slow
def test_a_row_without_a_gradient_has_no_self_influence(tmp_path):
    settings = {"seeds": 1, "poison": 3}
    session = scored(session_of(tmp_path / "run", settings=settings))
    found = baselines.columns(session, session.cell("words-0"))
    assert np.flatnonzero(np.isnan(found["self_influence"])).tolist() == [3]
    assert all(np.isfinite(found[name]).all() for name in baselines.OF_TEXTS)


class Wordless(words_task.Plain):
    words = None  # type: ignore[assignment]


def wordless(settings: words_task.WordsSettings, seed: int) -> Wordless:
    return Wordless(settings, seed)


@pytest.mark.slow
def test_rows_beyond_texts_have_what_their_gradients_give(tmp_path):
    task = f"{__name__}:wordless"
    session = scored(session_of(tmp_path / "run", task=task, settings={"seeds": 1}))
    (cell,) = session.outline.cells.values()
    assert list(ranking.own_columns(session, cell)) == [
        "own_loss", "gradient_norm", "self_influence",
    ]  # fmt: skip


@pytest.mark.slow
def test_losses_in_training_are_their_mean_over_epochs(tmp_path, monkeypatch):
    losses = np.arange(180.0).reshape(3, 60)
    whole = words_task.Cell.fit
    monkeypatch.setattr(
        words_task.Cell, "fit", lambda *given: replace(whole(*given), row_losses=losses)
    )
    session = session_of(tmp_path / "run", settings={"seeds": 1})
    for stage in CHAIN:
        stage.run(session, open_runtime(RuntimeSettings(kind="local")))
    found = ranking.own_columns(session, session.cell("words-0"))["loss_over_epochs"]
    assert found.tolist() == (60.0 + np.arange(60)).tolist()
    with pytest.raises(train.InputError, match=r"row_losses are \(2,\).*\[epochs, 60\]"):
        train._checked_row_losses([1.0, 2.0], 60)


def normal(values):
    return normal_scores(torch.as_tensor(values)).numpy()


def test_the_combination_is_weighted_by_what_the_queries_say(run):
    for name, cell in run.outline.cells.items():
        task, own = run.task(name), ranking.own_columns(run, cell)
        model_N = normal(all_scores(run, cell)[headline(run, cell)]) + normal(-own["own_loss"])
        labels_Q = torch.from_numpy(task.labels(QUERY))
        fit = embedded(task, TRAIN), torch.from_numpy(task.labels(TRAIN))
        said = text_baselines.regression_logits(*fit, embedded(task, QUERY), 2).argmax(1)
        with torch.no_grad():
            model = train.trained_model(run, name)
            right = task.evaluate(model, task.batch(QUERY, np.arange(12)))["correct"].sum()
        most = int(labels_Q.bincount().max())
        odds = [
            max(0.0, np.log((k + 0.5) / (12.5 - k)) - np.log((most + 0.5) / (12.5 - most)))
            for k in (int(right), int((said == labels_Q).sum()))
        ]
        assert baselines.weights(run, cell) == pytest.approx(odds)
        regression_N = normal(-own["embedding_loss_trusted_too"])
        wanted = model_N / 2
        if sum(odds):
            wanted = (odds[0] * model_N / 2 + odds[1] * regression_N) / sum(odds)
        np.testing.assert_allclose(ranking.combined(run, cell), wanted)


@pytest.mark.parametrize("weights", [None, (0.0, 0.0), (1.0, 3.0)])
def test_a_regression_that_knows_nothing_has_no_say(run, monkeypatch, weights):
    cell = run.cell("words-0")
    own = ranking.own_columns(run, cell)
    model_N = normal(all_scores(run, cell)[headline(run, cell)]) + normal(-own["own_loss"])
    monkeypatch.setattr(baselines, "weights", lambda *_: weights)
    wanted = model_N / 2
    if weights and sum(weights):
        wanted = wanted / 4 + 3 * normal(-own["embedding_loss_trusted_too"]) / 4
    np.testing.assert_allclose(ranking.combined(run, cell), wanted)


def test_ranked_rows_have_every_baseline_after_what_the_task_says(run):
    row = ranking.cell_ranking(run, run.cell("words-0"))[0]
    own = ranking.own_columns(run, run.cell("words-0"))
    assert list(row)[-7:] == [*baselines.OF_TEXTS, "self_influence", "combined"]
    assert row["bm25"] == own["bm25"][row["row"] - 1000]
