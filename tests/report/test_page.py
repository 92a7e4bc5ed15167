"""The report page: its statistics, its wording, and that the file needs and leaks nothing."""

import math
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distinf.report import formats
from distinf.report.provenance import COSTS
from distinf.report.render import html, printed
from distinf.report.schema import Figure
from distinf.report.spectral.findings import (
    EvaluationPoints,
    Findings,
    Headline,
    MetricInfo,
    Outcome,
    Provenance,
    ScoreSet,
)
from distinf.report.spectral.page import page as made_of
from distinf.report.spectral.report import _named
from distinf.report.spectral.tables import tables
from distinf.report.svg import COLOR
from tests.support.findings import TARGETS, findings, outcomes
from tests.support.html import ATTACK, BROWSER, Document, parts, picture

__all__ = ["ATTACK", "BROWSER", "Document"]


def render(made: Findings) -> str:
    rows = tables(made)
    return html(made_of(made, rows), rows)


@pytest.fixture(scope="module")
def page() -> str:
    return render(findings())


@pytest.fixture(scope="module")
def document(page: str) -> Document:
    return Document(page)


# Wording


@pytest.mark.parametrize(
    ("helpful", "verdict", "words"),
    [
        (45.0, "better", "better slots than chance"),
        (3.0, "none", "does not show a difference"),
        (-45.0, "worse", "chance picked better slots"),
    ],
)
def test_verdict_follows_the_interval_of_the_difference(helpful, verdict, words):
    rng = np.random.default_rng(11)
    made = findings(outcomes=outcomes({"helpful": helpful, "random": 3.0}, rng))
    said = made_of(made)
    (pair,) = tables(made)["paired"]
    signs = np.sign([pair["low_points"], pair["high_points"]]).tolist()
    assert signs == {"better": [1, 1], "none": [-1, 1], "worse": [-1, -1]}[verdict]
    assert said.verdict == verdict
    assert words in said.answer[0]
    assert f"{pair['wins']} of 30 paired trials" in said.answer[1]
    assert len(said.answer) == 3


@pytest.mark.parametrize(
    ("nearest", "verdict", "words"),
    [
        (60.0, "worse", "by the other trials) picked better slots than influence did"),
        (45.0, "none", "does not show a difference between influence and the best choice without"),
        (-9.0, "better", "picked better slots than the best choice without influence (random, "),
    ],
)
def test_the_best_baseline_decides_and_chance_alone_does_not(nearest, verdict, words):
    """Influence is far ahead of chance in each."""
    means = {"helpful": 45.0, "random": 3.0, "nearest": nearest}
    said = made_of(findings(outcomes=outcomes(means, np.random.default_rng(5))))
    assert said.verdict == verdict
    assert words in said.answer[0]
    assert "but chance" not in said.answer[0]
    best = "random" if nearest < 0 else "nearest"
    assert f"helpful minus best baseline ({best}) is" in said.answer[1]
    other = "nearest" if nearest < 0 else "random"
    assert re.search(rf"; minus {other} it is \+\d", said.answer[1])
    labels = [card.label for card in said.cards if "−" in card.label or "beat" in card.label]
    assert labels == [
        f"helpful − {other}", f"helpful − best baseline ({best})",
        f"helpful beat best baseline ({best})",
    ]  # fmt: skip


def test_baselines_are_the_last_rows_beside_published_numbers_by_their_own_names():
    trials = outcomes({"nearest": 9.0, "random": 3.0, "helpful": 45.0}, np.random.default_rng(5))
    trials = [replace(o, loss="", variant="") if o.selection == "nearest" else o for o in trials]
    (table,) = (
        t
        for t in parts(made_of(findings(outcomes=trials)))
        if getattr(t, "file", "") == "comparison"
    )
    shown = [line.cells[:2] for line in printed(table).lines]
    assert [tuple(cell.text for cell in cells) for cells in shown] == [
        ("bce", "ell-relative"), ("nearest", ""), ("random", ""),
    ]  # fmt: skip


def test_the_table_of_selections_links_its_files(document):
    assert {"summary.csv", "summary.json"} <= set(document.values("href"))


def test_of_chance_alone_the_page_says_so():
    made = findings()
    assert made_of(made).answer[0].endswith("No choice without influence was tried but chance.")
    (pair,) = (r for r in tables(made)["paired"] if r["selection"] == "helpful")
    assert pair["control"] == pair["baselines"] == "random"


