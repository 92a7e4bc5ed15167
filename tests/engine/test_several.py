"""The mean of the scores of runs that differ in their seed alone, and which runs it takes."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from distinf.cli import main
from distinf.engine.evaluating import evaluate
from distinf.engine.several import _scaled
from distinf.engine.trainings import Design, every_unit, kept_rows
from distinf.spectral import retraining
from tests.engine.test_evaluating import words_run
from tests.support.partial import points_config, run_until
from tests.support.runs import run_points, silent

SAME = {
    "task": "tests.support.blobs_task:same_points",
    "targets": {"ids": [3, 11]},
    "actions": {"seeds": 0},
}
HALVES = Design(subsets=10, repeats=1, shares=0, patch=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    return [run_points(folder / f"seed{seed}", seed=seed, **SAME) for seed in range(3)]


def test_the_mean_stands_beside_the_scores_of_the_first_run(runs):
    """Its LDS is that of the scores' mean, each query's over the root of its mean square."""
    first, *others = (run.blobs.root for run in runs)
    found = evaluate(first, HALVES, silent, others)
    assert found.trainings == 10
    worth = {row["ranking"]: row["value"] for row in found.rows}
    assert {f"{name}, mean of 3 runs" for name in worth if "mean" not in name} <= worth.keys()
    name = "cross-entropy/classic"
    cell = next(iter(retraining.foretold(runs[0])))
    mean_QN = np.zeros_like(cell.scores[name][1])
    for run in runs:
        scores_QN = next(iter(retraining.foretold(run))).scores[name][1]
        mean_QN += scores_QN / np.sqrt((scores_QN**2).mean(1))[:, None]
    units = list(every_unit(runs[0], cell, HALVES))
    losses_MQ = np.stack([runs[0].arrays(unit)["cross-entropy"] for unit in units])
    kept_MN = np.stack([kept_rows(0, unit.job) for unit in units])
    by_query = [spearmanr(kept_MN @ s, -losses_MQ[:, q]).statistic for q, s in enumerate(mean_QN)]
    assert worth[f"{name}, mean of 3 runs"] == pytest.approx(np.mean(by_query), abs=1e-12)
    assert worth[f"{name}, mean of 3 runs"] != worth[name]


@pytest.mark.slow
def test_the_command_takes_several_runs_and_its_files_name_them(runs, capsys):
    first, *others = (run.blobs.root for run in runs)
    given = ["--subsets", "10", "--repeats", "1", "--shares", "0"]
    assert main(["evaluate", first, *given, "--with", *others]) == 0
    both = capsys.readouterr().out
    assert main(["evaluate", first, *given]) == 0
    alone = capsys.readouterr().out
    assert re.search(r"cross-entropy/classic, mean of 3\s+runs", both)
    assert "mean of" not in alone
    folders = [Path(told.strip().rsplit(" ", 1)[-1]) for told in (both, alone)]
    assert folders[0] != folders[1]
    table = list(csv.DictReader((folders[0] / "rows.csv").open()))
    name = "cross-entropy/dot"
    scores = [next(iter(retraining.foretold(run))).scores[name][1] for run in runs]
    mean_N = np.mean([_scaled(scores_QN) for scores_QN in scores], axis=(0, 1))
    assert [float(row[f"{name}, mean of 3 runs"]) for row in table] == pytest.approx(mean_N)
    assert name not in table[0]
    assert not (folders[1] / "rows.csv").exists()
    stored = [json.loads((folder / "measures.json").read_text())["with"] for folder in folders]
    assert stored == [others, []]
    page = (Path(first) / "report/index.html").read_text()  # of equal trainings, most rankings
    assert "cross-entropy/classic, mean of 3 runs" in page


def test_scores_of_every_size_count_alike_and_missing_ones_stay_missing():
    scores_QN = np.array([[3.0, -4.0, np.nan], [0.0, np.inf, 0.0]])
    found = _scaled(scores_QN)
    assert np.array_equal(np.isnan(found), [[False, False, True], [False, True, False]])
    assert found[0, :2] == pytest.approx(np.array([3.0, -4.0]) / np.sqrt(12.5))
    assert found[1, ::2].tolist() == [0.0, 0.0]
    assert np.isnan(_scaled(np.full((1, 2), np.nan))).all()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({**SAME, "seed": 0}, "has the seed 0 as "),
        ({**SAME, "seed": 1, "train": {"lr": 0.03}}, "has another train.lr than "),
        ({**SAME, "seed": 1, "targets": {"ids": [3, 12]}}, "has other queries than "),
        ({"seed": 1, "targets": {"ids": [3, 11]}}, "has another task than "),
    ],
)
def test_a_run_that_differs_otherwise_is_refused_before_any_training(
    runs, tmp_path, capsys, changes, line
):
    other = run_points(tmp_path / "run", **changes)
    root = Path(runs[0].blobs.root)
    before = {path.name for path in root.glob("ledger/retrain/*")}
    assert main(["evaluate", str(root), "--subsets", "12", "--with", other.blobs.root]) == 2
    told = capsys.readouterr().err
    assert f"--with {other.blobs.root}: {line}{root}" in told
    assert {path.name for path in root.glob("ledger/retrain/*")} == before


@pytest.mark.slow
def test_rows_that_follow_from_the_seed_are_refused(tmp_path, capsys):
    one, two = (
        run_points(tmp_path / f"{seed}", seed=seed, targets={"ids": [3, 11]}).blobs.root
        for seed in (0, 1)
    )
    assert main(["evaluate", one, "--with", two]) == 2
    assert "has other rows of 'train'" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_of_another_recipe_or_not_finished_are_refused(runs, tmp_path, capsys):
    words = words_run(tmp_path / "words", {"seeds": 1})
    run_until("train", points_config(tmp_path / "half", seed=4, **SAME))
    for folder, line in (
        (words, "its recipe is gram, not that of the run"),
        (str(tmp_path / "half"), "stage 'evaluate' is not done; finish the run first"),
    ):
        assert main(["evaluate", runs[0].blobs.root, "--with", folder]) == 2
        assert line in capsys.readouterr().err
