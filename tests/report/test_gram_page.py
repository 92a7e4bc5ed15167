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

from distinf.gram import configurations
from distinf.report import formats
from distinf.report.gram.findings import Findings
from distinf.report.gram.page import answer, words_of
from distinf.report.gram.tables import tables
from distinf.report.provenance import Provenance
from distinf.report.rows import json_text
from tests.report.test_page import ATTACK, BROWSER, Document
from tests.support import gram_findings
from tests.support.gram_findings import cell, findings, free, plain_scores, retrained, scored

HEAD = Findings.headline
HEAD_KEY = configurations.parts(HEAD)


def render(made: Findings) -> str:
    rows = tables(made)
    return gram_findings.render(made, rows, list(rows))


def told(made: Findings) -> tuple[str, str]:
    """The verdict, and the sentences of the answer."""
    verdict, sentences, _ = answer(made, tables(made))
    return verdict, " ".join(sentences).replace(formats.SPACE, " ")


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


# The answer


def with_rate(rate: float, within: float | None = None, **changes) -> Findings:
    made = {"cells": [cell(flips=200)]}
    made["scored"] = [scored("a", HEAD_KEY, rate, 0.6, within_labels=within)]
    return Findings("t", "t", **(made | changes))


@pytest.mark.parametrize(
    ("rate", "within", "verdict"),
    [
        (0.9, None, "better"),
        (0.33, None, "none"),
        (0.1, None, "worse"),
        (0.57, 0.56, "none"),  # by one class being commoner among the wrong labels
        (0.57, 0.302, "better"),  # labels that tell nothing
        (0.57, 0.05, "better"),
    ],
)
def test_verdict_compares_with_random_rankings_and_with_the_labels_alone(rate, within, verdict):
    found, text = told(with_rate(rate, within))
    assert found == verdict
    assert f"hold {100 * rate:.0f} % of the 200 rows whose label is known to be wrong" in text
    assert ("of the same labels at random 56 %" in text) is (within == 0.56)
    _, _, cards = answer(with_rate(rate, within), tables(with_rate(rate, within)))
    assert ("of the same labels: 56" in cards[0].detail) is (within == 0.56)


def unlearned(name: str, nothing: bool):
    sizes = {"correct_queries": 52, "majority_queries": 51, "flips": 200}
    return cell(name, learned_nothing=nothing, **sizes)


def test_a_model_no_better_than_one_class_is_told_before_any_rate():
    found = with_rate(0.9, cells=[unlearned("a", True)])
    verdict, (first, second, *_), _ = answer(found, tables(found))
    assert verdict == "unknown"
    assert first.startswith("a: the model gets 52 of 100 queries right, and always saying the same")
    assert "class 51" in first
    assert "%" not in first
    assert second.startswith("The lowest")
    text = said(Document(render(found)))
    assert text.index("and always saying the same class") < text.index("hold 90 %")
    several = replace(found, cells=[unlearned("a", False), unlearned("b", True)])
    verdict, (first, *_), _ = answer(several, tables(several))
    assert first.startswith("b: the model gets")
    assert verdict == "better"  # the other cell's model did learn
    assert told(replace(found, cells=[unlearned("a", False)]))[1].startswith("The lowest")


@pytest.mark.parametrize(("after", "is_told"), [(3.1, True), (2.2, False), (None, False)])
def test_training_that_made_its_own_rows_worse_is_told(after, is_told):
    losses = {"loss_before": after and 2.0, "loss_after": after}
    found = with_rate(0.9, cells=[cell("a", **losses)])
    _, (first, *_), _ = answer(found, tables(found))
    assert first.startswith("a: training made the model worse at its own rows") is is_told