@pytest.mark.parametrize(
    ("change", "role"), [(24.0, "harmful"), (-8.0, "helpful"), (0.0, "ink")]
)  # fmt: skip
def test_the_answer_tells_the_price(change, role):
    spread = [-1.0, 1.0, 0.5, -0.5]
    trials = [
        replace(o, non_target_change_pct=change + spread[k % 4])
        for k, o in enumerate(outcomes({"helpful": 45.0, "random": 3.0}, np.random.default_rng(3)))
    ]
    said = made_of(findings(outcomes=trials))
    told = f"The BER of all other slots changed by {formats.signed(change)}{formats.SPACE}%"
    assert said.answer[2].startswith(told)
    assert said.cards[-1].role == role


def test_answer_quotes_the_tables(document):
    rows = {r["selection"]: r for r in tables(findings())["summary"]}
    text = document.text.replace(formats.SPACE, " ")
    told = []
    for selection in ("helpful", "random", "harmful"):
        mean, low, high = (
            formats.rounded(rows[selection][f"{k}_pct"]) for k in ("mean", "low", "high")
        )
        told.append(f"{selection} {mean} % ({low} to {high})")
    assert f"After 3 fine-tuning steps, of the gap closed: {', '.join(told)}" in text
    assert "Only 3 targets" in text


def test_printed_tables_equal_the_rows(document):
    rows = tables(findings())
    printed = {tuple(row) for row in document.lines}
    for row in rows["summary"]:
        line = next(p for p in printed if p[:2] == (row["selection"], str(row["trials"])))
        spread = f"{formats.fixed(row['mean_pct'])} ± {formats.fixed(row['sd_pct'])}"
        low, high = formats.fixed(row["low_pct"]), formats.fixed(row["high_pct"])
        assert line[2].replace(formats.SPACE, " ") == f"{spread}{low} to {high}"
    for row in rows["targets"]:
        assert any(
            formats.number(row["metric"]) in p and str(row["id"]) == p[0] for p in printed if p
        )


@pytest.mark.parametrize(("pairs", "verdict"), [(1, "unknown"), (5, "unknown"), (6, "better")])
def test_too_few_trials_are_not_judged(pairs, verdict):
    trials = [Outcome("helpful", 417, seed, 50.0 + seed) for seed in range(pairs)]
    trials += [Outcome("random", 417, seed, 1.0) for seed in range(pairs)]
    said = made_of(findings(outcomes=trials, headline=Headline(noun="slots")))
    warned = " ".join(said.warnings)
    assert said.verdict == verdict
    assert ("too few paired trials" in said.answer[0]) == (verdict == "unknown")
    assert ("cannot rule out chance" in warned) == (verdict == "unknown")
    assert ("no interval" in said.answer[1]) == (pairs == 1)
    assert "One target" in warned


def test_a_run_without_actions_says_so():
    page = render(findings(outcomes=()))
    assert "did not act on its scores" in page
    assert 'id="effect"' in page  # the axis curves are still there
    assert 'id="figure-gap"' not in page


def test_without_reference_the_gap_is_the_metric():
    text = Document(render(findings(metric=MetricInfo("BER")))).text.replace(formats.SPACE, " ")
    assert "less BER of the targets: helpful" in text
    assert "the gap is BER itself" in text
    assert (
        "genie" not in text.split("Which training slots")[1].split("Answer")[1].split("Targets")[0]
    )


def test_diverged_trials_are_told():
    made = findings()
    first = next(k for k, o in enumerate(made.outcomes) if o.selection == "helpful")
    broken = list(made.outcomes)
    for k in (first, first + 1):
        path = [0.06, math.nan, math.nan, math.nan]
        broken[k] = replace(broken[k], gap_reduction_pct=math.nan, metric_by_step=path)
    page = render(replace(made, outcomes=broken))
    text = Document(page).text
    assert "left out of every mean (2 of helpful)" in text
    assert "without a finite result, 2, are not drawn" in text
    assert not re.search(r"\bnan\b|\binf\b", text, re.IGNORECASE)
    assert tables(replace(made, outcomes=broken))["paired"][0]["pairs"] == 28


# The file


def test_page_asks_for_nothing(document, page):
    names = {tag for tag, _ in document.tags}
    assert not names & {"img", "iframe", "object", "embed", "video", "audio", "base", "form"}
    assert [tag for tag, _ in document.tags].count("script") == 1
    assert document.values("src") == []
    beside = {f"{name}.{kind}" for name in tables(findings()) for kind in ("csv", "json")}
    assert {h for h in document.values("href") if h[0] != "#"} <= {"data:,", *beside}
    for attrs in (attrs for _, attrs in document.tags):
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert "http" not in (value or "") or name == "http-equiv"
            assert all(u.startswith("#") for u in re.findall(r"url\(([^)]*)", value or ""))
    sheet = "".join(document.sheets)
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert "Content-Security-Policy" in page
    assert "default-src 'none'" in page


