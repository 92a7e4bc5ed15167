"""The numbers on the Gram route's page: its tables against loops, numpy and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from distinf.gram import configurations
from distinf.numerics.comparison import pareto_ranks, win_matrix, win_rates
from distinf.report.gram.figures import MOST_POINTS, thinned
from distinf.report.gram.findings import Findings
from distinf.report.gram.page import words_of
from distinf.report.gram.tables import tables
from distinf.report.gram.views import methods
from distinf.report.rows import csv_text, json_text
from distinf.studies.noisy_labels import published
from tests.support.gram_findings import findings, render

HEAD = Findings.headline


@pytest.fixture(scope="module")
def made() -> Findings:
    return findings()


@pytest.fixture(scope="module")
def rows(made):
    return tables(made)


def ndr_of(made: Findings, name: str) -> list[float]:
    return [100 * s["ndr"] for s in made.scored if s["configuration"] == name]


def accuracy_of(made: Findings, name: str, dataset: str = "") -> dict[str, float]:
    return {
        r["cell"]: 100 * r["test_accuracy"]
        for r in made.retrained
        if r["configuration"] == name and r["cell"].startswith(dataset)
    }


def test_detection_is_the_mean_over_cells_best_first(made, rows):
    found = {r["configuration"]: r for r in rows["detection"]}
    assert set(found) == {s["configuration"] for s in made.scored}
    for name in (HEAD, "cosine/04-05/vote", "tracin-we-top10/embedding/mean"):
        values = ndr_of(made, name)
        assert found[name]["ndr_mean_pct"] == pytest.approx(np.mean(values))
        assert found[name]["ndr_sd_pct"] == pytest.approx(np.std(values, ddof=1))
        assert found[name]["cells"] == 6
        assert min(values) <= found[name]["ndr_low_pct"] < found[name]["ndr_high_pct"]
        assert found[name]["ndr_high_pct"] <= max(values)
    means = [r["ndr_mean_pct"] for r in rows["detection"]]
    assert means == sorted(means, reverse=True)


def test_accuracy_is_compared_with_random_and_full_in_the_same_cell(made, rows):
    ours, found = accuracy_of(made, HEAD), {r["configuration"]: r for r in rows["accuracy"]}
    for other in ("random", "full"):
        theirs = accuracy_of(made, other)
        apart = [ours[cell] - theirs[cell] for cell in ours]
        assert found[HEAD][f"vs_{other}_points"] == pytest.approx(np.mean(apart))
        assert found[HEAD][f"vs_{other}_wins"] == sum(a > 0 for a in apart)
        assert found[HEAD][f"vs_{other}_pairs"] == 6
    untouched = [100 * max(c["history"]["test_accuracy"]) for c in made.cells]
    assert found["all rows"]["mean_pct"] == pytest.approx(np.mean(untouched))
    at_best = [100 * r["accuracy_at_best"] for r in made.retrained if r["configuration"] == HEAD]
    assert found[HEAD]["at_best_pct"] == pytest.approx(np.mean(at_best))


def test_methods_are_placed_as_the_paper_does_and_keep_its_numbers_beside(made, rows):
    measured = [r for r in rows["methods"] if r["source"] == "measured"]
    names = sorted({r["configuration"] for r in made.retrained})
    table = [[accuracy_of(made, n)[c["name"]] for c in made.cells] for n in names]
    won_CC = win_matrix(np.array(table))
    fronts, rates = pareto_ranks(won_CC, 0.75), win_rates(won_CC)
    expected = {n: (f, pytest.approx(r)) for n, f, r in zip(names, fronts, rates, strict=True)}
    assert {r["configuration"]: (r["rank"], r["win_rate"]) for r in measured} == expected
    placed = [(r["rank"], -r["win_rate"]) for r in measured]
    assert placed == sorted(placed)
    qnli = list(accuracy_of(made, HEAD, "qnli").values())
    ours = next(r for r in measured if r["configuration"] == HEAD)
    assert ours["qnli_mean_pct"] == pytest.approx(np.mean(qnli))
    assert ours["qnli_sd_pct"] == pytest.approx(np.std(qnli, ddof=1))
    theirs = [r for r in rows["methods"] if r["source"] != "measured"]
    assert {(r["configuration"], r["win_rate"]) for r in theirs} >= {(HEAD, 0.82), ("full", 0.96)}


@pytest.mark.parametrize("family", ["cosine", "tracin"])
def test_layers_are_ranked_within_each_estimator_by_mean_scores(made, rows, family):
    groups = ("embedding", "00-01", "02-03", "04-05", "06-07", "head")
    names = [f"{family}/{g}/mean" for g in groups]
    slots = ["embedding", *(f"attention-{k}" for k in (1, 2, 3, 4)), "head"]
    if family == "tracin":  # its variant on shared words belongs to the family
        names.append("tracin-we-top10/embedding/mean")
        slots.append("tracin-we-top10")
    table = [[accuracy_of(made, n)[c["name"]] for c in made.cells] for n in names]
    won_CC = win_matrix(np.array(table))
    mine = [r for r in rows["layers"] if (r["estimator"], r["source"]) == (family, "measured")]
    ranks, wins = ({r["layer"]: r[key] for r in mine} for key in ("rank", "win_rate"))
    if family == "tracin":  # token by token the same scores, which do not compete
        assert ranks.pop("tracin-we") == ranks["embedding"]
        assert wins.pop("tracin-we") == wins["embedding"]
    assert ranks == dict(zip(slots, pareto_ranks(won_CC, 0.5), strict=True))
    assert wins == pytest.approx(dict(zip(slots, win_rates(won_CC), strict=True)))
    assert not [r for r in rows["layers"] if r["layer"] == "all"]


def test_gains_and_quartiles_pair_the_same_cells(made, rows):
    base, vote = (accuracy_of(made, f"datainf/all/{how}", "sst2") for how in ("mean", "vote"))
    (row,) = [
        r for r in rows["gains"]
        if tuple(r[k] for k in ("dataset", "estimator", "group", "how"))
        == ("sst2", "datainf", "all", "vote")
    ]  # fmt: skip
    relative = [100 * (vote[c] / base[c] - 1) for c in base]
    assert row["change_pct"] == pytest.approx(np.mean(relative))
    assert row["p"] == pytest.approx(stats.wilcoxon([vote[c] - base[c] for c in base]).pvalue)
    assert not row["marked"]  # three seeds cannot reach p < .1
    (row,) = [
        r for r in rows["quartiles"]
        if (r["dataset"], r["estimator"], r["group"]) == ("sst2", "datainf", "all")
    ]  # fmt: skip
    assert row["median_pct"] == pytest.approx(np.median(list(base.values())))


def test_proxies_are_spearmans_pooled_over_groups_and_trials(made, rows):
    every = [r for r in made.retrained if r["configuration"].startswith("cosine/")]
    mine = [r for r in every if r["configuration"].endswith("/vote")]
    ndr = {(s["cell"], s["configuration"]): s["ndr"] for s in made.scored}
    c = {(x["cell"], x["group"]): x["l1"] for x in made.cancellation}
    found = [r["test_accuracy"] for r in mine]
    (row,) = [r for r in rows["proxies"] if (r["how"], r["estimator"]) == ("vote", "cosine")]
    assert row["points"] == len(mine) == 42
    rho, p = stats.spearmanr([ndr[r["cell"], r["configuration"]] for r in mine], found)
    assert (row["ndr_rho"], row["ndr_p"]) == (pytest.approx(rho), pytest.approx(p))
    groups = [r["configuration"].split("/")[1] for r in mine]
    rho, _ = stats.spearmanr([c[r["cell"], g] for r, g in zip(mine, groups, strict=True)], found)
    assert row["c_rho"] == pytest.approx(rho)
    inside = [
        stats.spearmanr(*zip(*[(ndr[r["cell"], r["configuration"]], r["test_accuracy"])
                               for r in mine if r["cell"].startswith(d)], strict=True)).statistic
        for d in ("qnli", "sst2")
    ]  # fmt: skip
    assert row["ndr_within_rho"] == pytest.approx(np.mean(inside))
    assert row["ndr_within_rho"] > row["ndr_rho"]  # datasets of unlike accuracy hide it


def test_tables_are_strict_csv_and_json(rows):
    for name, mine in rows.items():
        assert mine, name
        assert "nan" not in csv_text(mine).lower().replace("finance", "")
        json_text(mine)
    assert len(rows["ranking"]) == 50


def test_configurations_are_read_back_from_their_names():
    assert configurations.parts("datainf/layers 0/1/vote") == ("datainf", "layers 0/1", "vote")
    assert configurations.parts("random") is None
    assert configurations.groups(["all", "head", "10-19", "00-09", "own", "embedding"]) == [
        "embedding", "00-09", "10-19", "own", "head", "all",
    ]  # fmt: skip


def test_a_large_scatter_is_thinned_and_a_small_one_is_not():
    points = [{"k": k} for k in range(5_000)]
    kept = [p["k"] for p in thinned(points)]
    assert len(kept) == MOST_POINTS
    assert kept == sorted(set(kept))
    assert abs(np.mean(kept) - 2_500) < 150
    assert thinned(points[:9]) == points[:9]


def test_the_papers_numbers_are_whole():
    """Counts, and digits of rows that were read from the tables of Vitel and Chhabra."""
    models = ("roberta-large", "llama-3.2-1b", "qwen-2.5-1.5b", "mistral-7b")
    assert [len(published.layers(m)) for m in models] == [19] * 4
    best = next(
        m for m in published.methods("mistral-7b") if m["configuration"] == "datainf/00-07/vote"
    )
    assert (best["win_rate"], best["win_rate_sd"]) == (0.84, 0.22)
    assert (best["qnli_mean_pct"], best["qnli_sd_pct"]) == (82.9, 1.7)
    assert math.isnan(best["stsb_mean_pct"])  # 71.2 or 77.2: "7T12%32" in the text
    (layer,) = [
        x for x in published.layers("roberta-large")
        if (x["estimator"], x["layer"]) == ("datainf", "attention-4")
    ]  # fmt: skip
    assert (layer["rank"], layer["win_rate"]) == (1, 0.55)
    assert published.methods("minilm") == published.layers("minilm") == []


GROUPS = {
    "roberta-large": ("00-05", "06-11", "12-17", "18-23"),
    "llama-3.2-1b": ("00-03", "04-07", "08-11", "12-15"),
    "mistral-7b": ("00-07", "08-15", "16-23", "24-31"),
}
# empty numbers of 1,224, and fronts of 68
UNREAD = {"roberta-large": (8, 51), "llama-3.2-1b": (22, 68), "mistral-7b": (16, 53)}


@pytest.mark.parametrize("model", GROUPS)
def test_every_row_of_tables_4_to_6_is_there_and_what_is_empty_is_counted(model):
    """Every estimator in every group in every aggregation, and the two baselines, once."""
    groups = (*GROUPS[model], "head", "all")
    pairs = [(e, g) for e in ("datainf", "tracin", "cosine") for g in groups]
    pairs += [(e, "embedding") for e in ("tracin", "cosine", "tracin-we", "tracin-we-top10")]
    wanted = {f"{e}/{g}/{how}" for e, g in pairs for how in ("mean", "rank", "vote")}
    rows = published.methods(model)
    assert sorted(r["configuration"] for r in rows) == sorted({*wanted, "random", "full"})
    numbers = [v for r in rows for k, v in r.items() if k.endswith(("_pct", "rate", "rate_sd"))]
    assert len(numbers) == 68 * 18
    fronts = [r["rank"] for r in rows]
    assert (sum(map(math.isnan, numbers)), fronts.count(None)) == UNREAD[model]


@pytest.mark.parametrize("model", GROUPS)
def test_the_published_numbers_lie_in_their_ranges_and_order(model):
    rows = published.methods(model)
    for r in rows:
        assert 0 < r["win_rate"] < 1
        assert 0 < r["win_rate_sd"] < 0.5
        for name in published.DATASETS:
            mean, sd = r[f"{name}_mean_pct"], r[f"{name}_sd_pct"]
            assert math.isnan(mean) or 50 < mean < 100  # two classes
            assert math.isnan(sd) or 0 < sd < 15
    assert rows[0]["configuration"] == "full"
    assert rows[0]["win_rate"] == max(r["win_rate"] for r in rows)
    known = [(r["rank"], -r["win_rate"]) for r in rows if r["rank"] is not None]
    assert [rank for rank, _ in known] == sorted(rank for rank, _ in known)


def test_published_rows_are_kept_to_what_the_run_computed_and_say_what_is_empty():
    theirs = published.methods("mistral-7b")
    made = findings(2, small=True, methods_published=theirs)
    rows = tables(made)
    assert sum(r["source"] == theirs[0]["source"] for r in rows["methods"]) == 68
    *_, whole = methods(words_of(made, rows), made, rows)
    ran = {r["configuration"] for r in rows["methods"] if r["source"] == "measured"}
    beside = [row for row in whole.rows if row["source"] != "measured"]
    assert {row["estimator"] for row in beside} == {"datainf", "tracin", "random", "full"}
    alone = [row["configuration"] for row in beside if row["configuration"] not in ran]
    assert [row["configuration"] for row in whole.rows[-len(alone) :]] == alone != []
    places = {(row["configuration"], row["source"]): k for k, row in enumerate(whole.rows)}
    for (name, source), place in places.items():
        if source != "measured" and name in ran:
            assert places[name, "measured"] == place - 1  # below the run's own
    assert [column.heading for column in whole.columns[-2:]] == ["qnli", "sst2"]
    assert "cannot be read in the copy" in render(made, rows)
    own = findings(2, ("mine",), small=True, methods_published=theirs)
    *_, whole = methods(words_of(own, tables(own)), own, tables(own))
    assert {r["configuration"] for r in whole.rows} == {r["configuration"] for r in own.retrained}