def test_both_chances_stand_beside_every_rate():
    every = [
        scored("a", ("datainf", "all", how), 0.5, 0.6, within_labels=w)
        for how, w in (("vote", 0.44), ("mean", 0.31))
    ]
    alone = [free("a", "own loss", 0.4, 0.6, within_labels=0.37)]
    found = with_rate(0.5, scored=every, free=alone)
    rows = tables(found)
    mine = {r["how"]: r for r in rows["detection"]}
    assert [mine[how]["chance_within_labels_pct"] for how in ("vote", "mean")] == [44.0, 31.0]
    assert {r["chance_pct"] for r in (*rows["detection"], *rows["free_rankings"])} == {30.0}
    assert rows["free_rankings"][0]["chance_within_labels_pct"] == 37.0
    document = Document(render(found))
    printed = [tuple(cell.replace(formats.SPACE, " ") for cell in row) for row in document.rows]
    lines = {p[-3:-1] for p in printed if p[:3] == ("datainf", "all", "vote")}
    assert lines == {("30.0", "44.0")}


def test_the_answer_quotes_the_tables(made, rows, document):
    text, found = said(document), {r["configuration"]: r for r in rows["accuracy"]}
    ndr = next(r for r in rows["detection"] if r["configuration"] == HEAD)["ndr_mean_pct"]
    assert f"by datainf / all / vote hold {formats.rounded(ndr)} % of the 5,400" in text
    best = rows["detection"][0]
    assert best["configuration"] != HEAD
    assert f"{configurations.spoken(best['configuration'])} found the most" in text
    assert f"test accuracy, filtered {formats.fixed(found[HEAD]['mean_pct'])} %" in text
    assert f"filtered at random {formats.fixed(found['random']['mean_pct'])} %" in text
    points = formats.signed(found[HEAD]["vs_random_points"])
    assert f"{points} points on average (95 % interval" in text
    assert "higher in 6 of 6 trials." in text


def test_rankings_that_cost_nothing_stand_beside_the_estimators(made, rows, document):
    text = said(document)
    printed = [tuple(cell.replace(formats.SPACE, " ") for cell in row) for row in document.rows]
    for row in rows["free_rankings"]:
        spread = f"{formats.fixed(row['ndr_mean_pct'])} ± {formats.fixed(row['ndr_sd_pct'])}"
        (mine,) = (p for p in printed if p and p[0] == row["ranking"])
        assert "no influence" in mine
        assert any(value.startswith(spread) for value in mine)
        assert f"{row['ranking']} {formats.rounded(row['ndr_mean_pct'])} %" in text
        assert any(r["configuration"] == row["ranking"] for r in rows["curves"])


@pytest.mark.parametrize(("rate", "equal"), [(0.9, False), (0.5, True)])
def test_it_is_said_where_influence_is_no_better_than_what_costs_nothing(rate, equal):
    _, text = told(with_rate(rate, free=[free("a", "own loss", 0.5, 0.6)]))
    assert ("influence is no better here" in text) is equal


def test_the_count_of_wrong_labels_is_told_where_the_model_tells_classes():
    _, text = told(plain_scores(cells=[cell(suggested_wrong=87)]))
    assert "about 87 of 1,000 labels are wrong" in text
    assert "labels are wrong (" not in told(plain_scores())[1]


def test_few_trials_cannot_rule_out_chance():
    _, text = told(findings(seeds=2, datasets=("qnli",), small=True))
    assert "fewer than 6 trials cannot rule out chance" in text


def test_one_trial_has_neither_win_rates_nor_tests():
    one = findings(1, ("qnli",), small=True, methods_published=(), layers_published=())
    text = said(Document(render(one)))
    assert "of 1 trials; fewer than 6 trials cannot rule out chance" in text
    assert "win rates, fronts and tests need several" in text
    assert "win rate" not in text.replace("win rates, fronts and tests need", "")
    assert "n/a" not in text
    assert not tables(one).get("layers")


def test_printed_tables_equal_the_rows(document, rows):
    printed = {tuple(cell.replace(formats.SPACE, " ") for cell in row) for row in document.rows}
    for row in rows["detection"]:
        spread = f"{formats.fixed(row['ndr_mean_pct'])} ± {formats.fixed(row['ndr_sd_pct'])}"
        mine = [p for p in printed if p[:3] == (row["estimator"], row["group"], row["how"])]
        assert any(value.startswith(spread) for p in mine for value in p)
    for row in rows["ranking"]:
        assert any(p[:2] == (str(row["rank"]), str(row["row"])) for p in printed)
    for row in rows["cancellation"]:
        assert any(formats.number(row["median"]) == p[2] for p in printed if len(p) == 6)