def test_ids_are_unique_and_links_resolve(document, page):
    ids = document.values("id")
    assert len(ids) == len(set(ids))
    used = {h[1:] for h in document.values("href") if h.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]*)\)", page))
    used |= set(" ".join(document.values("aria-labelledby")).split())
    assert used
    assert used <= set(ids)


def test_every_figure_is_drawn_named_and_takes_the_pages_colours(document, page):
    drawings = [attrs for tag, attrs in document.tags if tag == "svg"]
    drawn = [f.name for f in parts(made_of(findings())) if isinstance(f, Figure)]
    assert len(drawings) == len([n for n in drawn if picture(made_of(findings()), n)]) == 7
    assert all(d["role"] == "img" and d["aria-labelledby"] for d in drawings)
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", svgs)
    assert "DejaVu" not in svgs
    used = set(re.findall(r"var\(--(\w+)\)", svgs))
    assert {"helpful", "random", "harmful", "reference", "baseline", "ink"} <= used
    sheet = "".join(document.sheets)
    for color in COLOR:
        assert sheet.count(f"--{color}:") == 3, f"--{color} in light, dark and print"


ROW = (*COSTS, "target", "rank", "id", "score", "columns", "loss", "status", "steps", "residual")


def inject(value, keep=(Outcome, Headline)):
    """`value` with every text in it replaced by an attack; the arms keep their names."""
    if isinstance(value, str):
        return ATTACK + value
    if isinstance(value, keep):
        return value
    if isinstance(value, ScoreSet):
        return replace(value, loss=ATTACK)
    if is_dataclass(value):
        changed = {f.name: inject(getattr(value, f.name)) for f in fields(value)}
        return replace(value, **changed)
    if isinstance(value, dict):
        return {k if k in ROW else inject(k): inject(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [inject(v) for v in value]
    return value


def test_text_from_data_and_config_is_escaped(document):
    made = findings()
    strange = [*made.outcomes, replace(made.outcomes[0], selection=ATTACK)]
    hostile = inject(replace(made, outcomes=strange, headline=replace(made.headline, noun=ATTACK)))
    attacked = render(replace(hostile, descriptions={"harmful": ATTACK}))
    parsed = Document(attacked)
    assert {tag for tag, _ in parsed.tags} == {tag for tag, _ in document.tags}
    assert attacked.count("<script") == 1
    assert "onerror" not in {name for _, attrs in parsed.tags for name in attrs}
    assert parsed.text.count("<script>alert(1)</script>") > 40
    assert "$x_1$" in parsed.text


def test_same_findings_same_bytes_in_another_process(page):
    code = "from tests.support.findings import findings;"
    code += "from tests.report.test_page import render;"
    code += "import sys; sys.stdout.buffer.write(render(findings()).encode())"
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, check=True,
        cwd=Path(__file__).parents[2], timeout=60,
    )  # fmt: skip
    assert again.stdout.decode() == page
    assert render(findings()) == page


def test_missing_parts_leave_their_sections_out(page):
    sections = {"figure-targets", "figure-axis", "figure-ritz", "figure-scores", "figure-training"}
    sections |= {"curvature", "training", "cost", "provenance", "remarks"}
    empty = dict.fromkeys(("evaluation", "axis_curves", "ritz", "training"))
    empty |= dict.fromkeys(("targets", "scores", "top_samples", "solves", "costs"), ())
    empty |= dict.fromkeys(("warnings", "deviations", "published"), ())
    made = findings(**empty, quarantined={}, provenance=Provenance())
    without = Document(render(made))
    ids = set(without.values("id"))
    assert sections <= set(Document(page).values("id"))
    assert not sections & ids
    assert {"answer", "effect", "figure-gap", "figure-steps", "targets"} <= ids
    assert {h[1:] for h in without.values("href") if h.startswith("#")} <= ids


def test_the_least_findings_still_make_a_page():
    text = Document(render(Findings("A run", "Nothing but a title."))).text
    assert "did not act on its scores" in text
    assert "n/a" not in text


def test_remarks_are_listed_and_announced(document):
    made = findings()
    for remark in [*made.warnings, *made.deviations, "train (1): 1207"]:
        assert remark in document.text


def test_a_large_run_stays_a_small_page():
    rng = np.random.default_rng(0)
    points = EvaluationPoints(
        np.arange(41_112), rng.gamma(1, 1, 41_112), rng.uniform(-4, 32, 41_112)
    )
    scores = [ScoreSet("bce", "ell-relative", {TARGETS[0]: rng.standard_normal(200_000)})]
    page = render(findings(evaluation=points, scores=scores))
    assert len(page) < 1_500_000
    assert "200,000 training slots" in page


def test_unusable_numbers_do_not_break_a_figure():
    scores = [ScoreSet("bce", "newfluence", {417: np.array([math.nan, math.inf])}),
              ScoreSet("bce", "classic", {417: np.zeros(9)})]  # fmt: skip
    points = EvaluationPoints(np.arange(3), np.full(3, math.nan), np.arange(3.0))
    flat = [replace(o, metric_by_step=[0.0, 0.0]) for o in findings().outcomes]
    page = render(findings(scores=scores, evaluation=points, outcomes=flat))
    assert "figure-scores" in page
    assert 'id="figure-targets"' not in page


@pytest.mark.parametrize(
    ("value", "shown"), [(1.0, "high"), (2.0, 2.0), (-1.0, -1.0), (math.inf, math.inf)]
)
def test_a_value_that_has_no_name_is_shown_as_it_is(value, shown):
    """A task may name the values of a column, and not all of them."""
    task = SimpleNamespace(labels={"kind": ("low", "high")})
    assert _named(SimpleNamespace(task=task), "kind", value) == shown
    assert _named(SimpleNamespace(task=task), "other", value) == value


def drawn_pairs(made: Findings) -> int:
    """How many Ritz pairs the picture has, in each of its two panels."""
    drawn = picture(made_of(made), "ritz")
    assert drawn is not None
    groups = re.findall(r"<g clip-path=[^>]*>(.*?)</g>", drawn, re.DOTALL)
    return sum(group.count("<use ") for group in groups)


def test_ritz_values_that_have_not_converged_are_left_out_and_counted():
    made = findings()
    assert made.ritz is not None
    sizes, residuals = np.abs(made.ritz.values_K), np.array(made.ritz.residuals_K)
    out = int((residuals > 0.1 * sizes).sum())
    assert 2 <= out < 10
    ours = replace(made, ritz=replace(made.ritz, kept=20 - out + 2))
    text = Document(render(ours)).text
    assert f"{out} have not, their residual above a tenth of the value's size, and 2 of" in text
    assert f"pairs converged {20 - out} of 20" in text
    exact = replace(made.ritz, residuals_K=[0.0] * 20)
    assert drawn_pairs(replace(made, ritz=exact)) - drawn_pairs(made) == 2 * out
    assert "have converged; 0 have not" in Document(render(replace(made, ritz=exact))).text


def test_where_no_ritz_value_has_converged_there_is_no_picture_but_a_word():
    made = findings()
    assert made.ritz is not None
    none = replace(made, ritz=replace(made.ritz, residuals_K=made.ritz.values_K[:1] * 20))
    document = Document(render(none))
    assert "figure-ritz" not in document.values("id")
    assert "pairs converged 0 of 20" in document.text


def test_a_column_that_repeats_the_axis_is_not_printed_twice():
    made = findings()
    snr = [replace(t, columns={"snr_db": t.axis, "doppler": 7.0}) for t in made.targets]
    text = Document(render(replace(made, targets=snr, top_samples=()))).text
    assert "doppler" in text
    assert "snr_db" not in text
    snr[0] = replace(snr[0], columns={"snr_db": 0.5, "doppler": 7.0})
    assert "snr_db" in Document(render(replace(made, targets=snr, top_samples=()))).text


def test_lines_far_from_the_ritz_values_do_not_crowd_the_axis():
    """One decade of values over a damping four decades below: a label for each power of ten."""
    few = replace(findings().ritz, values_K=[17.0, 9.0, 5.0], residuals_K=[0.1] * 3, kept=3)
    drawn = picture(made_of(findings(ritz=replace(few, damping=1e-3))), "ritz")
    assert not {"0.2", "0.06", "0.002"} & set(re.findall(r">([^<>\n]+)</text>", drawn))
    assert {"0.001", "0.01", "0.1", "1", "10"} <= set(re.findall(r">([^<>\n]+)</text>", drawn))


def test_where_nothing_changed_the_effects_axis_is_of_points():
    still = [replace(o, gap_reduction_pct=0.0) for o in findings().outcomes]
    drawn = picture(made_of(findings(outcomes=still)), "gap")
    assert not re.search("10⁻|10<", drawn)


def test_targets_of_one_condition_are_said_to_have_no_interval_over_others():
    trials = outcomes({"helpful": 45.0, "random": 3.0}, np.random.default_rng(3))
    made = findings(outcomes=[replace(o, condition=4) for o in trials])
    warned = " ".join(made_of(made).warnings)
    assert "targets of one condition: the intervals cover the seeds; there is none over" in warned
