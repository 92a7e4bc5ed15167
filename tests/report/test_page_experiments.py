"""The page of a whole study: Table 1, experiments, runs beside it, attribution, truncation."""

import csv
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from distinf.numerics.truncation import truncation_bound
from distinf.report import formats
from distinf.report.rows import csv_text, json_text, plain
from distinf.report.spectral.families import experiments
from distinf.report.spectral.findings import Attribution, Family, Findings
from distinf.report.spectral.page import page as made_of
from distinf.report.spectral.tables import tables
from distinf.studies.receiver.published import published
from tests.report.test_page import render
from tests.support.experiments import small, study, trials
from tests.support.findings import TARGETS
from tests.support.html import ATTACK, BROWSER, Document, opened


@pytest.fixture(scope="module")
def whole() -> Findings:
    """The study, with an attack for the name of an experiment, a run and a label."""
    made = study()
    strange = Family(ATTACK, ("pool", ATTACK), trials({417: 5.0}, pool=7))
    varied = {
        **made.variations,
        ATTACK: replace(made.variations["subset"], label=ATTACK, families=[strange]),
    }
    return replace(
        made,
        families=[*made.families, strange],
        variations=varied,
        scores=[s for s in made.scores if (s.loss, s.variant) == ("bce", "ell-relative")],
        label=f"4,080 slots{ATTACK}",
        training=None,
        top_samples=(),
        costs=(),
    )


@pytest.fixture(scope="module")
def rows(whole) -> dict[str, list[dict]]:
    return tables(whole)


@pytest.fixture(scope="module")
def page(whole) -> str:
    return render(whole)


@pytest.fixture(scope="module")
def document(page) -> Document:
    return Document(page)


def test_table_1_prints_every_cell_beside_the_published_one(document, rows):
    cells = rows["table_1"]
    place = document.text.rindex("Losses, variants and training sets")
    printed = document.text[place : document.text.index("Experiments", place)]
    for row in cells:
        spread = f"{formats.fixed(row['mean_pct'])} ± {formats.fixed(row['sd_pct'])}"
        assert spread in printed  # the document's text has plain spaces
        if row["source"] == "measured":
            assert f"{formats.fixed(row['low_pct'])} to {formats.fixed(row['high_pct'])}" in printed
    best = [r for r in cells if r["place"] == 1]
    assert len(best) == 4  # two training sets, here and published
    bold = re.findall(r"<strong>([^<]*)</strong>", document.source)
    expected = {f"{formats.fixed(r['mean_pct'])}" for r in best}
    assert expected == {b.split(formats.SPACE)[0] for b in bold}


def test_published_numbers_are_the_papers():
    rows = {(p.column, p.loss, p.variant): (p.mean_pct, p.sd_pct) for p in published()}
    assert len(rows) == 17
    assert rows["200k", "bce", "classic"] == (68.3, 7.3)
    assert rows["800k", "bce", "classic"] == (11.3, 41.9)
    assert rows["800k", "bce", "ell-relative"] == (47.8, 8.5)
    assert rows["200k", "ber", "ell-relative"] == (64.4, 13.1)
    assert rows["800k", "", ""] == (13.9, 19.5)
    assert {p.run for p in published() if p.column == "200k"} == {"reduced"}


# Runs, effects, rates


def test_effects_hold_targets_and_others_per_receiver(whole, rows):
    mine = [r for r in rows["effects"] if r["run"] == "" and r["experiment"] == ""]
    by_role = {r["role"]: r for r in mine}
    assert list(by_role) == ["reference", "baseline", "before", "random", "helpful"]
    assert by_role["before"]["target_metric"] == pytest.approx(np.mean([0.062, 0.072, 0.082]))
    assert by_role["before"]["non_target_metric"] == whole.non_target_before
    mine = [o for o in whole.outcomes if o.selection == "helpful"]
    after = [o.non_target_metric for o in mine]
    assert by_role["helpful"]["non_target_metric"] == pytest.approx(np.mean(after))
    gaps = [o.non_target_gap_reduction_pct for o in mine]
    assert by_role["helpful"]["non_target_gap_mean_pct"] == pytest.approx(np.mean(gaps))
    assert {r["experiment"] for r in rows["effects"]} == {"", "multi"}


def test_a_run_beside_is_told_by_its_own_guided_selection(whole, rows):
    told = {r["run"]: r for r in rows["variations"]}
    subset = whole.variations["subset"]
    assert subset.guided() == "group"
    assert told["subset"]["guided"] == "group"
    assert told["subset"]["vs_pairs"] == 30
    assert told[""]["evaluation_metric"] == pytest.approx(whole.evaluation.metric_E.mean())
    said = made_of(subset)
    assert "group minus random is" in said.answer[1]
    assert "30 of 30 paired trials" in said.answer[1]


def test_a_run_beside_tells_the_deviations_that_are_its_own():
    made = study()
    reduced = replace(made.variations["reduced"], deviations=[*made.deviations, "Mean."])
    page = render(replace(made, variations={**made.variations, "reduced": reduced}))
    section = page.split('id="variation-1"')[1].split('id="variation-2"')[0]
    assert "<li>Mean.</li>" in section
    assert made.deviations[0] not in section


