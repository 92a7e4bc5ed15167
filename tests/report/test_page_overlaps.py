"""How many of their highest rows two scores share, in the table and on the page."""

from dataclasses import replace

import numpy as np

from distinf.report.render import printed
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
