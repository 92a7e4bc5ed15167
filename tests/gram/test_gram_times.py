"""What estimators took by layer group, with a clock on which every step takes a second."""

from itertools import count

import pytest
import torch

from distinf.engine.session import row_ranges
from distinf.gram import gram, scores, stopwatch, tiles
from distinf.gram.blocks import SPARSE
from distinf.gram.session import QUERY, TRAIN
from distinf.gram.stopwatch import TOOK, Stopwatch, by_width
from distinf.report.gram import findings
from distinf.report.gram.tables import tables
from tests.gram.test_gram_route import scored, session_of
from tests.support.gram_findings import render

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A wall second and two of the processor for each step that holds no other."""
    ticks = count()

    def now(self):
        tick = float(next(ticks))
        return tick, 2 * tick

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stopwatch, "_now", now)
        yield scored(session_of(tmp_path_factory.mktemp("times") / "run"))


def times(session, name):
    found = findings.estimator_times(session, session.cell(name))
    return {(t["estimator"], t["group"]): t for t in found}


def test_tracin_takes_its_blocks_part_of_the_products_and_its_own_sums(run):
    for name, cell in run.outline.cells.items():
        found = times(run, name)
        ranges = len(row_ranges(cell.rows[QUERY], tiles.queries_at_once(cell.rows[TRAIN])))
        for group, members in cell.groups.items():
            expected = 0.0
            for slab in cell.blocks.slabs:
                shares = by_width(cell.blocks.of(slab))
                steps = 2 if slab == SPARSE else 1  # read and scaled, multiplied; or all at once
                products = len(tiles.slab_units(run.settings, cell, "cross", slab)) * steps
                for block in cell.blocks.of(slab):
                    if block.name in members:  # its products are read, and its scores added up
                        expected += products * shares[block.name] + 2 * ranges
            took = found["tracin", group]
            assert took["wall_s"] == pytest.approx(expected)
            assert took["processor_s"] == pytest.approx(2 * expected)
            assert took["alone_s"] == pytest.approx(ranges * len(members))


def test_groups_of_all_blocks_add_up_to_all_of_them(run):
    for name, cell in run.outline.cells.items():
        found = times(run, name)
        parts = [g for g in cell.groups if g not in ("all", "embedding")]
        assert {b for g in parts for b in cell.groups[g]} == {*cell.groups["all"]}
        for estimator in ("tracin", "cosine", "datainf", "fisher"):
            whole = sum(found[estimator, g]["wall_s"] for g in parts)
            assert found[estimator, "all"]["wall_s"] == pytest.approx(whole)
        assert found["datainf", "all"]["wall_s"] > found["tracin", "all"]["wall_s"]
        words = {e for e, g in found if g == "embedding"}
        assert {"tracin-we-top10", "tracin-we-both10"} <= words
        assert not [g for e, g in found if e == "tracin-we-top10" and g != "embedding"]


def test_a_joint_inverse_counts_for_its_own_group_alone(run):
    cell = run.outline.cells["words-0"]
    notes = [n for u in scores.cell_units(run.settings, cell)
             for n in run.record(u)["summary"][TOOK]]  # fmt: skip
    joint = {n["of"]: n["wall_s"] for n in notes if n["estimators"] == ["fisher-joint"]}
    assert joint == {stopwatch.joint_name(group): 1.0 for group in cell.groups}
    found = times(run, "words-0")
    (first, *_) = [g for g in cell.groups if g not in ("all", "embedding")]
    blocks = {*cell.groups[first]}
    every = [n for p in tiles.PHASES for u in tiles.phase_units(run.settings, cell, p)
             for n in run.record(u)["summary"][TOOK]]  # fmt: skip
    mine = [n["wall_s"] for n in every if n["of"] in blocks and "fisher-joint" in n["estimators"]]
    assert found["fisher-joint", first]["wall_s"] == pytest.approx(sum(mine) + 1.0)


def test_they_are_kept_with_the_work_and_stand_on_the_page_and_in_the_tables(run):
    again = session_of(run.blobs.root)
    before = [times(again, name) for name in again.outline.cells]
    scored(again)  # nothing is left to do, and nothing is measured again
    assert before == [times(again, name) for name in again.outline.cells]
    found = findings.findings(again)
    rows = tables(found)["estimator_times"]
    assert {(r["estimator"], r["group"]) for r in rows} == set(before[0])
    row = next(r for r in rows if (r["estimator"], r["group"]) == ("datainf", "all"))
    mean = sum(each["datainf", "all"]["wall_s"] for each in before) / len(before)
    assert row["wall_s"] == pytest.approx(mean)
    assert row["cells"] == len(before)
    assert "Wall time of each estimator, mean over cells" in render(found, tables(found))


def test_a_run_whose_records_are_older_has_no_such_table(run, monkeypatch):
    for module in (gram, scores):
        assert module.TOOK == TOOK
    monkeypatch.setattr(findings, "TOOK", "not noted then")
    assert times(run, "words-0") == {}
    assert "estimator_times" not in tables(findings.findings(run))


def test_a_step_that_no_estimator_needs_is_not_noted():
    watch = Stopwatch(torch.device("cpu"))
    with watch.step([], {"a": 1.0}):
        pass
    with watch.step(["tracin"], {}):
        pass
    assert watch.notes() == []
    with watch.step(["tracin"], {"a": 0.25, "b": 0.75}):
        sum(range(1000))
    first, second = watch.notes()
    assert second["wall_s"] == pytest.approx(3 * first["wall_s"]) != 0
