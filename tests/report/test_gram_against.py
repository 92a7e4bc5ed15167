"""Influence held against the best ranking without it: who chooses, the intervals, what is said."""

import numpy as np
import pytest
import torch

from distinf.numerics.bootstrap import RESAMPLES
from distinf.numerics.metrics import ndr_auc
from distinf.report.formats import SPACE
from distinf.report.gram.against import BEST, against, verdict
from distinf.report.gram.findings import Findings
from distinf.report.gram.page import answer
from distinf.report.gram.tables import tables
from tests.support.gram_findings import cell, free, scored

HEAD = Findings.headline
WRONG = 200


def caught(of: str, name: str, places: list[int]) -> dict:
    """A ranking that filters these of the wrong rows."""
    found = np.isin(np.arange(WRONG), places).astype(int).tolist()
    return {"cell": of, "configuration": name, "caught": found, "area": found}


def made(*rates: dict[str, int], **more) -> Findings:
    """A cell for each: how many wrong rows every ranking catches, the first of them."""
    names = [f"a-{k}" for k in range(len(rates))]
    every = [
        caught(of, name, range(many))
        for of, each in zip(names, rates, strict=True)
        for name, many in each.items()
    ]
    cells = [cell(of, "a", seed, flips=WRONG) for seed, of in enumerate(names)]
    key = tuple(HEAD.split("/"))
    marks = [scored(of, key, each[HEAD] / WRONG, 0.8) for of, each in zip(names, rates)]
    others = [
        free(of, name, many / WRONG, 0.8)
        for of, each in zip(names, rates)
        for name, many in each.items()
        if name != HEAD
    ]
    told = {"cells": cells, "scored": marks, "free": others, "compared": every}
    return Findings("t", "t", **(told | more))


def pair(found: Findings, other: str, ours: str = HEAD) -> dict:
    (row,) = [r for r in against(found) if (r["ours"], r["other"]) == (ours, other)]
    return row


def said(found: Findings) -> tuple[str, str]:
    told, sentences, _ = answer(found, tables(found))
    return told, " ".join(sentences).replace(SPACE, " ")


def test_in_one_run_the_wrong_labels_are_resampled_in_pairs():
    row = pair(made({HEAD: 150, "own loss": 120}), "own loss")
    assert (row["pairs"], row["points"]) == (WRONG, pytest.approx(15.0))
    apart = np.repeat([0.0, 100.0], [WRONG - 30, 30])
    rng = np.random.default_rng(1)
    means = rng.choice(apart, (RESAMPLES, WRONG)).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    assert row["low_points"] == pytest.approx(low, abs=0.6)
    assert row["high_points"] == pytest.approx(high, abs=0.6)


def test_the_best_of_one_run_is_chosen_by_the_other_half():
    halves = np.random.default_rng(0).permutation(WRONG) % 2
    first = np.flatnonzero(halves == 0)[:60].tolist()  # lucky in one half alone
    second = np.flatnonzero(halves == 1)[:50].tolist()
    found = made({HEAD: 0, "own loss": 0})
    rows = [caught("a-0", HEAD, []), caught("a-0", "one", first), caught("a-0", "two", second)]
    row = pair(Findings("t", "t", cells=found.cells, compared=rows), BEST)
    assert row["chosen"] in ("two, one", "one, two")
    assert row["points"] == 0.0  # each finds nothing in the half that did not choose it


def test_a_claim_needs_an_interval_above_the_best_that_other_runs_choose():
    won = made(*[{HEAD: 180, "own loss": 120, "bm25": 60}] * 3)
    row = pair(won, BEST)
    assert (row["chosen"], row["points"]) == ("own loss", pytest.approx(30.0))
    assert verdict(against(won), HEAD) == "won"
    told, text = said(won)
    assert told == "better"
    assert "chosen by the other runs (own loss), datainf / all / vote finds +30.0 points" in text
    assert "influence picked better rows" in text
    assert "resampled" not in text


def test_where_a_baseline_wins_that_comes_first():
    lost = made({HEAD: 100, "own loss": 160})
    told, text = said(lost)
    assert told == "worse"  # above chance, and yet
    assert text.startswith("What needs no influence finds more here: own loss, chosen by the other")
    assert "by 30.0 points (95 % interval 2" in text
    assert "rank by it" in text
    assert "picked better rows" not in text


def test_an_interval_around_0_claims_nothing():
    told, text = said(made({HEAD: 151, "own loss": 150}))
    assert told == "none"
    assert "neither is shown to be better; of this one run" in text
    assert "picked better rows" not in text


def test_six_runs_are_compared_by_their_means():
    rates = [{HEAD: 100 + k, "own loss": 90 - k} for k in range(6)]
    row = pair(made(*rates), "own loss")
    assert row["pairs"] == 6
    assert row["points"] == pytest.approx(np.mean([(10 + 2 * k) / 2 for k in range(6)]))


def test_the_combination_is_no_baseline_and_is_held_against_both():
    found = made(*[{HEAD: 100, "own loss": 90, "combined": 110}] * 2)
    assert pair(found, BEST)["chosen"] == "own loss"
    assert pair(found, BEST, "combined")["points"] == pytest.approx(10.0)
    assert pair(found, HEAD, "combined")["points"] == pytest.approx(5.0)
    assert "influence and losses combined 55 %" in said(found)[1]


def test_without_wrong_labels_nothing_is_compared():
    assert against(Findings("t", "t", cells=[cell()])) == []
    assert verdict([], HEAD) == ""


def sorted_by_class(ndr: float, within: float, sd: float) -> Findings:
    told = {"within_labels": within, "within_labels_sd": sd}
    key = tuple(HEAD.split("/"))
    return Findings(
        "t", "t", cells=[cell("a", flips=200)], scored=[scored("a", key, ndr, 0.7, **told)]
    )


@pytest.mark.parametrize(
    ("ndr", "within", "sd", "only"),
    [(0.57, 0.56, 0.02, True), (0.62, 0.56, 0.02, False), (0.31, 0.30, 0.02, False)],
)
def test_a_ranking_that_only_sorts_by_class_is_called_that(ndr, within, sd, only):
    found = sorted_by_class(ndr, within, sd)
    (row,) = tables(found)["detection"]
    assert row["only_by_class"] is only
    assert ("it only sorts by class" in said(found)[1]) is only


def test_what_adds_up_to_the_area_is_the_area():
    draw, noise = torch.Generator().manual_seed(2), torch.arange(50) < 9
    scores = torch.randn(50, generator=draw)
    places = scores.argsort().argsort()[noise]
    assert float(((50 - places - 0.5) / (50 - 4.5)).mean()) == pytest.approx(ndr_auc(scores, noise))
