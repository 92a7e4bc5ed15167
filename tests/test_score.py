"""`distinf score`: your own task's training rows, ranked."""

import csv
import json
import re

import pytest

from tests.support.runs import distinf

MINE = """
import torch
import distinf

FLIPPED = torch.arange(200) < 30


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def correct(model, batch):
    return model(batch["x"]).argmax(1) == batch["y"]


def task(settings: dict, seed: int):
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    y[:200] = torch.where(FLIPPED, 1 - y[:200], y[:200])
    data = {"train": {"x": x[:200], "y": y[:200]}, "evaluation": {"x": x[200:], "y": y[200:]}}

    def model():
        made = torch.nn.Linear(8, 2)
        optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
        for _ in range(50):
            optimizer.zero_grad()
            loss(made, data["train"]).mean().backward()
            optimizer.step()
        return made

    tells = {
        "probabilities": lambda m, b: m(b["x"]).softmax(1) * settings.get("times", 1),
        "labels": y[:200], "classes": settings.get("classes"),
    } if "classes" in settings else {}
    notes = {"text": [f"=row <{k}>, \\"quoted\\"" for k in range(200)]}
    return distinf.TensorTask(
        model, data, {"loss": loss}, seed=seed, notes=notes, correct=correct, **tells,
        flipped=FLIPPED if settings.get("known", True) else None,
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "mine.yaml").write_text("task: mine:task\nruntime: {kind: local}\n")
    monkeypatch.setattr("tests.support.runs.ROOT", tmp_path)
    return tmp_path


def ranked(folder):
    with open(folder / "out" / "report" / "ranked_rows.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_training_row_is_ranked_with_its_number_and_text(folder):
    done = distinf("score", str(folder / "mine.yaml"), "--out", str(folder / "out"))
    assert done.returncode == 0, done.stderr
    rows = ranked(folder)
    assert sorted(int(row["row"]) for row in rows) == list(range(200))
    assert all(f"<{row['row']}>" in row["text"] for row in rows)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores)
    lowest = [row["flipped"] for row in rows[:60]]
    assert lowest.count("True") >= 27  # of 30, among the lowest 60; chance would put 9 there
    assert "rows whose label is known to be wrong" in done.stdout
    worst = re.findall(r"=row <(\d+)>", done.stdout)
    assert worst == [row["row"] for row in rows[:10]]
    page = (folder / "out" / "report" / "index.html").read_text()
    assert "&lt;" in page
    assert "=row <" not in page
    again = distinf("score", str(folder / "mine.yaml"), "--out", str(folder / "out"))
    assert again.returncode == 0
    assert f"mine.yaml -> {folder / 'out'} (finished before)" in again.stderr
    assert f"mine.yaml -> {folder / 'out'} (new)" in done.stderr


def test_a_task_that_tells_classes_gets_labels_suggested_and_wrong_ones_counted(folder):
    arguments = ["--out", str(folder / "out"), "--set", "settings.classes=[left, right]"]
    done = distinf("score", str(folder / "mine.yaml"), *arguments)
    assert done.returncode == 0, done.stderr
    rows = {int(row["row"]): row for row in ranked(folder)}
    assert {row["suggested_label"] for row in rows.values()} == {"left", "right"}
    losses = [float(rows[k]["own_loss"]) for k in range(200)]
    assert sum(losses[:30]) / 30 > 2 * sum(losses[30:]) / 170  # the first 30 are flipped
    assert all(float(row["gradient_norm"]) > 0 for row in rows.values())
    (count,) = re.findall(r"about (\d+) of 200 labels are wrong", done.stdout)
    assert 20 <= int(count) <= 45
    assert "suggested" in done.stdout
    found = json.loads((folder / "out" / "report" / "findings.json").read_text())
    assert found["cells"][0]["suggested_wrong"] == int(count)
    assert {made["configuration"] for made in found["free"]} == {
        "own loss",
        "gradient norm",
        "self influence",
        "combined",
    }
    assert "own loss" in (folder / "out" / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{classes: [left, right], times: 2}", "probabilities of row 0 sum to 2 or are negative"),
        ("{classes: [a, b, c]}", "are of 2 classes, and 3 are named (a, b, c); name them all"),
        ("{classes: [a]}", "label 1 has no name among 1 classes"),
    ],
)
def test_what_a_task_tells_of_classes_is_checked_before_anything_is_scored(folder, settings, said):
    arguments = ["--out", str(folder / "out"), "--set", f"settings={settings}"]
    done = distinf("score", str(folder / "mine.yaml"), *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert not (folder / "out").exists()


def test_without_known_noise_it_ranks_and_claims_nothing(folder):
    arguments = ["--out", str(folder / "out"), "--set", "settings.known=false"]
    done = distinf("score", str(folder / "mine.yaml"), *arguments)
    assert done.returncode == 0, done.stderr
    assert "known to be wrong" not in done.stdout
    assert "flipped" not in ranked(folder)[0]


def test_a_task_can_be_named_without_a_file_and_its_page_claims_only_what_it_knows(folder):
    text = MINE.replace("correct=correct,", "").replace("range(50)", "range(0)")
    (folder / "mine.py").write_text(text)
    done = distinf("score", "mine:task", "--set", "runtime.kind=local", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "parameters was taken as it is" in done.stdout
    page = (folder / "out" / "report" / "index.html").read_text()
    assert "predicted right." not in page
    assert "or all of them where the task does not say which" in page


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("train: {steps: 3}", "rank its task by: distinf score mine:task"),
        ("train: {epochs: 3}", "is scored as model() returns it; leave train out"),
        ("train: {epochz: 3}", "did you mean 'epochs'?"),
    ],
)
def test_settings_of_a_training_are_refused_where_there_is_none(folder, keys, said):
    (folder / "mine.yaml").write_text(f"task: mine:task\n{keys}\n")
    done = distinf("score", "mine.yaml", "--out", "out")
    assert done.returncode == 2
    assert said in done.stderr


def test_a_basis_run_cannot_be_scored(folder):
    (folder / "mine.yaml").write_text("task: mine:task\nrecipe: spectral\n")
    done = distinf("score", str(folder / "mine.yaml"), "--out", str(folder / "out"))
    assert done.returncode == 2
    assert "distinf run" in done.stderr
