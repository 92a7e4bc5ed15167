"""The page: findings to one HTML file that needs nothing else."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from distinf.stages.page.captions import captions, titles
from distinf.stages.page.diagnostics import (
    costs_figure,
    ritz_figure,
    scores_figure,
    training_figure,
)
from distinf.stages.page.figures import axis_figure, steps_figure, targets_figure
from distinf.stages.page.findings import Findings
from distinf.stages.page.formats import count
from distinf.stages.page.gap_figure import gap_figure
from distinf.stages.page.intervals import RESAMPLES
from distinf.stages.page.tables import tables
from distinf.stages.page.views import facts, views
from distinf.stages.page.wording import answer

DRAW = {
    "gap": gap_figure,
    "steps": steps_figure,
    "axis": axis_figure,
    "targets": targets_figure,
    "scores": scores_figure,
    "ritz": ritz_figure,
    "training": training_figure,
    "costs": costs_figure,
}


@dataclass(frozen=True)
class Picture:
    number: int
    name: str
    svg: Markup
    title: str
    caption: str


def render(findings: Findings) -> str:
    """The report as one HTML document: no scripts, no requests; all text from data is escaped.

    The same findings give the same bytes (for one version of matplotlib).
    """
    rows = tables(findings)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_source("template.html.jinja"))
    return template.render(
        findings=findings,
        style=Markup(_source("style.css")),
        answer=answer(findings, rows),
        figures=figures(findings, rows),
        tables=views(findings, rows),
        facts=facts(findings),
        draws=count(RESAMPLES),
    )


def figures(findings: Findings, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Picture]:
    """The pictures that the findings hold data for, numbered in page order."""
    heads, texts = titles(findings), captions(findings, rows)
    pictures: dict[str, Picture] = {}
    for name, draw in DRAW.items():
        svg = draw(findings)
        if svg is not None:
            place = len(pictures) + 1
            pictures[name] = Picture(place, name, Markup(svg), heads[name], texts[name])
    return pictures


def _source(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
