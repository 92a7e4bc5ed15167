"""How many of their highest rows two scores share, in the table and on the page."""

from dataclasses import replace

import numpy as np
import pytest

from distinf.report.formats import number
from distinf.report.render import printed
from distinf.report.spectral.experiments import free_rankings as rankings_table
from distinf.report.spectral.experiments import overlaps as overlaps_table
from distinf.report.spectral.findings import ScoreSet
from distinf.report.spectral.tables import tables
from tests.report.test_page import render
from tests.support.findings import findings

POOL = 3
CLASSIC = np.array([9.0, 8.0, 7.0, 1.0, 0.0, np.nan])
SCALED = np.array([9.0, 8.0, 0.0, 7.0, np.inf, 1.0])  # not finite: never in a pool
TURNED = CLASSIC[::-1].copy()


def overlaps(run):
    return tables(run).get("overlaps", [])


def made(first, second):
    scores = [ScoreSet("bce", "classic", first), ScoreSet("bce", "theta-relative", second)]
    base = findings(scores=scores)
    return replace(base, headline=replace(base.headline, pool=POOL), variations={})


def test_shared_rows_are_counted_per_target():
    run = made({5: CLASSIC, 6: CLASSIC}, {5: SCALED, 6: TURNED})
    rows = overlaps(run)
    assert {r["target"]: r["shared"] for r in rows} == {5: 2, 6: 0}
    assert all(r["pool"] == POOL and (r["run"], r["other_run"]) == ("", "") for r in rows)


def test_a_run_beside_it_is_compared_by_the_same_score_alone():
    other = made({5: TURNED}, {5: SCALED})
    rows = overlaps(replace(made({5: CLASSIC}, {5: SCALED}), variations={"other": other}))
    across = {r["variant"]: r["shared"] for r in rows if r["run"] != r["other_run"]}
    assert across == {"classic": 0, "theta-relative": 3}


def test_the_page_has_least_to_most_over_the_targets():
    run = made({5: CLASSIC, 6: CLASSIC}, {5: SCALED, 6: TURNED})
    shown = printed(overlaps_table(run, overlaps(run)))
    assert [c.heading for c in shown.columns] == ["score", "and", "least", "most"]
    (line,) = shown.lines
    assert [c.text for c in line.cells] == ["bce classic", "bce theta-relative", "0", "2"]
    assert "how many two scores share" in render(run)


def test_one_score_has_nothing_to_share():
    run = replace(made({5: CLASSIC}, {}), scores=[ScoreSet("bce", "classic", {5: CLASSIC})])
    assert overlaps(run) == []
    assert "how many two scores share" not in render(run)


def test_a_free_ranking_is_compared_by_the_end_that_agrees():
    """Of the first target the ranking reversed, of the second one with two neighbours swapped."""
    mine = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, np.nan])
    scores = [ScoreSet("bce", "ell-relative", {5: mine, 6: mine})]
    swapped = np.array([5.0, 6.0, 4.0, 3.0, 2.0, 1.0, 9.0])
    free = ScoreSet("bce", "own_loss", {5: -mine, 6: swapped})
    base = findings(scores=scores, free_scores=[free], variations={})
    run = replace(base, headline=replace(base.headline, pool=2))
    rows = tables(run)["free_rankings"]
    assert [(r["target"], r["rows"], r["end"], r["shared"]) for r in rows] == [
        (5, 6, "lowest", 2), (6, 6, "highest", 2),
    ]  # fmt: skip
    rho = 1 - 6 * 2 / (6 * 35)  # Spearman: two ranks differ by 1
    assert [r["spearman"] for r in rows] == pytest.approx([-1, rho])
    assert [r["by_chance"] for r in rows] == pytest.approx([4 / 6, 4 / 6])
    shown = printed(rankings_table(run, rows))
    (line,) = shown.lines
    texts = [cell.text for cell in line.cells]
    assert texts[0] == "own loss"
    assert texts[1:4] == [number((rho - 1) / 2), number(-1.0), number(rho)]
    assert "Rankings that cost nothing beside bce ell-relative" in render(run)
    assert "free_rankings" not in tables(replace(run, free_scores=[]))


def test_a_ranking_that_sorts_by_class_is_called_that():
    """Of target 5 the classes lie apart (mean ranks 4 apart), of target 6 by turns (1 apart)."""
    apart, mixed = np.array([8.0, 7, 6, 5, 4, 3, 2, 1]), np.array([8.0, 4, 6, 2, 7, 3, 5, 1])
    scores = [ScoreSet("bce", "ell-relative", {5: apart, 6: mixed})]
    of = (("TDL-A", "TDL-B", "TDL-C"), np.array([0, 0, 0, 0, 2, 2, 2, 2]))
    base = findings(scores=scores, classes={"model": of}, variations={})
    run = replace(base, headline=replace(base.headline, pool=2))
    rows = tables(run)["classes"]
    shares = [tuple(r[f"{k}_pct"] for k in ("all", "helpful", "harmful")) for r in rows]
    assert [r["class"] for r in rows] == ["TDL-A", "TDL-C"] * 2
    assert shares == [(50, 100, 0), (50, 0, 100), (50, 50, 50), (50, 50, 50)]
    assert [r["sorted_pct"] for r in rows[::2]] == pytest.approx([100, 100 / 16])
    text = render(run)
    assert "The scores of target 5 sort the slots by class" in text
    assert "By model: share of all slots" in text
    one = replace(run, classes={"model": (("TDL-A",), np.zeros(8, np.int64))})
    assert "classes" not in tables(one)
