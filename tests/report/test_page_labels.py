"""Texts on the pages' pictures and tables: none on another, none cut off."""

import html
import json
import re
import subprocess
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from distinf.report import svg
from distinf.report.formats import shortened
from distinf.report.gram import figures as gram_figures
from distinf.report.gram.findings import Findings as GramFindings
from distinf.report.gram.tables import tables as gram_tables
from distinf.report.spectral.findings import (
    AxisCurves,
    EvaluationPoints,
    Findings,
    ScoreSet,
    Target,
)
from distinf.report.spectral.page import page
from distinf.report.svg import legend, title
from tests.report.test_page import render
from tests.support import gram_findings
from tests.support.experiments import study
from tests.support.html import BROWSER, picture
from tests.support.labels import labels, outside, overlapping

FEW = settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.generate])
WHOLE = study()
FIRST = WHOLE.families[:1]  # Table 1's, without curves
NAMES = st.text("abcdefgh ,:50", min_size=1, max_size=70).map(str.strip).filter(bool)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    made = gram_findings.findings()
    return {"study": render(WHOLE), "layers": gram_findings.render(made, gram_tables(made))}


def read(drawn: str | None) -> str:
    """The picture, once it is known that its texts can be read."""
    assert drawn is not None
    assert labels(drawn)
    assert overlapping(drawn) == []
    assert outside(drawn) == []
    return drawn


def test_texts_that_lie_on_each_other_are_found():
    def text(x: float, y: float, words: str, turned: float = 0, anchor: str = "start") -> str:
        style = f"font-size: 10px; text-anchor: {anchor}"
        place = f'x="{x}" y="{y}" transform="rotate({turned} {x} {y})"'
        return f'<text style="{style}" {place}>{words}</text>'

    frame = '<svg viewBox="0 0 100 50">'
    beside = text(10, 20, "noon") + text(34, 20, "noon")
    assert overlapping(frame + beside) == []
    assert overlapping(frame + beside.replace("34", "28")) == [("noon", "noon")]
    assert overlapping(frame + text(10, 20, "four") + text(10, 26, "four")) == [("four", "four")]
    slanted = [text(20 + 12 * k, 20, "slanted", -40, "end") for k in range(3)]
    assert overlapping(frame + "".join(slanted)) == []
    assert outside(frame + text(80, 20, "noon")) == ["noon"]
    assert outside(frame + text(80, 20, "noon", 0, "end")) == []


@pytest.mark.parametrize("name", ["study", "layers"])
def test_no_text_of_a_page_lies_on_another(pages, name):
    pictures = re.findall(r"<svg.*?</svg>", pages[name], re.DOTALL)
    assert len(pictures) > 8
    for drawn in pictures:
        read(drawn)


@FEW
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from([3.0, 3.05, 3.2, 19.9]),
                  st.floats(95, 100)),
        min_size=1, max_size=8, unique_by=lambda t: t[0],
    )
)  # fmt: skip
@example([(27, 3.0, 100.0), (92, 3.2, 99.98), (692, 3.0, 95.4), (5293, 19.9, 99.71)])
def test_the_names_of_targets_near_each_other_do_not_meet(rows):
    ids, snr, gap = (np.array(column) for column in zip(*rows, strict=True))
    points = EvaluationPoints(ids, gap, snr, reference_E=np.full(ids.size, 0.01))
    found = Findings("t", "t", targets=[Target(int(i), 0.1, 1.0) for i in ids], evaluation=points)
    named = {x.text for x in labels(read(picture(page(found), "targets")))} & {str(i) for i in ids}
    assert named or len(ids) > 1


@pytest.mark.slow
@FEW
@given(st.lists(NAMES, min_size=2, max_size=5, unique=True))
def test_names_of_runs_do_not_meet(names):
    one = WHOLE.variations["reduced"]
    named = replace(WHOLE, label=names[0], variations={n: replace(one, label=n) for n in names[1:]})
    made = page(named)
    for name in ("axis", "score-runs", "table-1", "variations"):
        read(picture(made, name))


