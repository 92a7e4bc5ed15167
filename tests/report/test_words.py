"""Columns as words.yaml has them, and rows of dots."""

import re

import pytest

from distinf.report import svg
from distinf.report.plots import Dot, Panel, rows_of_dots, stacked
from distinf.report.render import printed
from distinf.report.words import Words, column
from tests.support.labels import overlapping

ROW = {
    "mean_pct": 1.0,
    "sd_pct": 2.0,
    "low_pct": 0.0,
    "high_pct": 3.0,
    "n": 0,
    "of": 1234,
    "b": 2.5,
}


@pytest.mark.parametrize(
    ("heading", "told", "group", "texts"),
    [
        ("of", "count", "", ("1,234", "")),
        ("samples", "count of", "", ("1,234", "")),
        ("failed", "some n", "", ("", "")),
        ("g | closed", "spread", "g", ("1.0\u202f±\u202f2.0", "0.0 to 3.0")),
        ("change", "difference no_ pct mean_", "", ("", "")),
        ("metric", "over of b mean gap", "", ("1,234", "mean gap 2.50")),
        ("metric", "over of missing reference", "", ("1,234", "")),
        ("here", "mark n", "", ("", "")),
        ("share", "share b", "", ("250.0", "")),
    ],
)
def test_a_column_is_told_in_a_line(heading, told, group, texts):
    made = column(heading, told)
    cell = made.of(ROW)
    assert (made.group, (cell.text, cell.detail)) == (group, texts)
    assert made.heading == heading.rpartition(" | ")[2]


def test_an_unknown_form_is_an_error():
    with pytest.raises(KeyError):
        column("samples", "counts of")


def test_columns_from_the_data_stand_where_words_have_the_dots():
    words = Words("distinf.report.spectral", {"metric": "BER"})
    row = {"panel": "p", "target_metric": 1.0, "non_target_metric": 2.0, "x": 3.0}
    shown = printed(words.table("effects", [row], [column("x", "number")]))
    assert [c.heading for c in shown.columns] == ["experiment", "x", "BER", "BER"]
    target = {"target": 1, "selection": "helpful", "x": 4.0}
    shown = printed(words.table("by_target", [target], [column("x", "number")]))
    assert [c.heading for c in shown.columns] == ["target", "selection", "x"]


def drawn(*panels: Panel) -> str | None:
    return svg.picture("any", "t", lambda canvas: rows_of_dots(canvas, 2.0, *panels))


def texts(picture: str | None) -> list[str]:
    assert picture is not None
    assert overlapping(picture) == []
    return re.findall(r">([^<>\n]+)</text>", picture)


def test_dots_beyond_the_scale_are_counted_and_one_alone_has_its_number():
    near = [Dot(0, v, faint=True) for v in (10.0, 20.0)]
    far = [Dot(0, v, color="harmful", faint=True) for v in (-400.0, -500.0, -600.0)]
    shown = texts(drawn(Panel("h", ["one", "two"], [*near, *far, Dot(1, -450.0)], -100.0)))
    assert "3 beyond" in shown
    assert "−450" in shown
    assert "−600" not in shown
    every = texts(drawn(Panel("h", ["one", "two"], [*near, *far, Dot(1, -450.0)])))
    assert not {"3 beyond", "−450"} & set(every)


def test_where_all_lies_beyond_the_least_all_is_shown():
    shown = texts(drawn(Panel("h", ["one"], [Dot(0, -400.0), Dot(0, -300.0)], -100.0)))
    assert not [text for text in shown if "beyond" in text]


def test_labels_are_repeated_only_where_they_differ():
    one = Panel("h", ["first"], [Dot(0, 1.0)])
    assert texts(drawn(one, one)).count("first") == 1
    assert {"first", "second"} <= set(texts(drawn(one, Panel("h", ["second"], [Dot(0, 2.0)]))))
    assert drawn(Panel("h", ["first"], [Dot(0, float("nan"))])) is None


def test_two_dots_of_a_row_stand_above_each_other():
    rows = [d.row for d in stacked([Dot(0, 1.0), Dot(0, 2.0), Dot(1, 3.0)])]
    assert rows == pytest.approx([-0.17, 0.17, 0.83])
