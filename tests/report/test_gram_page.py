"""The Gram route's page: its numbers, its wording, and that the file needs and leaks nothing."""

import math
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from distinf.report import formats
from distinf.report.gram import summaries
from distinf.report.gram.findings import (
    CellFinding,
    Correlation,
    Findings,
    FreeRanking,
    Headline,
    Provenance,
    Retrained,
    Scored,
)
from distinf.report.gram.page import DRAW, render
from distinf.report.gram.tables import tables
from distinf.report.gram.wording import answer
from distinf.report.rows import json_text
from tests.report.test_page import ATTACK, BROWSER, Document
from tests.support.gram_findings import findings, plain_scores

HEAD = Headline().name


@pytest.fixture(scope="module")
def made() -> Findings:
    return findings()


@pytest.fixture(scope="module")
def rows(made):
    return tables(made)


@pytest.fixture(scope="module")
def page(made) -> str:
    return render(made)


@pytest.fixture(scope="module")
def document(page) -> Document:
    return Document(page)


def said(document: Document) -> str:
    return document.text.replace(formats.SPACE, " ")


# Wording


def with_rate(rate: float, **changes) -> Findings:
    cells = [CellFinding("a", "a", 0, 1_000, 100, flips=200)]
    scored = [Scored("a", "datainf", "all", "vote", rate, 0.6)]
    return Findings("t", "t", cells=cells, scored=scored, **changes)


@pytest.mark.parametrize(
    ("rate", "verdict", "words"),
    [
        (0.9, "better", "hold 90 % of the 200 rows"),
        (0.33, "none", "no more than chance"),
        (0.1, "worse", "fewer than the 30 % that chance would put there"),
    ],
)
def test_verdict_compares_with_random_rankings(rate, verdict, words):
    found = with_rate(rate)
    told = answer(found, tables(found))
    assert told.verdict == verdict
    assert words in told.lead.replace(formats.SPACE, " ")


def test_a_rate_that_the_labels_alone_give_is_none():
    """An acceptability task where nothing was learned: 57 % found, by one class being commoner."""
    scored = [Scored("a", "datainf", "all", "vote", 0.57, 0.6, within_labels=0.56)]
    found = replace(with_rate(0.57), scored=scored)
    told = answer(found, tables(found))
    assert told.verdict == "none"
    assert "rows of the same labels, drawn at random: 56 %" in told.lead.replace(formats.SPACE, " ")
    assert "of the same labels: 56" in told.cards[0].detail
    alike = [replace(scored[0], within_labels=0.302)]  # labels that tell nothing are not told
    found = replace(found, scored=alike)
    assert answer(found, tables(found)).verdict == "better"
    assert "same labels" not in answer(found, tables(found)).text


def unlearned(name: str, nothing: bool) -> CellFinding:
    return CellFinding(
        name, "a", 0, 1_000, 100, correct_queries=52, flips=200, majority_queries=51,
        learned_nothing=nothing,
    )  # fmt: skip


def test_a_model_no_better_than_one_class_is_told_before_any_rate():
    found = replace(with_rate(0.9), cells=[unlearned("a", True)])
    told = answer(found, tables(found))
    assert told.verdict == "unknown"
    assert told.lead.startswith("The model is no better than always saying the same class: it")
    assert "52 of 100 queries right, and that class alone 51" in told.lead
    assert "%" not in told.lead
    assert told.sentences[0].startswith("The lowest")
    text = said(Document(render(found)))
    assert text.index("no better than always") < text.index("hold 90 %")
    several = replace(found, cells=[unlearned("a", True), unlearned("b", False)])
    told = answer(several, tables(several))
    assert told.lead.startswith("In 1 of 2 cells (a) the model is no better than")
    assert told.verdict == "better"  # the other cell's model did learn
    learned = replace(found, cells=[unlearned("a", False)])
    assert answer(learned, tables(learned)).lead.startswith("The lowest")


