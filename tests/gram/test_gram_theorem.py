"""Theorem 5.1 counted on a run's own gradients, against all of them taken anew in float64."""

from itertools import permutations

import numpy as np
import pytest
import torch

from distinf.gram import paired
from distinf.gram.session import QUERY, TRAIN
from distinf.gram.tiles import slab_units
from distinf.numerics.separation import GroupProducts, separations
from distinf.report.gram import findings
from distinf.report.gram.tables import tables
from tests.gram.test_gram_route import PLAIN, dense, scored, session_of
from tests.numerics.test_separation import counted
from tests.support.gram_findings import render

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired, "EACH", 9)
        patch.setattr(paired, "QUERIES", 8)
        patch.setattr(paired, "CHUNK", 7)
        yield scored(session_of(tmp_path_factory.mktemp("theorem") / "run"))


def taken(session, name):
    """The rows and queries that a cell's counts are of."""
    cell = session.cell(name)
    stored = [
        session.arrays(slab_units(session.settings, cell, "sums", slab)[0])
        for slab in cell.blocks.slabs
    ]
    for each in stored[1:]:  # the same in every slab
        np.testing.assert_array_equal(each[paired.ROWS], stored[0][paired.ROWS])
        np.testing.assert_array_equal(each[paired.ASKED], stored[0][paired.ASKED])
    return stored[0][paired.ROWS], stored[0][paired.ASKED]


def test_rows_are_drawn_of_both_kinds_and_bounded(run):
    for name, cell in run.outline.cells.items():
        rows, queries = taken(run, name)
        noisy = run.task(name).flipped()[rows]
        assert (noisy.sum(), (~noisy).sum(), len(queries)) == (9, 9, 8)
        assert len(set(rows)) == 18
        assert rows.max() < cell.rows[TRAIN]
        assert queries.max() < cell.rows[QUERY]
        assert sorted(rows) == rows.tolist()


def test_counts_are_those_of_the_gradients_taken_anew_in_float64(run):
    found = findings.findings(run).separated
    for name, cell in run.outline.cells.items():
        (train_of, query_of), (rows, queries) = dense(run, name), taken(run, name)
        noisy = torch.from_numpy(run.task(name).flipped()[rows])
        of = {
            group: tuple(
                torch.cat([grads[block][ids] for block in members], 1)
                for grads, ids in ((train_of, rows), (query_of, queries))
            )
            for group, members in cell.groups.items()
        }
        mine = {(s.theta, s.w, s.found.level): s.found for s in found if s.cell == name}
        parted = [
            (theta, w)
            for theta, w in permutations(cell.groups, 2)
            if not {*cell.groups[theta]} & {*cell.groups[w]}
        ]
        assert {pair[:2] for pair in mine} == set(parted)
        assert any("embedding" in pair for pair in parted)
        for (theta, w, level), f in mine.items():
            ours = (f.premises, f.claimed, f.triples, f.aligned, f.more)
            assert ours == counted(of[theta], of[w], noisy, level), (theta, w, level)
    assert sum(s.found.premises for s in found if s.found.level == 2) > 0


def test_they_stand_on_the_page_and_in_the_tables(run):
    found = findings.findings(run)
    rows = tables(found)["theorem"]
    every = {r["least_c"]: r for r in rows if (r["theta"], r["w"]) == ("any", "any")}
    for level, row in every.items():
        mine = [s.found for s in found.separated if s.found.level == level]
        assert row["pairs"] == sum(f.pairs for f in mine)
        assert row["more"] == sum(f.more for f in mine)
        if row["triples"]:
            assert row["more_pct"] == pytest.approx(100 * row["more"] / row["triples"])
    apart = [r for r in rows if r["theta"] != "any" and r["least_c"] == 2.0]
    assert sum(r["premises"] for r in apart) == every[2.0]["premises"]
    assert "Theorem 5.1 of Vitel and Chhabra on this run" in render(found, tables(found))


def test_another_run_of_the_same_cells_takes_the_same_rows(run, tmp_path):
    other = session_of(tmp_path / "run", report={"rows": 3})
    for name, cell in run.outline.cells.items():
        assert other.cell(name).keys["gradients"] == cell.keys["gradients"]
    rows = np.arange(50)
    cells = [run.cell("words-0"), other.cell("words-0"), run.cell("words-1")]
    first, again, another = (paired._drawn(cell, rows, 9).tolist() for cell in cells)
    assert first == again != another


def test_without_known_wrong_labels_there_is_no_such_table(tmp_path):
    session = scored(session_of(tmp_path / "run", task=PLAIN))
    assert "theorem" not in tables(findings.findings(session))


def test_products_in_pieces_are_those_of_the_whole(monkeypatch):
    draw = torch.Generator().manual_seed(3)
    rows, queries = (torch.randn(n, 23, generator=draw) for n in (5, 4))
    monkeypatch.setattr(paired, "CHUNK", 7)
    among, asked = paired._products(rows, queries)
    wide = rows.double()
    torch.testing.assert_close(among, wide @ wide.T, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(asked, queries.double() @ wide.T, rtol=1e-14, atol=1e-14)
    whole = GroupProducts(among, asked)
    assert separations(whole, whole, torch.arange(5) < 2)[1].premises == 0  # C(w) > C(theta): never
