"""A file of five named classes through the whole study: trained, ranked, told by name."""

import csv
import io
from contextlib import nullcontext

import numpy as np
import pytest

pytest.importorskip("peft", reason="needs distinf[llm]")

from distinf.config import resolve
from distinf.engine.run import execute
from distinf.progress import summary
from distinf.terminal import Terminal
from tests.support.noisy import tiny_model, write_classes

QUEUES = ("billing", "delivery", "other", "praise", "returns")


def test_five_named_classes_from_a_csv_to_a_ranking(tmp_path):
    raw = {
        "task": "noisy_labels", "out": str(tmp_path / "run"), "seeds": 1,
        "data": {"path": write_classes(tmp_path / "queues.csv", QUEUES, rows=100),
                 "train_rows": 60, "query_rows": 20, "test_rows": 20, "flips": 0.1},
        "model": {"name": tiny_model(tmp_path / "model"), "max_length": 12},
        "runtime": {"kind": "local"},
        "train": {"epochs": 4, "batch_size": 10, "lr": 0.05},
        "scores": {"estimators": ["tracin"]},
        "actions": {"configurations": ["random"]},
    }  # fmt: skip
    session = execute(resolve(raw), lambda *_: nullcontext())
    with (tmp_path / "run" / "report" / "ranked_rows-queues-0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {row["label"] for row in rows} | {row["clean_label"] for row in rows} == set(QUEUES)
    wrong = [row for row in rows if row["flipped"] == "True"]
    assert wrong == [row for row in rows if row["label"] != row["clean_label"]]
    assert len(wrong) == 6
    assert all(row["suggested_label"] in set(QUEUES) - {row["label"]} for row in rows)
    assert np.isfinite([float(row["own_loss"]) for row in rows]).all()
    out = io.StringIO()
    summary(session, 1.0, Terminal(file=out, width=100))
    told = out.getvalue()
    assert "The most detrimental training rows" in told
    assert rows[0]["text"][:20] in told
    assert "of 60 labels are wrong." in told
    assert "own loss" in told.partition("Beside it: ")[2]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "suggested label" in page
    assert all(name in page for name in QUEUES)
    assert "Weight decay is 0; the text names none" in page
    assert "train.epochs 4 (10)" in page
    assert "277 rows" not in page  # of RTE, which this is not