def test_both_chances_stand_beside_every_rate():
    scored = [Scored("a", "datainf", "all", how, 0.5, 0.6, within_labels=w)
              for how, w in (("vote", 0.44), ("mean", 0.31))]  # fmt: skip
    free = [FreeRanking("a", "own loss", 0.4, 0.6, within_labels=0.37)]
    found = replace(with_rate(0.5), scored=scored, free=free)
    rows = tables(found)
    mine = {r["how"]: r for r in rows["detection"]}
    assert [mine[how]["chance_within_labels_pct"] for how in ("vote", "mean")] == [44.0, 31.0]
    assert {r["chance_pct"] for r in (*rows["detection"], *rows["free_rankings"])} == {30.0}
    assert rows["free_rankings"][0]["chance_within_labels_pct"] == 37.0
    document = Document(render(found))
    printed = [tuple(cell.replace(formats.SPACE, " ") for cell in row) for row in document.rows]
    (line,) = [p for p in printed if p[:3] == ("datainf", "all", "vote")]
    assert line[-3:-1] == ("30.0", "44.0")


def test_the_answer_quotes_the_tables(made, rows, document):
    text, found = said(document), {r["configuration"]: r for r in rows["accuracy"]}
    ndr = next(r for r in rows["detection"] if r["configuration"] == HEAD)["ndr_mean_pct"]
    assert f"The lowest 30 % of the scores hold {formats.rounded(ndr)} % of the 5,400" in text
    best = rows["detection"][0]
    assert best["configuration"] != HEAD
    assert f"{summaries.spoken(best['configuration'])} found the most" in text
    assert "the best of many is partly luck" in text
    for name, words in ((HEAD, "the model reaches "), ("random", "against ")):
        assert f"{words}{formats.fixed(found[name]['mean_pct'])} %" in text
    points = formats.signed(found[HEAD]["vs_random_points"])
    assert f"{points} points on average (95 % interval" in text
    assert "higher in 6 of 6 trials" in text


def test_rankings_that_cost_nothing_stand_beside_the_estimators(made, rows, document):
    text = said(document)
    printed = [tuple(cell.replace(formats.SPACE, " ") for cell in row) for row in document.rows]
    for row in rows["free_rankings"]:
        spread = f"{formats.fixed(row['ndr_mean_pct'])} ± {formats.fixed(row['ndr_sd_pct'])}"
        (mine,) = (p for p in printed if p and p[0] == row["ranking"])
        assert "no influence" in mine
        assert spread in mine
        assert f"{formats.rounded(row['ndr_mean_pct'])} % by the {row['ranking']}" in text
        assert any(r["configuration"] == row["ranking"] for r in rows["curves"])


@pytest.mark.parametrize(("rate", "said"), [(0.9, False), (0.5, True)])
def test_it_is_said_where_influence_is_no_better_than_what_costs_nothing(rate, said):
    found = with_rate(rate, free=[FreeRanking("a", "own loss", 0.5, 0.6)])
    told = answer(found, tables(found)).text
    assert ("influence is no better here" in told) is said


def test_the_count_of_wrong_labels_is_told_where_the_model_tells_classes():
    cells = [CellFinding("a", "a", 0, 1_000, 100, suggested_wrong=87)]
    found = plain_scores(cells=cells)
    assert "about 87 of 1,000 labels are wrong" in answer(found, tables(found)).text
    assert "labels are wrong (" not in answer(plain_scores(), tables(plain_scores())).text


def test_few_trials_cannot_rule_out_chance():
    few = findings(seeds=2, datasets=("qnli",), small=True)
    told = answer(few, tables(few)).text
    assert "fewer than 6 trials cannot rule out chance" in told


def test_one_trial_has_neither_win_rates_nor_tests():
    one = findings(1, ("qnli",), small=True, methods_published=(), layers_published=())
    text = said(Document(render(one)))
    assert "in one trial, too few to rule out chance" in text
    assert "win rates, fronts and tests need several" in text
    assert "win rate" not in text.replace("win rates, fronts and tests need", "")
    assert "n/a" not in text
    assert not tables(one).get("layers")


