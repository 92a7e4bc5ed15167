"""The tables that the figures of Vitel and Chhabra are drawn from, on a small run: against scores
from dense gradients, and against numpy and scipy on the accuracies that the run stored."""

import csv
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from distinf.gram import actions
from distinf.gram.session import Session
from distinf.report.gram import page
from distinf.runtime import RuntimeSettings, open_runtime
from tests.gram.test_gram_route import dense, expected_scores, scored, session_of
from tests.support import words_task

ESTIMATORS, SEEDS = ("tracin", "cosine"), 5
TABLES = ("quartiles", "gains", "gain_trials", "joint_correlations")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Session:
    """Five seeds of one dataset, every configuration of two estimators trained again."""
    told = property(lambda self: SimpleNamespace(dataset="words", seed=self.seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words_task.Cell, "cell", told, raising=False)
        session = scored(
            session_of(
                tmp_path_factory.mktemp("figures") / "run",
                settings={"double": True, "seeds": SEEDS, "queries": 40},
                scores={"estimators": list(ESTIMATORS)},
                actions={"configurations": ["grid"]},
            )
        )
        runtime = open_runtime(RuntimeSettings(kind="local"))
        actions.run(session, runtime)
        page.write(session)
    return session


@pytest.fixture(scope="module")
def written(run) -> dict[str, list[dict]]:
    """The report's JSON tables; its CSV files hold the same."""
    found = {name: json.loads(run.blobs.get(f"report/{name}.json")) for name in TABLES}
    for name, rows in found.items():
        lines = run.blobs.get(f"report/{name}.csv").decode().splitlines()
        for row, line in zip(rows, csv.DictReader(lines), strict=True):
            assert {k: "" if v is None else str(v) for k, v in row.items()} == line
    return found


@pytest.fixture(scope="module")
def accuracy(run) -> dict[str, np.ndarray]:
    """Configuration -> the largest test accuracy of each seed, in percent."""
    found: dict[str, dict[str, float]] = {}
    for filtered, stored in actions.histories(run):
        best = 100 * float(np.max(stored["test_accuracy"]))
        found.setdefault(filtered.configuration, {})[filtered.cell] = best
    return {
        name: np.array([by_cell[f"words-{k}"] for k in range(SEEDS)])
        for name, by_cell in found.items()
    }


def test_quartiles_are_numpys_of_every_estimator_and_group(run, written, accuracy):
    groups = run.cell("words-0").groups
    rows = {(r["estimator"], r["group"]): r for r in written["quartiles"]}
    assert set(rows) == {(e, g) for e in ESTIMATORS for g in groups}
    for (estimator, group), row in rows.items():
        values = accuracy[f"{estimator}/{group}/mean"]
        assert (row["dataset"], row["trials"]) == ("words", SEEDS)
        told = [row[f"{name}_pct"] for name in ("mean", "q1", "median", "q3")]
        assert told == pytest.approx([values.mean(), *np.quantile(values, (0.25, 0.5, 0.75))])
    assert any(row["q1_pct"] < row["q3_pct"] for row in rows.values())


def test_changes_by_rank_and_vote_are_paired_by_seed(run, written, accuracy):
    groups = run.cell("words-0").groups
    rows = {(r["estimator"], r["group"], r["how"]): r for r in written["gains"]}
    assert set(rows) == {(e, g, h) for e in ESTIMATORS for g in groups for h in ("rank", "vote")}
    for (estimator, group, how), row in rows.items():
        base, ours = (accuracy[f"{estimator}/{group}/{h}"] for h in ("mean", how))
        changes = 100 * (ours / base - 1)
        told = [row[f"{name}_pct"] for name in ("change", "q1", "median", "q3")]
        assert told == pytest.approx([changes.mean(), *np.quantile(changes, (0.25, 0.5, 0.75))])
        p = stats.wilcoxon(ours - base).pvalue if np.any(ours - base) else math.nan
        assert row["p"] == (None if math.isnan(p) else pytest.approx(p))
        assert row["marked"] == (p < 0.1 and abs(changes.mean()) > 1)
        trials = [
            r for r in written["gain_trials"]
            if (r["estimator"], r["group"], r["how"]) == (estimator, group, how)
        ]  # fmt: skip
        assert [r["seed"] for r in trials] == list(range(SEEDS))
        for name, values in (("base", base), ("accuracy", ours), ("change", changes)):
            assert [r[f"{name}_pct"] for r in trials] == pytest.approx(values)
    assert any(row["change_pct"] for row in rows.values())


def test_the_joint_matrix_is_scipys_on_scores_from_dense_gradients(run, written):
    names, per_cell = [], []
    for name, cell in run.outline.cells.items():
        train_of, query_of = dense(run, name)
        scores = {}
        for estimator in ESTIMATORS:
            for group, members in cell.groups.items():
                blocks = [
                    expected_scores(estimator, train_of[b], query_of[b], 0).mean(0) for b in members
                ]
                scores[f"{estimator}/{group}"] = torch.stack(blocks).mean(0).numpy()
        names = list(scores)
        per_cell.append(stats.spearmanr(np.stack(list(scores.values())), axis=1).statistic)
    rows = {f"{r['estimator']}/{r['group']}": r for r in written["joint_correlations"]}
    assert sorted(rows) == sorted(names)
    found = np.array([[rows[a][b] for b in names] for a in names])
    assert np.diag(found) == pytest.approx(1.0)
    assert found == pytest.approx(np.mean(per_cell, axis=0), abs=2e-3)
    assert len(np.unique(found.round(3))) > len(names)  # not the same everywhere


def test_the_joint_matrix_holds_those_between_groups_and_between_estimators(run, written):
    rows = {f"{r['estimator']}/{r['group']}": r for r in written["joint_correlations"]}
    for pair in json.loads(run.blobs.get("report/correlations.json")):
        of, estimator, how = pair["of"].split(", ")
        if how == "mean":
            ends = (pair["first"], pair["second"])
            between = of == "estimators"
            first, second = (f"{e}/all" if between else f"{estimator}/{e}" for e in ends)
            assert rows[first][second] == pytest.approx(pair["rho"])