def test_rate_rows_name_the_best_step(whole, rows):
    (row,) = [r for r in rows["rates"] if r["rate"] == 0.001]
    paths = [o.metric_by_step for f in whole.families for o in f.outcomes
             if f.name == "rates" and o.lr == 0.001]  # fmt: skip
    mean = np.mean(paths, axis=0)
    assert row["best_step"] == int(mean.argmin())
    assert row["best_mean"] == pytest.approx(mean.min())
    assert row["early_mean"] == pytest.approx(mean[3])


# Machinery


def test_truncation_rows_are_the_bounds(whole, rows):
    terms = rows["truncation"]
    values = whole.ritz.converged_values()
    both = zip(whole.ritz.all_values, whole.ritz.all_residuals, strict=True)
    assert values == [v for v, r in both if abs(r / v) <= 0.1]
    assert 10 < len(values) < 60
    bounds = truncation_bound(values)
    assert [r["bound_max"] for r in terms] == pytest.approx(bounds[1:].tolist())
    assert terms[0]["lowered_max_pct"] == pytest.approx(100 * float(1 - bounds[1] / bounds[0]))
    assert "truncation" not in tables(small())


def test_attribution_sums_add_up_to_the_score(whole, rows):
    parts = {a.rank: a.parts_SF for a in whole.attributions}
    for row in rows["attributions"]:
        assert row["sum"] == pytest.approx(row["score"])
        assert row["left_out"] == 48
        mine = [r for r in rows["attribution_sums"] if r["rank"] == row["rank"]]
        for axis in ("symbol", "subcarrier"):
            sums = [r["sum"] for r in mine if r["axis"] == axis]
            over = 1 if axis == "symbol" else 0
            assert sums == pytest.approx(np.nansum(parts[row["rank"]], axis=over).tolist())
            assert row[f"strongest_{axis}"] == int(np.argmax(np.abs(sums)))


def test_attribution_of_one_axis_and_of_nothing_finite_do_not_break_the_page():
    line = Attribution(1, 5, 1, 0.3, np.array([0.1, 0.2, math.nan]), ("token", "token"))
    void = Attribution(2, 6, -1, 0.0, np.full((3, 4), math.nan))
    page = render(small(attributions=[line, void]))
    assert 'id="figure-attribution-1"' in page
    assert 'id="figure-attribution-2"' not in page
    assert not re.search(r"\bnan\b", Document(page).text, re.IGNORECASE)


def test_all_tables_are_strict_json_and_csv(whole, rows):
    for name, table in rows.items():
        assert json.loads(json_text(table)) is not None, name
        read = list(csv.DictReader(io.StringIO(csv_text(table))))
        assert len(read) == len(table), name
    json.dumps(plain(whole), allow_nan=False)


# The file


def test_sections_come_in_order_and_only_with_their_data(document):
    order = ["answer", "effect", "table-1", "experiments", "variations", "targets", "scores",
             "attribution", "curvature", "remarks", "reading", "provenance"]  # fmt: skip
    ids = document.values("id")
    assert [i for i in ids if i in order] == order
    plain = set(Document(render(small())).values("id"))
    assert not plain & {"table-1", "experiments", "variations", "attribution", "figure-truncation"}


def test_every_experiment_has_a_picture_and_a_table(document, whole):
    ids = document.values("id")
    for place, family in enumerate(experiments(whole), 1):
        assert f"experiment-{place}" in ids
        assert f"figure-experiment-{place}" in ids, family.name
    tables_ = [tag for tag, _ in document.tags if tag == "table"]
    assert len(tables_) > len(experiments(whole))
    assert {"figure-table-1", "figure-variations", "figure-score-runs", "figure-truncation",
            "figure-axis", f"figure-attribution-{TARGETS[0]}"} <= set(ids)  # fmt: skip


def test_whole_page_asks_for_nothing_and_runs_nothing(document, page):
    names = {tag for tag, _ in document.tags}
    assert not names & {"img", "iframe", "object", "form"}
    assert page.count("<script") == 1
    assert "onerror" not in {name for _, attrs in document.tags for name in attrs}
    assert document.text.count("<script>alert(1)</script>") > 10
    images = [attrs["xlink:href"] or "" for tag, attrs in document.tags if tag == "image"]
    assert images
    assert all(i.startswith("data:image/png;base64,") for i in images)
    ids = document.values("id")
    assert len(ids) == len(set(ids))
    used = {h[1:] for h in document.values("href") if h.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert used <= set(ids)
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", svgs)
    assert len(page) < 1_500_000


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH to open the page in")
def test_a_browser_opens_the_whole_page_without_complaint(page, tmp_path):
    rendered = Document(opened(page, tmp_path))
    assert rendered.text.startswith("Targeted fine-tuning of a neural receiver")
    drawn = len([tag for tag, _ in rendered.tags if tag == "svg"])
    assert drawn == len([tag for tag, _ in Document(page).tags if tag == "svg"])


def test_a_model_no_better_than_the_baseline_is_said_first():
    made = study()
    beaten = replace(made, non_target_before=0.2, non_target_baseline=0.121)
    lead = made_of(beaten).answer[0]
    assert lead.startswith("The trained model is no better than the ")
    assert "(BER 0.200 against 0.121)" in lead
    assert "yet to learn" not in made_of(made).answer[0]