def test_printed_tables_equal_the_rows(document, rows):
    printed = {tuple(cell.replace(formats.SPACE, " ") for cell in row) for row in document.rows}
    for row in rows["detection"]:
        spread = f"{formats.fixed(row['ndr_mean_pct'])} ± {formats.fixed(row['ndr_sd_pct'])}"
        mine = [p for p in printed if p[:3] == (row["estimator"], row["group"], row["how"])]
        assert any(spread in p for p in mine)
    for row in rows["ranking"]:
        assert any(p[:2] == (str(row["rank"]), str(row["row"])) for p in printed)
    for row in rows["cancellation"]:
        assert any(
            p[0] == row["group"] and formats.number(row["median"]) in p for p in printed if p
        )


# What is not there


def test_scores_of_a_users_own_rows_make_a_page():
    document = Document(render(plain_scores()))
    text, ids = said(document), set(document.values("id"))
    assert "The 5 rows that training on helps the queries least are listed below" in text
    assert "Of 800 rows, ranked by datainf / all / vote for 100 queries, 88 of them" in text
    assert "text of row 40" in text
    assert {"rows", "agreement", "model", "cost"} <= ids
    assert not {"detection", "retrained", "layers", "proxies", "remarks", "provenance"} & ids
    for word in ("NDR", "random", "win rate", "n/a", "flipped", "Cancellation"):
        assert word not in text


def test_retraining_without_known_noise_is_told():
    cells = [CellFinding(f"a{k}", "a", k, 100, 10) for k in range(6)]
    trained = [
        Retrained(c.name, name, top + c.seed / 1_000, top, 70)
        for c in cells
        for name, top in ((HEAD, 0.8), ("random", 0.7))
    ]
    found = Findings("t", "t", cells=cells, retrained=trained)
    told = answer(found, tables(found))
    assert told.verdict == "better"
    assert "without the lowest 30 % of rows by datainf / all / vote" in told.lead.replace(
        formats.SPACE, " "
    )
    render(found)


def test_the_least_findings_still_make_a_page():
    text = said(Document(render(Findings("A run", "Nothing but a title."))))
    assert "has no scores" in text
    assert "warning" not in text
    assert "n/a" not in text


PARTS = {
    "blocks": {"figure-modules"},
    "correlations": {"agreement", "figure-correlations"},
    "retrained": {"retrained", "proxies", "figure-accuracy", "figure-trends", "figure-proxies"},
    "ranking": {"rows"},
    "costs": {"cost"},
    "scored": {"detection", "figure-curves", "figure-grid", "figure-deciles"},
    "free": {"detection"},
}


def test_missing_parts_leave_their_sections_out(document):
    for kept in ("blocks", "retrained", "scored"):
        empty = dict.fromkeys((part for part in PARTS if part != kept), ())
        made = findings(1, small=True, methods_published=(), layers_published=(), **empty)
        without = Document(render(made))
        ids = set(without.values("id"))
        gone = set.union(*(PARTS[part] for part in empty))
        assert gone <= set(document.values("id"))
        assert (gone - PARTS[kept] - {"figure-proxies", "proxies"}) & ids == set()
        assert {h[1:] for h in without.values("href") if h.startswith("#")} <= ids


def test_remarks_and_special_cells_are_told():
    cells = [replace(c, correct_queries=0) for c in findings(1, small=True).cells]
    changed = findings(1, small=True, cells=cells, provenance=Provenance(), retrained=(), blocks=())
    text = said(Document(render(changed)))
    assert "No query was predicted correctly in qnli-0, sst2-0" in text
    assert "24 rows were longer than the model reads" in text
    assert "This run has 1 warning and 1 deviation" in text
    assert "qnli-0 train (2): 17, 2204" in text


