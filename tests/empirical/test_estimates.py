"""What estimators say of a measured matrix, against dense float64 algebra on a tiny net."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.nn.functional import cross_entropy

from distinf import ekfac, influence, per_sample_gradients, sampled_labels
from distinf.cli import main
from distinf.config import resolve
from distinf.empirical.base import based_model
from distinf.empirical.estimates import estimated, units
from distinf.empirical.matrix import measured
from distinf.empirical.settings import EstimateSettings
from distinf.engine.run import execute
from distinf.numerics.pairwise import rank_correlation
from distinf.numerics.text_baselines import bm25
from distinf.tasks.tensor_task import TensorTask
from tests.support.runs import silent

ROWS, LAST = 14, r"^2\."  # 6 of matrix a, 8 of b
EVERY = ("random", "loss", "length", "bm25", "embeddings", "tracin", "cosine", "datainf",
         "fisher", "fisher-joint", "ekfac", "exact", "first-step")  # fmt: skip


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def loss(model, batch):
    return cross_entropy(model(batch["x"]), batch["label"], reduction="none")


class Both(TensorTask):
    def relations(self, split):
        return {
            "sample": [*range(6), *range(8)],
            "matrix": ["a"] * 6 + ["b"] * 8,
            "group": ["g"] * ROWS,
        }

    def embeddings(self, model, batch):
        return model[:2](batch["x"])

    def words(self, split):
        lengths = 2 + np.arange(ROWS) % 3
        return np.arange(lengths.sum()) % 5, np.cumsum([0, *lengths])


def task(settings: Nothing, seed: int) -> TensorTask:
    x = torch.randn(2, ROWS, 4, generator=torch.Generator().manual_seed(3))
    train, evaluation = ({"x": each, "label": torch.arange(ROWS) % 3} for each in x)
    return Both(
        network, {"train": train, "evaluation": evaluation}, {"ce": loss}, seed=seed,
        probabilities=lambda model, batch: model(batch["x"]).softmax(1),
        labels=train["label"],
    )  # fmt: skip


def bare(settings: Nothing, seed: int) -> TensorTask:
    data = {"ids": torch.arange(6) % 3, "label": torch.arange(6) % 3}

    def of_tokens(model, batch):
        return cross_entropy(model(batch["ids"]), batch["label"], reduction="none")

    return TensorTask(
        lambda: nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3)),
        {"train": data, "evaluation": data}, {"ce": of_tokens}, seed=seed, shared_rows=True,
    )  # fmt: skip


def raw(out, name="task", tune=None, **estimates):
    return {
        "task": f"{__name__}:{name}", "recipe": "empirical", "out": str(out),
        "runtime": {"kind": "local"}, "tune": {"lr": 0.01, "optimizer": "adamw"} | (tune or {}),
        "estimates": {"estimators": [*EVERY], "spaces": {"all": "all", "last": LAST}} | estimates,
        "variations": {"left out": {"tune.leave_one_out": True}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return execute(resolve(raw(tmp_path_factory.mktemp("estimates") / "run")), silent)


def dense(run, rows, pattern="", split="train"):
    """fp64 gradients [n, P] of the rows' losses by the last layer's, or all parameters."""
    model = based_model(run).double()
    named = [p for name, p in model.named_parameters() if name.startswith(pattern)]
    batch = run.task.batch(split, rows)
    losses = loss(model, batch | {"x": batch["x"].double()})
    found = [torch.autograd.grad(each, named, retain_graph=True) for each in losses]
    return torch.stack([torch.cat([g.flatten() for g in each]) for each in found])


MATRICES = {"a": np.arange(6), "b": np.arange(6, ROWS)}


@pytest.mark.parametrize("rows", MATRICES.values(), ids=[*MATRICES])
@pytest.mark.parametrize(("space", "pattern"), [("all", ""), ("last", "2.")])
def test_products_and_solves_are_those_of_dense_gradients_of_the_matrix_s_own_rows(
    run, rows, space, pattern
):
    found = estimated(run)
    grads, asked = (dense(run, rows, pattern, split) for split in ("train", "evaluation"))
    of = np.ix_(rows, rows)
    np.testing.assert_allclose(found[f"tracin@{space}"][of], grads @ asked.T, atol=1e-6)
    units = [each / each.norm(dim=1, keepdim=True) for each in (grads, asked)]
    np.testing.assert_allclose(found[f"cosine@{space}"][of], units[0] @ units[1].T, atol=1e-5)
    fisher, size = grads.T @ grads / len(rows), grads.shape[1]
    damped = fisher + 0.1 * fisher.trace() * torch.eye(size)
    wanted = grads @ torch.linalg.solve(damped, asked.T)
    np.testing.assert_allclose(found[f"fisher-joint@{space}"][of], wanted, atol=1e-4)
    for name in ("tracin", "datainf", "fisher", "ekfac"):
        assert np.isnan(found[f"{name}@{space}"][np.ix_(MATRICES["a"], MATRICES["b"])]).all()


def test_datainf_is_the_mean_of_damped_inverses_of_each_parameter_added_up(run):
    rows, wanted = MATRICES["b"], torch.zeros(8, 8, dtype=torch.float64)
    for name in ("2.weight", "2.bias"):
        grads = dense(run, rows, name)
        size = grads.shape[1]
        damping = grads.square().mean() / 10
        inverse = sum(
            torch.linalg.inv(damping * torch.eye(size) + torch.outer(g, g)) for g in grads
        ) / len(rows)
        wanted += grads @ inverse @ dense(run, rows, name, "evaluation").T
    found = estimated(run)["datainf@last"][np.ix_(rows, rows)]
    np.testing.assert_allclose(found, wanted, rtol=1e-3)


def test_the_exact_solve_is_by_the_mean_hessian_where_there_is_one(run):
    model, rows = based_model(run).double(), MATRICES["b"]
    batch = run.task.batch("train", rows)
    inner = model[:2](batch["x"].double()).detach()

    def mean(flat):
        logits = inner @ flat[:15].view(3, 5).T + flat[15:]
        return cross_entropy(logits, batch["label"])

    flat = torch.cat([p.detach().flatten() for p in model[2].parameters()])
    hessian = torch.autograd.functional.hessian(mean, flat)
    damped = hessian + 0.01 * torch.linalg.eigvalsh(hessian)[-1] * torch.eye(18)
    grads = dense(run, rows, "2.")
    asked = dense(run, rows, "2.", "evaluation")
    wanted = (grads @ torch.linalg.solve(damped, asked.T)).numpy()
    found = estimated(run)["exact@last"][np.ix_(rows, rows)]
    np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
    assert np.isnan(estimated(run)["exact@all"]).all()  # not positive definite


def test_ekfac_is_that_of_labels_drawn_for_the_rows_numbers(run):
    model, rows = based_model(run), MATRICES["b"]
    batch = run.task.batch("train", rows) | {"row": torch.from_numpy(rows)}

    def drawn(model, batch):
        logs = model(batch["x"]).log_softmax(1)
        return cross_entropy(logs, sampled_labels(logs, batch["row"], run.seed), reduction="none")

    factors = ekfac(model, drawn, [batch], LAST)
    grads, asked = (
        per_sample_gradients(model, loss, run.task.batch(split, rows), LAST)
        for split in ("train", "evaluation")
    )
    wanted = sum(influence(grads, asked, "ekfac", curvature=factors).values()).T
    found = estimated(run)["ekfac@last"][np.ix_(rows, rows)]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_first_step_is_adamw_s_whose_entries_are_all_as_large(run):
    rows = MATRICES["b"]
    grads, asked = (dense(run, rows, split=split) for split in ("train", "evaluation"))
    found = estimated(run)["first-step"][np.ix_(rows, rows)]
    np.testing.assert_allclose(found, 0.01 * grads.sign() @ asked.T, rtol=0.01, atol=1e-4)


def test_what_needs_no_gradient(run):
    found, rows = estimated(run), MATRICES["a"]
    of, model = np.ix_(rows, rows), based_model(run).double()
    batch, asked = (run.task.batch(split, rows) for split in ("train", "evaluation"))
    x, others = batch["x"].double(), asked["x"].double()
    with torch.no_grad():
        losses = loss(model, batch | {"x": x})
        units = [nn.functional.normalize(model[:2](each)) for each in (x, others)]
    np.testing.assert_allclose(found["loss"][of], losses[:, None].expand(6, 6), atol=1e-6)
    np.testing.assert_allclose(found["embeddings"][of], units[0] @ units[1].T, atol=1e-6)
    lengths = 2 + np.arange(6) % 3
    np.testing.assert_array_equal(found["length"][of], np.tile(lengths[:, None], 6))
    words = np.arange(lengths.sum()) % 5, np.cumsum([0, *lengths])
    np.testing.assert_allclose(found["bm25"][of], bm25(words, words, 5).T)
    assert np.unique(found["random"][of]).size == 36


def test_the_page_holds_every_estimate_against_both_truths(run):
    rows = json.loads(run.blobs.get("report/yardstick.json"))
    told = estimated(run)
    left_out = run.variations["left out"]
    assert len(left_out.ledger("estimates").read()) == 1  # they share them
    for session, name in ((run, ""), (left_out, "left out")):
        truth = measured(session).influence_NE
        of = np.ix_(MATRICES["b"], MATRICES["b"])
        for estimator, space in (("fisher", "last"), ("embeddings", ""), ("tracin", "all")):
            (row,) = [r for r in rows if (r["run"], r["matrix"]) == (name, "b")
                      and (r["estimator"], r["of"]) == (estimator, space)]  # fmt: skip
            values = told[f"{estimator}@{space}" if space else estimator]
            for part in ("off", "within"):
                wanted = rank_correlation(truth[of], values[of], part == "within")
                assert [row[part], row[f"{part}_low"], row[f"{part}_high"]] == pytest.approx(wanted)
    other = [r for r in rows if r["estimator"] == "measured" and r["matrix"] == "b"]
    assert {(r["run"], r["of"]) for r in other} == {("", "left out"), ("left out", "this run")}
    page = run.blobs.get("report/index.html").decode()
    assert "The yardstick" in page
    assert "by construction" in page


def test_only_gradients_of_all_parameters_ask_for_their_memory(run):
    outline, parameters = run.outline, 4 * 5 + 5 + 5 * 3 + 3

    def memory(*names, **spaces):
        settings = replace(outline.settings, estimates=EstimateSettings(names, spaces))
        ((_, cost),) = units(replace(outline, settings=settings))
        return cost.host_bytes

    assert memory("tracin", all="all") == parameters * (4 + 8 * 2 * ROWS)
    assert memory("tracin") == memory("tracin", all="all")  # all are tuned
    assert memory("tracin", last=LAST) == memory("random") == 4 * parameters


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("bare", {"estimators": ["bm25"]}, "bm25 needs a task with words(split)"),
        ("bare", {"estimators": ["prompt"]}, "prompt needs a task with prompted(model, row, ids)"),
        ("bare", {"estimators": ["ekfac"]}, "EK-FAC samples labels"),
        ("bare", {"estimators": ["tracin"]}, "spaces: all holds the embedding 0.weight"),
        ("task", {"spaces": {"x": "nowhere"}}, "blocks 'nowhere' matches no trainable parameter"),
        ("task", {"estimators": ["tracin", "tracin"]}, "estimators: name each once"),
        ("task", {"tune": {"leave_one_out": True, "first_order": True}}, "leave_one_out: does not"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(tmp_path, capsys, name, changes, why):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(raw(tmp_path / "run", name, **changes) | {"variations": {}})
    )
    assert main(["run", str(tmp_path / "run.yaml")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert why in line, line
    assert not list((tmp_path / "run").glob("ledger/*/*"))