# What is not there


def test_scores_of_a_users_own_rows_make_a_page():
    document = Document(render(plain_scores()))
    text, ids = said(document), set(document.values("id"))
    assert "The 5 rows that training on helps the queries least are listed; what" in text
    assert "By datainf / all / vote, lowest score first" in text
    assert "text of row 40" in text
    assert {"rows", "agreement", "model", "cost"} <= ids
    assert not {"detection", "retrained", "layers", "proxies", "remarks", "provenance"} & ids
    for word in ("NDR", "random", "win rate", "n/a", "flipped", "Cancellation"):
        assert word not in text


@pytest.mark.parametrize("flips", [None, 0, 5])
def test_rows_are_said_to_be_wrong_or_not_where_some_are_known_to_be(flips):
    made = plain_scores(cells=[cell("", "mine", flips=flips)])
    rows = [row | {"flipped": row["rank"] == 2} for row in made.ranking]
    text = said(Document(render(replace(made, ranking=rows))))
    assert ("known to be wrong" in text) is bool(flips)


def test_retraining_without_known_noise_is_told():
    cells = [cell(f"a{k}", "a", k) for k in range(6)]
    trained = [
        retrained(c["name"], name, top + c["seed"] / 1_000, top)
        for c in cells
        for name, top in ((HEAD, 0.8), ("random", 0.7))
    ]
    found = Findings("t", "t", cells=cells, retrained=trained)
    verdict, text = told(found)
    assert verdict == "better"
    assert text.startswith("Trained again without the lowest 30 % by datainf / all / vote, the")
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
    "estimator_times": {"cost"},
    "scored": {"detection", "figure-curves", "figure-grid", "figure-deciles"},
    "free": {"detection"},
    "placed": {"detection", "figure-loss_and_influence"},
    "sensitivity": {"agreement"},
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


def test_what_influence_finds_that_the_loss_does_not_is_counted_over_all_cells(document, rows):
    of = {row["filtered_by"]: row for row in rows["loss_and_influence"]}
    assert [of[n]["rows"] for n in ("both", "influence")] == [6 * 500, 6 * 850]
    assert [of[n]["wrong"] for n in ("loss", "neither")] == [6 * 150, 6 * 150]
    assert of["influence"]["wrong_pct"] == pytest.approx(100 * 250 / 850)
    assert "What influence finds that the loss does not" in said(document)
    (first, *_), many = rows["sensitivity"], len(rows["sensitivity"])
    assert (first["estimator"], first["factor"], first["queries"], many) == (
        "datainf", "λ / 10", 60, 4,
    )  # fmt: skip
    assert (first["spearman"], first["least"]) == pytest.approx((0.8, 0.7))


def test_warnings_and_remarks_are_told():
    changed = findings(1, small=True, provenance=Provenance(), retrained=(), blocks=())
    document = Document(render(changed))
    text = said(document)
    assert re.search(r"Warnings ?: 1 .{0,3}Deviations ?: 1", text)
    assert changed.warnings[0] in text
    assert changed.deviations[0] in text
    assert "qnli-0 train (2): 17, 2204" in text


def test_unusable_numbers_do_not_break_the_page():
    made = findings(1, small=True)
    broken = [s | {"ndr": math.nan, "auc": math.nan} if k % 7 == 0 else s
              for k, s in enumerate(made.scored)]  # fmt: skip
    nothing = {"test_accuracy": math.nan, "accuracy_at_best": math.inf, "history": {}}
    trained = [r | nothing if k % 5 == 0 else r for k, r in enumerate(made.retrained)]
    square = np.full((2, 2), math.nan)
    empty = [{"title": "nothing", "names": ("a", "b"), "values_MM": square}]
    changed = replace(made, scored=broken, retrained=trained, correlations=empty)
    document = Document(render(changed))
    words = document.text.partition("for (const table")[0]  # the script
    assert not re.search(r"\bnan\b|\binf\b", words, re.IGNORECASE)
    for mine in tables(changed).values():
        json_text(mine)


