"""The report's numbers: the tables, and how a reader sees a number."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest

from distinf.report import formats
from distinf.report.rows import csv_text, json_text, plain
from distinf.report.spectral.findings import Findings, Outcome
from distinf.report.spectral.page import page
from distinf.report.spectral.tables import tables
from tests.support.findings import findings, no_difference


def test_summary_and_pairs_by_hand():
    made = Findings(
        "t", "t", outcomes=[
            Outcome("helpful", 1, 0, 30.0, non_target_change_pct=2.0),
            Outcome("helpful", 1, 1, 10.0, non_target_change_pct=4.0),
            Outcome("random", 1, 0, 5.0),
            Outcome("random", 1, 1, 15.0),
            Outcome("helpful", 2, 0, 20.0),
            Outcome("random", 2, 0, 20.0),
        ],
    )  # fmt: skip
    rows = tables(made)
    helpful, random = rows["summary"]
    assert helpful["mean_pct"] == 20.0
    assert random["mean_pct"] == pytest.approx(40 / 3)
    assert helpful["sd_pct"] == pytest.approx(10.0)
    assert helpful["non_target_mean_pct"] == 3.0
    (pair,) = rows["paired"]
    assert pair["points"] == pytest.approx(20 / 3)
    assert (pair["wins"], pair["ties"], pair["pairs"]) == (1, 1, 3)
    assert pair["win_share"] == pytest.approx(1 / 3)


def test_pairs_against_the_best_baseline_by_hand():
    """By the other target nearest is best for 1, and random for 2."""
    gaps = {
        "helpful": {(1, 0): 30.0, (1, 1): 20.0, (2, 0): 25.0},
        "random": {(1, 0): 20.0, (1, 1): 10.0, (2, 0): 0.0},
        "nearest": {(1, 0): 5.0, (1, 1): 5.0, (2, 0): 21.0},
        "harmful": {(1, 0): -9.0, (1, 1): -9.0, (2, 0): -9.0},
    }
    made = Findings("t", "t", outcomes=[
        Outcome(who, *at, gap) for who, group in gaps.items() for at, gap in group.items()
    ])  # fmt: skip
    rows = tables(made)["paired"]
    points = {(r["selection"], r["control"]): r["points"] for r in rows}
    assert points == {
        ("helpful", "random"): pytest.approx(15), ("harmful", "random"): pytest.approx(-19),
        ("nearest", "random"): pytest.approx(1 / 3), ("helpful", "nearest"): pytest.approx(44 / 3),
        ("harmful", "nearest"): pytest.approx(-58 / 3),
        ("helpful", "best baseline"): pytest.approx((25 + 15 + 25) / 3),
        ("harmful", "best baseline"): pytest.approx((-14 - 14 - 9) / 3),
    }  # fmt: skip
    assert rows[-1]["baselines"] == "random and nearest"
    baselines = [o for o in made.outcomes if o.selection in ("random", "nearest")]
    alone = replace(made, outcomes=baselines)
    (pair,) = tables(alone)["paired"]
    assert (pair["selection"], pair["control"]) == ("nearest", "random")
    assert (alone.guided(), page(alone).verdict) == ("helpful", "unknown")


def test_headline_leaves_other_arms_to_the_comparison():
    rows = tables(findings())
    assert [r["trials"] for r in rows["summary"]] == [30, 30, 30]
    assert len(rows["comparison"]) == 10
    assert all(r["pairs"] == 30 for r in rows["comparison"] if r["selection"] != "random")


def test_json_and_csv_hold_no_nan():
    rows = [{"a": 1.0, "b": math.nan}, {"a": None, "c": "x, y"}]
    assert json.loads(json_text(rows)) == [{"a": 1.0, "b": None}, {"a": None, "c": "x, y"}]
    assert list(csv.reader(io.StringIO(csv_text(rows)))) == [
        ["a", "b", "c"], ["1.0", "", ""], ["", "", "x, y"],
    ]  # fmt: skip
    for name, table in tables(no_difference()).items():
        assert json.loads(json_text(table)) is not None, name
        assert len(csv_text(table).splitlines()) >= len(table)


def test_findings_are_strict_json():
    made = findings(outcomes=[Outcome("helpful", 1, 0, math.nan)])
    kept = json.loads(json.dumps(plain(made), allow_nan=False))
    assert kept["outcomes"][0]["gap_reduction_pct"] is None
    assert kept["scores"][0]["scores"]["417"]["count"] == 4080
    assert kept["ritz"]["kept"] == 10


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formats.number(0.0017), "0.00170"),
        (formats.number(0.00042), "4.20·10⁻⁴"),
        (formats.number(-3.1e-14, 2), "−3.1·10⁻¹⁴"),
        (formats.number(1234.5), "1,234"),
        (formats.number(799_968), "799,968"),
        (formats.number(math.nan), "n/a"),
        (formats.fixed(-0.04), "0.0"),
        (formats.fixed(-1234.56), "−1,234.6"),
        (formats.signed(0.04), "0.0"),
        (formats.signed(2), "+2.0"),
        (formats.rounded(0.4), "0.4"),
        (formats.rounded(-12.6), "−13"),
        (formats.duration(252), "4\u202fmin 12\u202fs"),
        (formats.duration(11_100), "3\u202fh 05\u202fmin"),
        (formats.size(29_600_000_000), "29.6\u202fGB"),
        (formats.size(None), "n/a"),
    ],
)
def test_numbers_as_a_reader_sees_them(shown, expected):
    assert shown == expected
