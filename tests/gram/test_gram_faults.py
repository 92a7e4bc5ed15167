"""A run of the Gram route: killed in each of its stages, run again, on one worker or three."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from distinf.cli import main

ROOT = Path(__file__).parents[2]
STAGES = ("data", "train", "gradients", "factors", "gram", "scores", "baselines", "actions")
CONFIG = {
    "task": "tests.support.words_task:task",
    "recipe": "gram",
    "runtime": {"kind": "local"},
    "settings": {"rows": 40, "queries": 10},
    "train": {"epochs": 2, "lr": 0.05, "batch_size": 10},
    "gradients": {"embeddings": True, "rows_per_unit": 10, "slab": 60},
    "gram": {"rows_per_tile": 20},
    "scores": {"estimators": ["tracin", "cosine", "datainf", "fisher", "ekfac", "fisher-joint"]},
    "actions": {"configurations": ["random", "full", "tracin/all/mean", "datainf/all/vote"]},
}


def written(folder: Path, **changes) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, **changes, "out": str(folder / "run")}))
    return file


def tables(folder: Path) -> dict[str, bytes]:
    """Every table of the report but the times."""
    found = {p.name: p.read_bytes() for p in sorted((folder / "run" / "report").glob("*.csv"))}
    timed = ("costs.csv", "estimator_times.csv")
    return {name: data for name, data in found.items() if name not in timed}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert main(["run", str(written(folder))]) == 0
    return folder


def test_a_run_ends_in_a_page_its_tables_and_every_row_ranked(whole):
    report = whole / "run" / "report"
    page = (report / "index.html").read_text()
    assert "&lt;b&gt;" in page  # text from the data is escaped
    assert "row 1 <b>" not in page
    for cell in ("words-0", "words-1"):
        with (report / f"ranked_rows-{cell}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 40
        assert {int(row["row"]) for row in rows} == set(range(1000, 1040))


def killed_in(stage: str, file: Path) -> None:
    """Start the run, and kill it once the stage has committed something."""
    ledger = file.parent / "run" / "ledger" / stage
    before = len(list(ledger.glob("*.json"))) if ledger.exists() else 0
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "distinf", "run", str(file)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if ledger.exists() and len(list(ledger.glob("*.json"))) > before:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_in_every_stage_and_run_again_the_tables_are_the_same_bytes(whole, tmp_path):
    file = written(tmp_path)
    for stage in STAGES:
        killed_in(stage, file)
    assert not (tmp_path / "run" / "report" / "index.html").exists()
    assert main(["run", str(file)]) == 0
    assert tables(tmp_path) == tables(whole)
    assert main(["verify", str(tmp_path / "run")]) == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_one_worker_or_three_the_tables_are_the_same_bytes(whole, tmp_path):
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        runtime = {"kind": "ray", "workers": workers, "num_cpus": 0.5, "dashboard": False}
        assert main(["run", str(written(folder, runtime=runtime))]) == 0
        assert tables(folder) == tables(whole)


def test_status_plan_and_verify_know_the_route(whole, capsys):
    assert main(["status", str(whole / "run")]) == 0
    assert "gram" in capsys.readouterr().out
    assert main(["verify", str(whole / "run")]) == 0
    assert main(["plan", str(whole / "run.yaml"), "--gflops", "10"]) == 0
    assert "gradients" in capsys.readouterr().out
    assert main(["report", str(whole / "run")]) == 0


@pytest.mark.slow
def test_scores_alone_where_nothing_is_trained_again(tmp_path):
    assert main(["run", str(written(tmp_path, actions={}))]) == 0
    assert (tmp_path / "run" / "report" / "index.html").exists()
    table = np.genfromtxt(
        tmp_path / "run" / "report" / "ranked_rows-words-0.csv", delimiter=",", names=True
    )
    assert (np.diff(table["score"]) >= 0).all()
