"""Experiments by hand: how arms are told apart, compared, ranked and mapped."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from distinf.report import formats
from distinf.report.maps import tinted
from distinf.report.render import printed
from distinf.report.schema import Section, Text
from distinf.report.spectral.arm_figures import relative
from distinf.report.spectral.families import (
    arms,
    base_of,
    control_of,
    experiments,
    fixed,
    kind,
    table_1,
    varied,
)
from distinf.report.spectral.findings import Family, Findings
from distinf.report.spectral.page import page
from distinf.report.spectral.tables import tables
from distinf.tasks.task import Published
from tests.support.experiments import small, trials
from tests.support.html import parts as parts_of
from tests.support.html import picture


def note(made: Findings) -> str:
    items = section(made, "experiment-1").items
    return next(i.text for i in items if isinstance(i, Text))


def section(made: Findings, anchor: str) -> Section:
    every = [i for s in page(made).sections for i in (s, *s.items)]
    return next(s for s in every if isinstance(s, Section) and s.anchor == anchor)


def arm_rows(made: Findings, name: str) -> dict[str, dict]:
    return {r["arm"]: r for r in tables(made)["arms"] if r["experiment"] == name}


# Arms


def test_an_arm_is_compared_with_its_own_random_trials_and_with_the_base():
    family = Family(
        "rank", ("adapter", "selection"),
        trials({1: 41.0, 2: 45.0}) + trials({1: 30.0, 2: 20.0}, adapter=4)
        + trials({1: 9.0, 2: 13.0}, adapter=4, selection="random"),
    )  # fmt: skip
    rows = arm_rows(small(family), "rank")
    base, ranked = rows["helpful, all parameters"], rows["helpful, adapters of rank 4"]
    assert base["base"]
    assert not ranked["base"]
    assert base["vs_random_points"] == pytest.approx((31 + 35) / 2)  # the headline's: same tuning
    assert ranked["vs_random_points"] == pytest.approx((21 + 7) / 2)  # the family's own
    assert ranked["vs_base_points"] == pytest.approx((-11 - 25) / 2)
    assert ranked["base_pairs"] == 12
    assert "vs_base_points" not in rows["random, adapters of rank 4"]


def test_without_an_arm_like_the_headline_the_headline_is_the_base():
    family = Family(
        "rank", ("adapter",), trials({1: 30.0}, adapter=2) + trials({1: 20.0}, adapter=4)
    )
    made = small(family)
    assert base_of(made, family) == [o for o in made.outcomes if o.selection == "helpful"]
    rows = arm_rows(made, "rank")
    assert rows["adapters of rank 4"]["vs_base_points"] == pytest.approx(-20)
    assert "vs_random_points" not in rows["adapters of rank 4"]  # no random trial was tuned so
    assert control_of(made, family, family.outcomes) == []


def test_settings_beyond_the_fields_tell_arms_apart():
    family = Family(
        "length", ("steps", "optimizer"),
        [replace(o, settings={"steps": n, "optimizer": how})
         for n in (3, 9) for how in ("fresh", "kept") for o in trials({1: float(n)})],
    )  # fmt: skip
    assert varied(family) == ("steps", "optimizer")
    assert len(arms(family)) == 4
    assert "9 steps, optimizer kept" in arm_rows(small(family), "length")


def test_ascent_joins_the_family_that_varies_the_update():
    path = [0.06] * 4
    both = [
        replace(o, metric_by_step=path)
        for update in ("first-order", "second-order")
        for o in trials({1: 5.0}, update=update)
    ]
    ascent = trials({1: -500.0}, update="ascent", selection="harmful")
    ascent = [replace(o, metric_by_step=path) for o in ascent]
    ascent += [replace(o, selection="helpful") for o in ascent]
    elsewhere = [replace(o, target=2) for o in ascent]
    made = small(
        Family("ascent", (), ascent), Family("updates", ("update",), both),
        Family("apart", (), elsewhere),
    )  # fmt: skip
    joined = experiments(made)
    assert [f.name for f in joined] == ["updates", "apart"]
    assert kind(joined[0]) == "updates"
    assert {o.update for o in joined[0].outcomes} == {"first-order", "second-order", "ascent"}


def test_setup_tells_what_differs_from_the_headline():
    several = trials({1: 20.0}, aim="multi-target", pool=50) + trials(
        {1: 25.0}, aim="multi-target", pool=200
    )
    several = [replace(o, settings={"steps": 15}) for o in several]
    family = Family("several", ("pool",), several)
    made = small(family)
    assert fixed(made, family) == {"aim": "multi-target", "steps": 15, "targets": 1}
    assert note(made).startswith(
        "Unlike the headline: multi-target, 15 steps, on 1 targets. Base arm: pool of 50."
    )


@pytest.mark.parametrize(
    ("gap", "seeds", "words"),
    [
        (70.0, 6, "1 of 1 ahead of and 0 behind the base arm"),
        (42.0, 6, "0 of 1 ahead of and 0 behind the base arm"),
        (9.0, 6, "0 of 1 ahead of and 1 behind the base arm"),
        (70.0, 2, "0 of 0 ahead of and 0 behind the base arm"),
    ],
)
def test_reading_follows_the_interval_of_the_difference(gap, seeds, words):
    rng = np.random.default_rng(2)
    noisy = [
        replace(o, gap_reduction_pct=o.gap_reduction_pct + 4 * rng.standard_normal())
        for o in trials({1: gap}, pool=200)
    ]
    family = Family("pools", ("pool",), [*trials({1: 40.0}), *noisy][: 6 + seeds])
    assert words in note(small(family))


# Table 1


def cross(values: dict[tuple[str, str], float]) -> Family:
    outcomes = [
        o for (loss, variant), gap in values.items()
        for o in trials({1: gap}, loss=loss, variant=variant)
    ]  # fmt: skip
    return Family("table1", ("loss", "variant"), [*outcomes, *trials({1: 3.0}, selection="random")])


def test_table_1_ranks_each_column_by_its_means_and_leaves_random_out():
    ours = cross({("bce", "classic"): 20.0, ("bce", "tracin"): 30.0, ("ber", "classic"): 10.0})
    theirs = cross({("bce", "classic"): 50.0, ("bce", "tracin"): 1.0, ("ber", "classic"): 2.0})
    theirs_printed = [
        Published("source", "bce", "classic", "helpful", 11.0, 2.0, column="800k"),
        Published("source", "ber", "classic", "helpful", 12.0, None, column="800k"),
        Published("source", "", "", "random", 99.0, column="800k"),
    ]
    made = small(
        ours, published=theirs_printed, variations={"reduced": small(theirs, label="9 slots")}
    )
    rows = tables(made)["table_1"]
    places = {
        (r["column"], r["loss"], r["variant"]): r["place"]
        for r in rows
        if r["selection"] == "helpful"
    }
    assert places["this run", "bce", "tracin"] == 1
    assert places["this run", "bce", "classic"] == 2
    assert places["reduced: 9 slots", "bce", "classic"] == 1
    assert places["800k", "ber", "classic"] == 1
    assert all(r["place"] is None for r in rows if r["selection"] == "random")
    assert math.isnan(next(r["sd_pct"] for r in rows if r["mean_pct"] == 12.0))
    same = small(ours, published=theirs_printed, label="800k", variations={})
    table = next(t for t in parts_of(page(same)) if getattr(t, "file", "") == "table_1")
    first = printed(table).lines[0]
    assert [c.text for c in first.cells[2:]] == [
        "22.5 ± 1.9".replace(" ", formats.SPACE),
        "11.0 ± 2.0".replace(" ", formats.SPACE),
    ]
    assert table_1(made) is ours
    assert experiments(made) == []


def test_rates_are_mapped_against_where_the_metric_began():
    metric_RS = np.array([[0.06, 0.03, 0.06], [0.06, 0.12, math.nan]])
    gains = relative(metric_RS)
    np.testing.assert_allclose(gains[0], [0, math.log(2), 0])
    assert gains[1, 1] == pytest.approx(-math.log(2))
    assert math.isnan(gains[1, 2])


@pytest.mark.parametrize(("worst", "crossed"), [(0.2, 0), (0.24, 0), (0.25, 1), (0.48, 1)])
def test_a_metric_beyond_four_times_what_it_was_is_crossed(worst, crossed):
    """From 0.06: the scale ends at 0.24, and its label says that more lies beyond it."""
    swept = [replace(o, lr=lr, metric_by_step=[0.06, 0.05, 0.05, worst if lr == 0.1 else 0.05])
             for lr in (0.01, 0.02, 0.1) for o in trials({1: 5.0})]  # fmt: skip
    drawn = picture(page(small(Family("rates", ("lr",), swept))), "experiment-1")
    assert drawn is not None
    crosses = re.findall(r'<path id="[^"]*" d="M [-\d. ]+ L [-\d. ]+ M', drawn.replace("\n", " "))
    assert (len(crosses), "≥0.24" in drawn) == (crossed, bool(crossed))


def test_a_map_fades_at_zero_and_greys_what_is_missing():
    colours = tinted(np.array([[1.0, -2.0, 0.0, math.nan, 0.5]]))[0]
    assert colours[0].tolist()[3] == colours[1].tolist()[3] == 255
    assert colours[2, 3] == 0
    assert len(set(colours[3, :3].tolist())) == 1
    assert colours[0, 1] > colours[0, 0]  # helpful: green
    assert colours[1, 0] > colours[1, 1]  # harmful: orange
    assert colours[4, 3] == 128
