"""A finished run is asked about rows that it did not have: as if it had had them from the start."""

import csv
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("peft", reason="needs distinf[llm]")

from distinf.cli import main
from distinf.config import resolve
from distinf.engine.query import ask
from distinf.engine.run import execute
from distinf.gram.asking import query_scores
from distinf.gram.configurations import all_scores
from tests.support.noisy import WORDS, tiny_model, write_classes

CLASSES = ("billing", "delivery", "praise")
ESTIMATORS = ["tracin", "cosine", "datainf", "fisher", "fisher-joint", "ekfac"]


def raw_of(folder: Path, base: Path, **data) -> dict:
    return {
        "task": "noisy_labels", "out": str(folder / "run"), "seeds": 1,
        "data": {"path": str(base / "queues.csv"), "train_rows": 40, "query_rows": 12,
                 "test_rows": 12, "flips": 0.1, **data},
        "model": {"name": str(base / "model"), "max_length": 12},
        "runtime": {"kind": "local"},
        "train": {"epochs": 3, "batch_size": 10, "lr": 0.05, "selected_epoch": "last"},
        "gradients": {"embeddings": True},
        "scores": {"estimators": ESTIMATORS},
    }  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("query")
    write_classes(folder / "queues.csv", CLASSES, rows=80)
    tiny_model(folder / "model")
    execute(resolve(raw_of(folder, folder)), lambda *_: nullcontext())
    lines = ["text,label"]  # with words that no row of the run has
    lines += [f"{WORDS[k]} {WORDS[100 + k]} {WORDS[20 + k]},{CLASSES[k % 3]}" for k in range(9)]
    (folder / "new.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def from_the_start(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    raw = raw_of(folder, base, queries=str(base / "new.csv"))
    return execute(resolve(raw), lambda *_: nullcontext())


def records(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob("run/ledger/*/*.json")}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scores_are_those_of_a_run_that_had_the_queries_from_the_start(
    base, from_the_start, estimator
):
    changes = [("data.queries", str(base / "new.csv"))]
    asked = ask(
        str(base / "run"), changes, lambda *_: nullcontext(), ranking=f"{estimator}/all", top=3
    )
    cell = from_the_start.cell("queues-0")
    expected_QN = query_scores(from_the_start, cell, estimator, "all")
    (answer,) = asked.answers
    assert expected_QN.shape == (9, 40)
    assert np.isfinite(expected_QN).all()
    np.testing.assert_allclose(answer.scores_QN, expected_QN, rtol=1e-6, atol=1e-12)
    mean_N = all_scores(from_the_start, cell)[estimator, "all", "mean"]
    np.testing.assert_allclose(answer.scores_QN.mean(0), mean_N, rtol=1e-6, atol=1e-12)
    stored = np.load(Path(asked.root) / "scores-queues-0.npy", allow_pickle=False)
    assert np.array_equal(stored, answer.scores_QN)


def test_nothing_of_the_training_rows_is_done_again(base):
    before = records(base)
    changes = [("data.queries", str(base / "new.csv")), ("data.id", "")]
    ask(str(base / "run"), changes, lambda *_: nullcontext(), ranking="cosine/all")
    fresh = [json.loads((base / name).read_text()) for name in records(base) - before]
    assert not [record for record in fresh if record["stage"] == "train"]
    gradients = [record for record in fresh if record["stage"] == "gradients"]
    assert {record["job"]["split"] for record in gradients} <= {"evaluation"}
    again = records(base)
    ask(str(base / "run"), changes, lambda *_: nullcontext(), ranking="cosine/all")
    assert records(base) == again
    assert main(["verify", str(base / "run")]) == 0
    assert main(["status", str(base / "run")]) == 0


def test_the_command_shows_each_querys_extremes_with_their_texts(base, capsys):
    command = ["query", str(base / "run"), "--queries", str(base / "new.csv"), "--top", "2"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "by fisher/all; all scores and these tables:" in told
    folder = Path(told.rsplit(": ", 1)[1].strip())
    with (folder / "top-queues-0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["place"]) for row in rows[:4]] == [1, 2, -1, -2]
    assert len(rows) == 9 * 4
    scores = [float(row["score"]) for row in rows[:4]]
    assert scores[0] >= scores[1] > scores[3] >= scores[2]
    assert all(row["text"] and row["query_text"] for row in rows)
    assert rows == [
        {key: str(value) for key, value in row.items()}
        for row in json.loads((folder / "top-queues-0.json").read_text())
    ]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([], "the run's own queries"),
        (["--set", "data.train_rows=39"], "training rows"),
        (["--set", "data.flips=0.2"], "training rows"),
        (["--set", "seeds=2"], "other datasets or seeds"),
        (["--set", "lora.rank=2"], "make another model"),
        (["--queries", "nowhere.csv"], "nowhere.csv"),
        (["--queries", "FILE", "--ranking", "tracin/none"], "--ranking tracin/none: use one of"),
        (["--queries", "FILE", "--top", "0"], "--top 0"),
        (["--set", "data.quer=x"], "unknown key"),
        (["--set", "data.test_rows=5"], "leave the evaluation rows as they are"),
    ],
)
def test_what_cannot_be_asked_is_one_line(base, changes, why, capsys):
    given = [str(base / "new.csv") if word == "FILE" else word for word in changes]
    assert main(["query", str(base / "run"), *given]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert why in line


def test_an_unfinished_run_is_not_asked(base, tmp_path, capsys):
    import shutil

    shutil.copytree(base / "run", tmp_path / "run")
    for record in (tmp_path / "run/ledger/scores").glob("*.json"):
        record.unlink()
    assert main(["query", str(tmp_path / "run"), "--queries", str(base / "new.csv")]) == 2
    assert "is not done; finish the run first" in capsys.readouterr().err
