"""Texts of a file that a finished run was not trained on, scored as if added to its training."""

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
from tests.studies.test_query import CLASSES, ESTIMATORS, raw_of, records
from tests.support.noisy import WORDS, tiny_model, write_classes

COPIES, NEW = 5, 3


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A finished run, and files of candidates (copies of training rows, then rows with words that
    no row of the run has) and of queries."""
    folder = tmp_path_factory.mktemp("candidates")
    write_classes(folder / "queues.csv", CLASSES, rows=80)
    tiny_model(folder / "model")
    run = execute(resolve(raw_of(folder, folder)), lambda *_: nullcontext())
    copied = run.task("queues-0").describe(np.arange(COPIES))
    lines = [f"{row['text']},{row['label']}" for row in copied]
    lines += [f"{WORDS[110 + k]} {WORDS[20 + k]},{CLASSES[k]}" for k in range(NEW)]
    (folder / "pool.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    asked = [f"{WORDS[k]} {WORDS[100 + k]} {WORDS[20 + k]},{CLASSES[k % 3]}" for k in range(9)]
    (folder / "new.csv").write_text("\n".join(["text,label", *asked]) + "\n")
    return folder


def scored(base: Path, ranking: str, queries: str = ""):
    changes = [("data.queries", str(base / queries))] if queries else []
    pool = [("data.candidates", str(base / "pool.csv"))]
    run = str(base / "run")
    return ask(run, changes, lambda *_: nullcontext(), candidates=pool, ranking=ranking, top=2)


@pytest.mark.parametrize("queries", ["", pytest.param("new.csv", marks=pytest.mark.slow)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_copy_of_a_training_row_has_that_rows_score(base, estimator, queries):
    (answer,) = scored(base, f"{estimator}/all", queries).answers
    if queries:
        changes = [("data.queries", str(base / queries))]
        late = ask(str(base / "run"), changes, lambda *_: nullcontext(), ranking=f"{estimator}/all")
        expected_QN = late.answers[0].scores_QN
    else:
        run = resolve(raw_of(base, base)).settled({"": "hooks"})
        session = execute(run, lambda *_: nullcontext())
        expected_QN = query_scores(session, session.cell("queues-0"), estimator, "all")
    found_QM = answer.scores_QN
    assert found_QM.shape == (9 if queries else 12, COPIES + NEW)
    scale = np.abs(expected_QN).max()
    np.testing.assert_allclose(
        found_QM[:, :COPIES], expected_QN[:, :COPIES], rtol=2e-4, atol=1e-5 * scale
    )
    assert np.isfinite(found_QM).all()
    assert np.ptp(found_QM[:, COPIES:]) > 0


def test_nothing_of_the_training_rows_is_done_again(base):
    before = records(base)
    scored(base, "cosine/head")
    fresh = [json.loads((base / name).read_text()) for name in records(base) - before]
    assert {record["stage"] for record in fresh} <= {"data", "gradients", "gram"}
    assert all(r["job"]["phase"] == "candidates" for r in fresh if r["stage"] == "gram")
    assert all(r["stop"] == COPIES + NEW for r in fresh if r["stage"] == "gradients")
    assert main(["verify", str(base / "run")]) == 0
    assert main(["status", str(base / "run")]) == 0


def test_the_command_shows_each_querys_extremes_with_their_texts(base, capsys):
    command = ["query", str(base / "run"), "--candidates", str(base / "pool.csv"), "--top", "2"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "Candidates by query queues-0" in told
    assert "scored as if added to training" in told
    folder = Path(told.rsplit(": ", 1)[1].strip())
    with (folder / "top-queues-0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["place"]) for row in rows[:4]] == [1, 2, -1, -2]
    with (base / "pool.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert all(row["text"] == texts[int(row["row"])] and row["query_text"] for row in rows)
    assert np.load(folder / "scores-queues-0.npy").shape == (12, COPIES + NEW)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("", "has no rows"),
        ("text,label\n", "has no rows"),
        ("text,kind\na,praise\n", "has no column 'label'"),
        ("text,label\na,nonsense\n", "label 'nonsense' in row 0 is none of the classes"),
        ("text,label\na,\n", "have no label"),
        ("text,label\na,b,praise\n", "has 3 fields"),
    ],
)
def test_a_file_that_cannot_be_scored_is_one_line_before_any_work(
    base, tmp_path, capsys, content, why
):
    path, before = tmp_path / "pool.csv", records(base)
    if content is not None:
        path.write_text(content)
    assert main(["query", str(base / "run"), "--candidates", str(path)]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert why in line
    assert line.startswith("error: data.candidates: ")
    assert records(base) == before


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--candidates", "OWN"], "is the very file that the training rows are from"),
        (["--candidates"], "give the FILE that has them"),
        (["--candidates", "pool.xyz"], "pool.xyz"),
        (["--candidates", "POOL", "--ranking", "tracin/none"], "use one of"),
        (["--candidates", "POOL", "--set", "lora.rank=2"], "make another model"),
        (["--candidates", "POOL", "--set", "data.train_rows=39"], "training rows"),
    ],
)
def test_what_cannot_be_asked_is_one_line(base, words, why, capsys):
    files = {"OWN": "queues.csv", "POOL": "pool.csv"}
    given = [str(base / files[word]) if word in files else word for word in words]
    assert main(["query", str(base / "run"), *given]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert why in line


def test_candidates_are_no_training_rows(base, capsys):
    raw = raw_of(base, base, candidates=str(base / "pool.csv"))
    with pytest.raises(Exception, match="is for distinf query RUN --candidates FILE"):
        execute(resolve({**raw, "out": str(base / "other")}), lambda *_: nullcontext())