@pytest.mark.slow
@FEW
@given(st.integers(-14, 14), st.integers(1, 8))
@example(4, 3)
def test_ticks_of_any_size_do_not_meet(exponent, many):
    rng = np.random.default_rng(0)
    scores = {1: 10.0**exponent * rng.standard_t(3, 500)}
    sets = [ScoreSet("bce", f"variant {k}", scores) for k in range(many)]
    read(picture(page(Findings("t", "t", scores=sets)), "scores"))
    x = [3.0 * k * 10.0**exponent for k in range(10)]
    curves = AxisCurves(x, [1] * 10, {"before": [0.1] * 10, "random": [0.2] * 10})
    runs = {str(k): replace(WHOLE, axis_curves=curves, families=FIRST) for k in range(2)}
    found = replace(WHOLE, axis_curves=curves, families=FIRST, variations=runs)
    read(picture(page(found), "axis"))


@FEW
@given(st.integers(1, 27), st.integers(1, 3))
@example(22, 3)
def test_layer_groups_of_any_number_do_not_meet(many, hows):
    groups = [f"{k:02}-{k + 1:02}" for k in range(0, 2 * many, 2)]
    scored = [
        gram_findings.scored("a", (e, g, h), 1.0, 0.6)
        for e in ("tracin", "datainf")
        for g in groups
        for h in ("mean", "rank", "vote")[:hows]
    ]
    cells = [gram_findings.cell(flips=200)]
    matrix = {"names": [*groups, "all"], "values_MM": np.eye(many + 1)}
    matrices = [{"title": title, **matrix} for title in ("one", "two")]
    found = GramFindings("t", "t", cells=cells, scored=scored, correlations=matrices)
    rows = gram_tables(found)
    for draw in (gram_figures.grid, gram_figures.correlations):
        read(svg.picture("any", "t", partial(draw, found, rows)))


@FEW
@given(st.lists(st.integers(0, 30), min_size=3, max_size=6))
def test_epochs_near_each_other_do_not_meet(best):
    history = {"train_loss": np.linspace(1, 0, 200).tolist()}
    cells = [gram_findings.cell(seed=k, best=b, history=history) for k, b in enumerate(best)]
    found = GramFindings("t", "t", cells=cells)
    read(svg.picture("training", "t", partial(gram_figures.training, found, {})))


@FEW
@given(st.lists(NAMES, min_size=1, max_size=12, unique=True), st.lists(NAMES, max_size=4))
@example([f"one name of ten of some length, {k}" for k in range(10)], [])
def test_a_legend_and_titles_stay_in_the_picture(names, titles):

    def draw(figure):
        panels = figure.subplots(1, max(1, len(titles)), squeeze=False)[0]
        for axes, text in zip(panels, titles, strict=False):
            title(axes, text, strong=True)
        for name in names:
            panels[0].plot([0, 1], [0, 1], label=name)
        legend(figure, *panels, columns=8, most=40)

    drawn = read(svg.picture("any", "t", draw))
    assert {shortened(name, 40) for name in names} <= {x.text for x in labels(drawn)}


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH to open the page in")
@pytest.mark.parametrize("name", ["study", "layers"])
def test_tables_fit_a_page_of_1000_pixels(pages, name, tmp_path):
    script = """<script>addEventListener("load", () => {
      document.querySelectorAll("details").forEach(d => d.open = true);
      const wide = s => s.scrollWidth > s.clientWidth + 1;
      const cut = [...document.querySelectorAll(".scroll, .canvas")].filter(wide);
      document.body.dataset.found = JSON.stringify({
        cut: cut.map(s => s.textContent.trim().slice(0, 80)),
        tables: document.querySelectorAll(".scroll").length, page: wide(document.documentElement),
      });
    })</script>"""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", pages[name])
    for width, fits in ((1000, True), (500, False)):
        file = tmp_path / f"{width}.html"
        file.write_text(page.replace("</body>", script + "</body>"), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
        flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
        opened = subprocess.run(
            [str(BROWSER), *flags], capture_output=True, text=True, timeout=60, check=True
        )
        found = json.loads(html.unescape(re.search(r'data-found="(.*?)"', opened.stdout)[1]))
        assert found["tables"] > 8
        assert not found["page"], "the page itself must never be wider than the window"
        assert (not found["cut"]) == fits, found["cut"]
