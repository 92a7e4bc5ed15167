"""The page: findings to one HTML file that needs nothing else."""

from markupsafe import Markup

from distinf.numerics.bootstrap import RESAMPLES
from distinf.report.columns import View
from distinf.report.formats import count
from distinf.report.grids import Grid
from distinf.report.spectral.captions import Tables
from distinf.report.spectral.experiment_views import (
    attributions_view,
    effects_view,
    table_1_view,
    variations_view,
)
from distinf.report.spectral.experiment_words import table_1_reading, table_1_targets
from distinf.report.spectral.findings import Findings
from distinf.report.spectral.overlaps import overlaps_view
from distinf.report.spectral.pictures import drawings
from distinf.report.spectral.sections import experiment_sections, variation_sections
from distinf.report.spectral.tables import tables
from distinf.report.spectral.views import facts, views
from distinf.report.spectral.wording import answer
from distinf.report.templates import Picture, page_template, source

PACKAGE = "distinf.report.spectral"


def render(findings: Findings) -> str:
    """The report as one HTML document: no scripts, no requests; all text from data is escaped.

    The same findings give the same bytes (for one version of matplotlib).
    """
    rows = tables(findings)
    return page_template(PACKAGE).render(
        findings=findings,
        style=Markup(source(PACKAGE, "style.css")),
        answer=answer(findings, rows),
        figures=figures(findings, rows),
        tables={**views(findings, rows), **_further(findings, rows)},
        table_1=table_1_view(rows),
        table_1_reading=table_1_reading(rows),
        table_1_targets=table_1_targets(rows),
        experiments=experiment_sections(findings, rows),
        variations=variation_sections(findings),
        attributed=list(dict.fromkeys(a.target for a in findings.attributions)),
        facts=facts(findings),
        draws=count(RESAMPLES),
    )


def figures(findings: Findings, rows: Tables) -> dict[str, Picture]:
    """The pictures that the findings hold data for, numbered in page order."""
    pictures: dict[str, Picture] = {}
    for drawing in drawings(findings, rows):
        name, title = drawing.name, drawing.title
        svg = None if name in pictures else drawing.draw(name, title)
        if svg is not None:
            place = len(pictures) + 1
            said = drawing.caption if isinstance(drawing.caption, str) else drawing.caption()
            pictures[name] = Picture(place, name, Markup(svg), title, said)
    return pictures


def _further(findings: Findings, rows: Tables) -> dict[str, View | Grid]:
    made: dict[str, View | Grid | None] = {
        "effects": effects_view(findings, rows),
        "variations": variations_view(findings, rows),
        "overlaps": overlaps_view(findings, rows.get("overlaps", [])),
    }
    for target in dict.fromkeys(a.target for a in findings.attributions):
        made[f"attribution {target}"] = attributions_view(target, rows)
    return {name: table for name, table in made.items() if table is not None}
