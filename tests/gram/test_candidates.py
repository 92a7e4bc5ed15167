"""Rows that a Gram run was not trained on, scored as if added: against dense float64 algebra with
the curvature of the run's own rows, whatever the batches and workers, and wherever it is killed."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from distinf.config import resolve
from distinf.engine.query import ask
from distinf.engine.run import execute
from distinf.gram import factors
from distinf.gram.session import TRAIN
from distinf.gram.settings import BLOCKWISE, EKFAC, JOINT, OF_WORDS
from distinf.gram.tiles import narrow
from distinf.gram.train import trained_model
from distinf.numerics.capture import flat_gradients
from distinf.numerics.parameters import Layout
from tests.gram.test_gram_route import agree, dense, expected_scores
from tests.support import words_task

ESTIMATORS = [*BLOCKWISE, JOINT, *OF_WORDS]
OFTEN = ("tracin", "datainf", "ekfac", JOINT)
CANDIDATES, POISON = 21, 3  # one of them has no finite gradient
OTHERS = [("rows", CANDIDATES), ("poison", POISON)]


def watch(*_):
    return nullcontext()


def run_of(out: Path, **gradients):
    return execute(
        resolve({
            "task": "tests.support.words_task:task", "recipe": "gram", "out": str(out),
            "runtime": {"kind": "local"}, "settings": {"double": True, "rows": 30},
            "train": {"epochs": 3, "lr": 0.05, "batch_size": 10},
            "gradients": {"embeddings": True, "rows_per_unit": 17, "slab": 60,
                          "tokens_per_batch": 40, **gradients},
            "gram": {"rows_per_tile": 13},
            "scores": {"estimators": ESTIMATORS},
            "actions": {"configurations": []},
        }), watch)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("candidates") / "run")


def dense_candidates(run, name: str) -> dict[str, torch.Tensor]:
    """{block: fp64 [M, entries]}: of the finite ones, row by row, under the run's model."""
    settings = words_task.WordsSettings(double=True, rows=CANDIDATES, poison=POISON)
    task = words_task.task(settings, run.seed).cells()[name]
    task.attach(task.prepare())
    model = trained_model(run, name).double()
    layout = Layout.of(model, "all", embeddings=True)
    rows = [
        flat_gradients(
            model, task.losses["cross-entropy"], task.batch(TRAIN, np.array([i])), layout,
            method="loop",
        ).double()
        for i in range(CANDIDATES) if i != POISON
    ]  # fmt: skip
    return {block: torch.cat(rows)[:, span] for block, span in layout.spans.items()}


def of_words(estimator, cand_MP, query_QP):
    kept = [
        grads.view(-1, words_task.VOCABULARY, words_task.WIDTH).clone()
        for grads in (cand_MP, query_QP)
    ]
    for grads in kept if estimator == "tracin-we-both10" else kept[:1]:
        for row in grads:
            row[torch.argsort(row.norm(dim=1), descending=True)[10:]] = 0.0
    return torch.einsum("qvd,nvd->qn", kept[1], kept[0])


def wanted_scores(run, cell, estimator, group):
    train_of, query_of = dense(run, cell.name)
    cand_of, members = dense_candidates(run, cell.name), cell.groups[group]
    if estimator == JOINT:
        joined = [torch.cat([of[b] for b in members], 1) for of in (train_of, cand_of, query_of)]
        return expected_scores("fisher", joined[0], joined[2], 0, joined[1])
    if estimator == EKFAC:
        ekfac = factors.curvature(run, cell)
        every = {block.name: query_of[block.name] for block in cell.blocks.dense}
        solved = ekfac.solve(every, None)
        parts = [solved[block] @ cand_of[block].T for block in members]
    elif estimator in OF_WORDS:
        parts = [of_words(estimator, cand_of[b], query_of[b]) for b in members]
    else:
        parts = [
            expected_scores(estimator, train, query_of[b], train.shape[1], cand_of[b])
            for b, train in train_of.items()
            if b in members
        ]
    return sum(parts) / len(parts)


@pytest.mark.parametrize(
    "estimator",
    [pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.slow]) for name in ESTIMATORS],
)
def test_scores_are_the_dense_ones_with_the_curvature_of_the_runs_rows(run, estimator):
    cells = list(run.outline.cells.values())
    assert {narrow(cell, b) for cell in cells for b in cell.blocks.dense} == {True, False}
    groups = ["embedding"] if estimator in OF_WORDS else ["head", "all"]
    for group in groups if estimator in OF_WORDS or estimator == EKFAC else [*groups, "embedding"]:
        asked = ask(
            run.blobs.root, [], watch, candidates=OTHERS, ranking=f"{estimator}/{group}", top=2
        )
        for cell, answer in zip(cells, asked.answers, strict=True):
            assert answer.scores_QN.shape == (12, CANDIDATES)
            assert np.isnan(answer.scores_QN[:, POISON]).all()
            agree(
                np.delete(answer.scores_QN, POISON, 1),
                wanted_scores(run, cell, estimator, group).numpy(),
            )
            assert np.array_equal(
                np.load(f"{asked.root}/scores-{cell.name}.npy"), answer.scores_QN, equal_nan=True
            )
        table = json.loads(Path(asked.root, "top-words-0.json").read_text())
        assert [row["place"] for row in table[:4]] == [1, 2, -1, -2]
        assert all(1000 <= row["row"] < 1000 + CANDIDATES for row in table)


def new_records(run, before=frozenset()):
    found = set(Path(run.blobs.root).glob("ledger/*/*.json")) - set(before)
    return {path: json.loads(path.read_text()) for path in found}


@pytest.mark.slow
def test_nothing_of_the_training_rows_is_done_and_what_is_killed_resumes_to_equal_bytes(tmp_path):
    run = run_of(tmp_path / "run")
    before = new_records(run)
    first = ask(run.blobs.root, [], watch, candidates=OTHERS, ranking="datainf/all")
    fresh = new_records(run, before)
    assert {(r["stage"], r["job"].get("phase")) for r in fresh.values()} == {
        ("data", None), ("gradients", None), ("gram", "candidates"),
    }  # fmt: skip
    assert {r["stop"] for r in fresh.values() if r["stage"] == "gradients"} == {17, CANDIDATES}
    wanted = [answer.scores_QN.tobytes() for answer in first.answers]
    for path in list(fresh)[::2]:
        path.unlink()
    again = ask(run.blobs.root, [], watch, candidates=OTHERS, ranking="datainf/all")
    assert [answer.scores_QN.tobytes() for answer in again.answers] == wanted
    assert len(new_records(run, before)) == len(fresh)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["datainf", "fisher-joint"])
def test_batches_do_not_count(run, tmp_path, estimator):
    other = run_of(tmp_path / "run", rows_per_unit=50, tokens_per_batch=9)
    one, two = (
        ask(each.blobs.root, [], watch, candidates=OTHERS, ranking=f"{estimator}/all").answers
        for each in (run, other)
    )
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.scores_QN, b.scores_QN, rtol=1e-5, atol=1e-9)
