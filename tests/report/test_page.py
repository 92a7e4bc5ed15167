"""The report page: its statistics, its wording, and that the file needs and leaks nothing."""

import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distinf.report import formats
from distinf.report.spectral.diagnostics import ritz_figure
from distinf.report.spectral.findings import (
    EvaluationPoints,
    Findings,
    Headline,
    MetricInfo,
    Outcome,
    Provenance,
    ScoreSet,
)
from distinf.report.spectral.gap_figure import gap_figure
from distinf.report.spectral.page import render
from distinf.report.spectral.pictures import DRAW
from distinf.report.spectral.report import _named
from distinf.report.spectral.tables import tables
from distinf.report.spectral.wording import answer
from distinf.report.svg import COLOR
from tests.support.findings import TARGETS, findings, outcomes

ATTACK = '<script>alert(1)</script><img src=http://x.test/a onerror="b()">$x_1$ & "quoted"'
BROWSER = next(
    (path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None
)


class Document(HTMLParser):
    """Tags with their attributes, text outside <style>, style sheets, and the tables' cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.source = page
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.sheets: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        (self.sheets if "style" in self.open else self.words).append(data)
        if "td" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [
            value or "" for _, attrs in self.tags if (value := attrs.get(attribute)) is not None
        ]


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
        (-45.0, "worse", "worse slots than chance"),
    ],
)
def test_verdict_follows_the_interval_of_the_difference(helpful, verdict, words):
    rng = np.random.default_rng(11)
    made = findings(outcomes=outcomes({"helpful": helpful, "random": 3.0}, rng))
    rows = tables(made)
    said = answer(made, rows)
    (pair,) = rows["paired"]
    signs = np.sign([pair["low_points"], pair["high_points"]]).tolist()
    assert signs == {"better": [1, 1], "none": [-1, 1], "worse": [-1, -1]}[verdict]
    assert said.verdict == verdict
    assert words in said.lead
    assert ("includes zero" in said.text) == (verdict == "none")
    assert f"in {pair['wins']} of 30 paired trials" in said.text


@pytest.mark.parametrize(
    ("change", "said", "role"),
    [(24.0, "At a price: the BER of all other slots rose by 24 %.", "harmful"),
     (-8.0, "And the BER of all other slots fell by 8 %.", "helpful"),
     (0.0, "did not change beyond chance", "ink")],
)  # fmt: skip
def test_the_lead_tells_the_price(change, said, role):
    spread = [-1.0, 1.0, 0.5, -0.5]
    trials = [
        replace(o, non_target_change_pct=change + spread[k % 4])
        for k, o in enumerate(outcomes({"helpful": 45.0, "random": 3.0}, np.random.default_rng(3)))
    ]
    made = findings(outcomes=trials)
    told = answer(made, tables(made))
    assert said in told.lead.replace(formats.SPACE, " ")
    assert told.cards[-1].role == role


def test_answer_quotes_the_tables(document):
    rows = {r["selection"]: r for r in tables(findings())["summary"]}
    text = document.text.replace(formats.SPACE, " ")
    low, high = (formats.rounded(rows["helpful"][k]) for k in ("low_pct", "high_pct"))
    mean = formats.rounded(rows["helpful"]["mean_pct"])
    spent = "Fine-tuning for 3 steps on the 50 most helpful slots"
    assert f"{spent} closed {mean} % of the BER gap to the genie-aided LMMSE" in text
    assert f"(95 % interval {low} to {high})" in text
    assert "Only 3 targets" in text
    grew = formats.rounded(-rows["harmful"]["mean_pct"])
    assert f"widened it by {grew} %" in text


def test_printed_tables_equal_the_rows(document):
    rows = tables(findings())
    printed = {tuple(row) for row in document.rows}
    for row in rows["summary"]:
        line = next(p for p in printed if p[:2] == (row["selection"], str(row["trials"])))
        spread = f"{formats.fixed(row['mean_pct'])} ± {formats.fixed(row['sd_pct'])}"
        assert line[2].replace(formats.SPACE, " ") == spread
        low, high = formats.fixed(row["low_pct"]), formats.fixed(row["high_pct"])
        assert line[3] == f"{low} to {high}"
    for row in rows["targets"]:
        assert any(
            formats.number(row["metric"]) in p and str(row["id"]) == p[0] for p in printed if p
        )


@pytest.mark.parametrize(("pairs", "verdict"), [(1, "unknown"), (5, "unknown"), (6, "better")])
def test_too_few_trials_are_not_judged(pairs, verdict):
    trials = [Outcome("helpful", 417, seed, 50.0 + seed) for seed in range(pairs)]
    trials += [Outcome("random", 417, seed, 1.0) for seed in range(pairs)]
    made = findings(outcomes=trials, headline=Headline(noun="slots"))
    said = answer(made, tables(made))
    assert said.verdict == verdict
    assert ("too few paired trials" in said.lead) == (verdict == "unknown")
    assert ("cannot rule out chance" in said.text) == (verdict == "unknown")
    assert ("so no interval" in said.text) == (pairs == 1)
    assert "One target" in said.notes[0]


def test_a_run_without_actions_says_so():
    page = render(findings(outcomes=()))
    assert "did not act on its scores" in page
    assert 'id="effect"' in page  # the axis curves are still there
    assert 'id="figure-gap"' not in page


def test_without_reference_the_gap_is_the_metric():
    text = Document(render(findings(metric=MetricInfo("BER")))).text.replace(formats.SPACE, " ")
    assert "% of the targets' BER (95 % interval" in text
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
    assert not re.search(r"\bnan\b|\binf\b", text, re.IGNORECASE)
    assert tables(replace(made, outcomes=broken))["paired"][0]["pairs"] == 28


# The file


def test_page_asks_for_nothing(document, page):
    names = {tag for tag, _ in document.tags}
    assert not names & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "video",
        "audio",
        "base",
        "form",
    }
    assert document.values("src") == []
    assert all(h.startswith("#") or h == "data:," for h in document.values("href"))
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
    assert len(drawings) == len(DRAW)
    assert all(d["role"] == "img" and d["aria-labelledby"] for d in drawings)
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", svgs)
    assert "DejaVu" not in svgs
    used = set(re.findall(r"var\(--(\w+)\)", svgs))
    assert {"helpful", "random", "harmful", "reference", "baseline", "ink"} <= used
    sheet = "".join(document.sheets)
    for color in COLOR:
        assert sheet.count(f"--{color}:") == 3, f"--{color} in light, dark and print"


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
        return {inject(k): inject(v) for k, v in value.items()}
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
    assert "<script" not in attacked
    assert "onerror" not in {name for _, attrs in parsed.tags for name in attrs}
    assert parsed.text.count("<script>alert(1)</script>") > 40
    assert "$x_1$" in parsed.text


def test_same_findings_same_bytes_in_another_process(page):
    code = "from tests.support.findings import findings;"
    code += "from distinf.report.spectral.page import render;"
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
    empty |= dict.fromkeys(("warnings", "deviations", "published", "quarantined"), ())
    without = Document(render(findings(**empty, provenance=Provenance())))
    ids = set(without.values("id"))
    assert sections <= set(Document(page).values("id"))
    assert not sections & ids
    assert {"answer", "effect", "figure-gap", "figure-steps", "targets"} <= ids
    assert {h[1:] for h in without.values("href") if h.startswith("#")} <= ids


def test_the_least_findings_still_make_a_page():
    text = Document(render(Findings("A run", "Nothing but a title."))).text
    assert "did not act on its scores" in text
    assert "warning" not in text
    assert "n/a" not in text


def test_remarks_are_listed_and_announced(document):
    made = findings()
    assert "This run has 2 deviations" in document.text
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
    picture = ritz_figure(made)
    assert picture is not None
    groups = re.findall(r"<g clip-path=[^>]*>(.*?)</g>", picture, re.DOTALL)
    return sum(group.count("<use ") for group in groups)


def test_ritz_values_that_have_not_converged_are_left_out_and_counted():
    made = findings()
    assert made.ritz is not None
    sizes, residuals = np.abs(made.ritz.values_K), np.array(made.ritz.residuals_K)
    out = int((residuals > 0.1 * sizes).sum())
    assert 2 <= out < 10
    ours = replace(made, ritz=replace(made.ritz, kept=20 - out + 2))
    text = Document(render(ours)).text
    assert f"Left out: {out} that have not converged" in text
    assert "size; 2 of them are kept all the same." in text
    assert f"pairs converged {20 - out} of 20" in text
    exact = replace(made.ritz, residuals_K=[0.0] * 20)
    assert drawn_pairs(replace(made, ritz=exact)) - drawn_pairs(made) == 2 * out
    assert "All have converged" in Document(render(replace(made, ritz=exact))).text


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
    drawn = ritz_figure(findings(ritz=replace(few, damping=1e-3)))
    assert not {"0.2", "0.06", "0.002"} & set(re.findall(r">([^<>\n]+)</text>", drawn))
    assert {"0.001", "0.01", "0.1", "1", "10"} <= set(re.findall(r">([^<>\n]+)</text>", drawn))


def test_where_nothing_changed_the_effects_axis_is_of_points():
    still = [replace(o, gap_reduction_pct=0.0) for o in findings().outcomes]
    drawn = gap_figure(findings(outcomes=still))
    assert not re.search("10⁻|10<", drawn)


def test_targets_of_one_condition_are_said_to_have_no_interval_over_others():
    trials = outcomes({"helpful": 45.0, "random": 3.0}, np.random.default_rng(3))
    made = findings(outcomes=[replace(o, condition=4) for o in trials])
    notes = " ".join(answer(made, tables(made)).notes)
    assert "Targets of one condition: the intervals cover the seeds; there is none over" in notes