# The file


def test_page_asks_for_nothing(document, page):
    names = {tag for tag, _ in document.tags}
    assert not names & {"img", "iframe", "object", "embed", "video", "base", "form"}
    assert [tag for tag, _ in document.tags].count("script") == 1  # which sorts tables
    assert document.values("src") == []
    inside = [h for h in document.values("href") if h.startswith("#") or h == "data:,"]
    beside = [h for h in document.values("href") if h not in inside]
    assert all(re.fullmatch(r"[\w-]+\.(csv|json)", h) for h in beside)
    for _, attrs in document.tags:
        for name, value in attrs.items():
            assert not name.startswith("on")
            assert "http" not in (value or "") or name == "http-equiv"
    sheet = "".join(document.sheets)
    assert "url(" not in sheet
    assert "@import" not in sheet
    assert "default-src 'none'" in page


def test_ids_are_unique_links_resolve_and_figures_are_numbered_in_order(document, page, made):
    ids = document.values("id")
    assert len(ids) == len(set(ids))
    used = {h[1:] for h in document.values("href") if h.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert used <= set(ids)
    numbers = [int(n) for n in re.findall(r"<b>Figure (\d+)\.", page)]
    assert numbers == list(range(1, len(words_of(made, {}).of("figures")) + 1))
    drawings = [attrs for tag, attrs in document.tags if tag == "svg"]
    assert all(d["role"] == "img" and d["aria-labelledby"] for d in drawings)
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", svgs)


JOINING = ("estimator", "group", "how", "cell", "configuration", "name", "dataset", "headline",
           "selected_epoch")  # fmt: skip


def inject(value):
    """`value` with every text in it replaced by an attack, but for what joins the parts."""
    if isinstance(value, str):
        return ATTACK + value
    if is_dataclass(value):
        own = {f.name: getattr(value, f.name) for f in fields(value)}
        return replace(value, **{k: inject(v) for k, v in own.items() if k not in JOINING})
    if isinstance(value, dict):
        return {k: v if k in JOINING else inject(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [inject(v) for v in value]
    return value


def renamed(made: Findings) -> Findings:
    """Hostile names too: of cells, datasets, layer groups, and of a row's columns."""

    def of(row):
        names = {k: row[k] for k in ("cell", "name", "dataset") if k in row}
        return row | {k: v.replace("qnli", f"{ATTACK}qnli") for k, v in names.items()}

    parts = ("cells", "scored", "free", "retrained", "ranking", "cancellation", "blocks")
    moved = {part: [of(row) for row in getattr(made, part)] for part in parts}
    strange = [
        s | {"group": ATTACK, "configuration": f"{s['estimator']}/{ATTACK}/{s['how']}"}
        for s in moved["scored"]
        if s["group"] == "00-01"
    ]
    moved["scored"] += strange
    moved["ranking"] = [row | {ATTACK: ATTACK} for row in moved["ranking"]]
    return replace(made, **moved)


def test_text_from_data_and_config_is_escaped(document):
    attacked = render(renamed(inject(findings(1, small=True))))
    parsed = Document(attacked)
    assert {tag for tag, _ in parsed.tags} == {tag for tag, _ in document.tags}
    assert attacked.count("<script") == 1  # which sorts tables
    assert "onerror" not in {name for _, attrs in parsed.tags for name in attrs}
    assert parsed.text.count("<script>alert(1)</script>") > 60
    assert "$x_1$" in parsed.text


@pytest.mark.slow
def test_same_findings_same_bytes_in_another_process():
    code = "from tests.support.gram_findings import findings;"
    code += "from tests.report.test_gram_page import render;"
    code += "import sys; sys.stdout.buffer.write(render(findings(1, small=True)).encode())"
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=300,
        env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert again.stdout.decode() == render(findings(1, small=True))


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH to open the page in")
def test_a_browser_opens_the_whole_page_without_complaint(page, made, tmp_path):
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
    assert len([tag for tag, _ in shown.tags if tag == "svg"]) == len(
        words_of(made, {}).of("figures")
    )
    assert shown.text.startswith("Mislabelled rows of two GLUE tasks")
