"""One schema, one renderer: what a page's parts become, and that tables sort."""

import html
import json
import math
import re
from functools import partial

import pytest

from distinf.report import formats, render
from distinf.report.schema import (
    Bullets,
    Column,
    Entry,
    Facts,
    Figure,
    Page,
    Section,
    Table,
    Text,
    difference,
    spread,
    stub,
    text,
)
from tests.support.html import ATTACK, BROWSER, Document, opened

ROWS = [
    {"loss": "bce", "variant": "a", "mean_pct": 9.0, "sd_pct": 1.0, "n": 3, "void": None},
    {"loss": "bce", "variant": "b", "mean_pct": -1200.0, "low_pct": -2.0, "high_pct": 4.0},
    {"loss": "ber", "variant": "a", "mean_pct": math.nan, "n": 20, "vs_points": 0.25},
    {"loss": "total", "variant": "", "mean_pct": 5.0, "n": 23, "place": 1},
]
COLUMNS = [
    stub("loss", "loss"),
    stub("variant", "variant"),
    spread("closed", group="here"),
    Column("trials", "n", formats.count, "here"),
    difference("minus random"),
    text("void", "void"),
    Column("price", lambda r: Entry("low" if r["variant"] == "a" else "", "a detail")),
]


def line(points, figure):
    if not points:
        return False
    figure.subplots().plot(points)
    return None


def page(**changes) -> Page:
    figures = [Figure(n, n.title(), "C.", partial(line, p), "loss")
               for n, p in (("none", []), ("some", [1, 2]), ("more", [3, 1]))]  # fmt: skip
    made = {
        "answer": ["It helps.", "By much.", "At no price."],
        "warnings": ["Beware."],
        "sections": [
            Section("effect", "Effect", [Table("By loss", ROWS, COLUMNS, "loss"), *figures]),
            Section("void", "Void", [Table("t", [], COLUMNS), Facts([("a", "n/a")]), Text(""),
                                     Bullets([]), Section("empty", "Empty", [])], "An intro."),
            Section("more", "More", [Section("in", "In", [Text("x", "pre", "Shown")], "Intro")]),
        ],
    }  # fmt: skip
    return Page("A title", "A task.", **(made | changes))


def test_what_has_nothing_to_say_is_left_out():
    whole = render.html(page(), {"loss"})
    document = Document(whole)
    ids = document.values("id")
    assert {"effect", "figure-some", "figure-more", "more", "in"} <= set(ids)
    assert not {"void", "empty", "figure-none"} & set(ids)
    assert re.findall('href="(.*?)"', whole[whole.index("<nav") : whole.index("</nav")]) == [
        "#effect", "#more",
    ]  # fmt: skip
    assert "Figure 1. Some." in document.text
    assert "Figure 2. More." in document.text
    assert "void" not in document.text
    assert document.values("href").count("loss.csv") == 3  # the table's and the figures'
    assert "loss.csv" not in render.html(page())


def test_cells_are_the_rows_as_a_reader_sees_them():
    table = render.printed(Table("t", ROWS, COLUMNS))
    assert [c.heading for c in table.columns] == [
        "loss", "variant", "closed", "trials", "minus random", "price",
    ]  # fmt: skip
    assert table.groups == (("", 2), ("here", 2), ("", 2))
    cells = [[c.text for c in made.cells] for made in table.lines]
    space = formats.SPACE
    assert cells[0] == ["bce", "a", f"9.0{space}±{space}1.0", "3", "", "low"]
    assert cells[2] == ["ber", "a", "n/a", "20", "+0.3" if round(0.25, 1) > 0.2 else "+0.2", "low"]
    assert table.lines[1].cells[2] == Entry("−1,200", "−2.0 to 4.0", -1200.0)
    assert [made.again[0] for made in table.lines] == [False, True, False, False]
    assert [made.part for made in table.lines] == [False, False, True, True]
    assert dict(table.parts)["tfoot"] == [table.lines[3]]


def test_texts_are_escaped_and_one_script_alone_may_run():
    rows = [{"a": ATTACK, "b": 1.0}, {"a": ATTACK[::-1], "b": 2.0}]
    columns = [
        stub(ATTACK, "a"),
        Column("b", "b", group=ATTACK),
        text("c", lambda r: Entry(r["a"], ATTACK)),
    ]
    attacked = page(
        question=ATTACK, answer=[ATTACK], warnings=[ATTACK], further=[("x", ATTACK, ATTACK)],
        sections=[Section("s", ATTACK, [
            Table(ATTACK, rows, columns, ATTACK, ATTACK, folded=True),
            Figure("f", ATTACK, ATTACK, partial(line, [1, 2])),
            Text(ATTACK, "pre", ATTACK), Facts([(ATTACK, ATTACK)]), Bullets([(ATTACK, ATTACK)]),
            Section("t", ATTACK, [Text(ATTACK)], ATTACK, folded=True),
        ], ATTACK, ATTACK)],
    )  # fmt: skip
    made = render.html(attacked, {ATTACK})
    document = Document(made)
    assert [tag for tag, _ in document.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in document.tags}
    assert "onerror" not in {name for _, attrs in document.tags for name in attrs}
    assert document.text.count("<script>alert(1)</script>") > 20
    assert "script-src &#39;sha256-" in made or "script-src 'sha256-" in made
    assert render.html(attacked, {ATTACK}) == made


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH to open the page in")
def test_a_click_on_a_heading_sorts_and_the_total_stays_last(tmp_path):
    """By numbers and not by letters; empty cells come last; the keyboard reaches the heading."""
    steps = """
      const told = () => [...document.querySelectorAll("table tr")].slice(2).map(
        r => [...r.cells].slice(0, 2).map(c => c.textContent.trim()).join(" ").trim());
      const sorted = [told()];
      const buttons = [...document.querySelectorAll("th button")];
      for (const at of [3, 3, 1]) { buttons[at].focus(); buttons[at].click(); sorted.push(told()); }
      document.body.dataset.found = JSON.stringify({
        sorted, focus: document.activeElement === buttons[1],
        marked: document.querySelectorAll("[aria-sort]").length,
        shown: getComputedStyle(document.querySelector(".again")).opacity});
    """
    whole = render.html(page(sections=[Section("s", "S", [Table("t", ROWS, COLUMNS)])]))
    assert opened(whole, tmp_path).count('<button type="button">') == 6  # the page's policy lets it
    made = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", whole)
    dom = opened(made.replace("</body>", f"<script>{steps}</script></body>"), tmp_path)
    found = json.loads(html.unescape(re.search(r'data-found="(.*?)"', dom)[1]))
    assert found["sorted"] == [
        ["bce a", "bce b", "ber a", "total"],
        ["ber a", "bce a", "bce b", "total"],
        ["bce a", "ber a", "bce b", "total"],
        ["bce b", "bce a", "ber a", "total"],
    ]
    assert (found["focus"], found["marked"], found["shown"]) == (True, 1, "1")