def test_unusable_numbers_do_not_break_the_page():
    made = findings(1, small=True)
    broken = [replace(s, ndr=math.nan, auc=math.nan) if k % 7 == 0 else s
              for k, s in enumerate(made.scored)]  # fmt: skip
    trained = [replace(r, test_accuracy=math.nan, accuracy_at_best=math.inf, history={})
               if k % 5 == 0 else r for k, r in enumerate(made.retrained)]  # fmt: skip
    empty = [Correlation("nothing", ("a", "b"), np.full((2, 2), math.nan))]
    changed = replace(made, scored=broken, retrained=trained, correlations=empty)
    document = Document(render(changed))
    assert not re.search(r"\bnan\b|\binf\b", document.text, re.IGNORECASE)
    for mine in tables(changed).values():
        json_text(mine)


# The file


def test_page_asks_for_nothing(document, page):
    names = {tag for tag, _ in document.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "video", "base", "form"}
    assert document.values("src") == []
    assert all(h.startswith("#") or h == "data:," for h in document.values("href"))
    for _, attrs in document.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert "http" not in (value or "") or name == "http-equiv"
    sheet = "".join(document.sheets)
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert "default-src 'none'" in page


def test_ids_are_unique_links_resolve_and_figures_are_numbered_in_order(document, page):
    ids = document.values("id")
    assert len(ids) == len(set(ids))
    used = {h[1:] for h in document.values("href") if h.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert used <= set(ids)
    numbers = [int(n) for n in re.findall(r"<b>Figure (\d+)\.", page)]
    assert numbers == list(range(1, len(DRAW) + 1))
    drawings = [attrs for tag, attrs in document.tags if tag == "svg"]
    assert all(d["role"] == "img" and d["aria-labelledby"] for d in drawings)
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", svgs)


def inject(value, keep=("estimator", "group", "how", "cell", "configuration", "name", "dataset")):
    """`value` with every text in it replaced by an attack, but for what joins the parts."""
    if isinstance(value, str):
        return ATTACK + value
    if is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{k: inject(v) for k, v in own.items() if k not in keep})
    if isinstance(value, dict):
        return {inject(k) if k not in METRIC else k: inject(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [inject(v) for v in value]
    return value


METRIC = (
    "train_loss",
    "query_loss",
    "query_accuracy",
    "test_loss",
    "test_accuracy",
    "qnli",
    "sst2",
)


def renamed(made: Findings) -> Findings:
    """Hostile names too: of cells, datasets and layer groups."""

    def of(name: str) -> str:
        return name.replace("qnli", f"{ATTACK}qnli")

    cells = [replace(c, name=of(c.name), dataset=of(c.dataset)) for c in made.cells]
    parts = ("scored", "free", "retrained", "ranking", "cancellation", "blocks")
    moved = {part: [replace(x, cell=of(x.cell)) for x in getattr(made, part)] for part in parts}
    strange = [replace(s, group=ATTACK) for s in moved["scored"] if s.group == "00-01"]
    moved["scored"] += strange
    return replace(made, cells=cells, **moved)


def test_text_from_data_and_config_is_escaped(document):
    attacked = render(renamed(inject(findings(1, small=True))))
    parsed = Document(attacked)
    assert {tag for tag, _ in parsed.tags} == {tag for tag, _ in document.tags}
    assert "<script" not in attacked
    assert "onerror" not in {name for _, attrs in parsed.tags for name in attrs}
    assert parsed.text.count("<script>alert(1)</script>") > 60
    assert "$x_1$" in parsed.text


def test_same_findings_same_bytes_in_another_process():
    code = "from tests.support.gram_findings import findings;"
    code += "from distinf.report.gram.page import render;"
    code += "import sys; sys.stdout.buffer.write(render(findings(1, small=True)).encode())"
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60,
        env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert again.stdout.decode() == render(findings(1, small=True))


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH to open the page in")
def test_a_browser_opens_the_whole_page_without_complaint(page, tmp_path):
    file = tmp_path / "index.html"
    file.write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", "--v=0"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--disable-gpu", "--dump-dom"]
    opened = subprocess.run(
        [str(BROWSER), *flags, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in opened.stderr
    shown = Document(opened.stdout)
    assert len([tag for tag, _ in shown.tags if tag == "svg"]) == len(DRAW)
    assert shown.text.startswith("Mislabelled rows of two GLUE tasks")
