"""The page: findings to one HTML file that needs nothing else."""

import math
from collections.abc import Callable

from markupsafe import Markup

from distinf.numerics.bootstrap import RESAMPLES
from distinf.report.formats import count
from distinf.report.gram import accuracy_figures, detection_figures, machine_figures
from distinf.report.gram.captions import captions, titles
from distinf.report.gram.findings import Findings
from distinf.report.gram.summaries import spoken
from distinf.report.gram.tables import Tables, tables
from distinf.report.gram.views import facts, listed, views
from distinf.report.gram.wording import answer
from distinf.report.templates import Picture, page_template, source

Draw = Callable[[Findings, Tables, str, str], str | None]
DRAW: dict[str, Draw] = {  # in page order
    "curves": detection_figures.curves_figure,
    "grid": detection_figures.grid_figure,
    "deciles": detection_figures.deciles_figure,
    "accuracy": accuracy_figures.accuracy_figure,
    "trends": accuracy_figures.trends_figure,
    "modules": detection_figures.modules_figure,
    "proxies": accuracy_figures.proxies_figure,
    "correlations": machine_figures.correlations_figure,
    "training": machine_figures.training_figure,
}

PACKAGE = "distinf.report.gram"


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
        tables=views(findings, rows),
        listed=listed(findings),
        headline=spoken(findings.headline.name),
        right_known=any(c.correct_queries is not None for c in findings.cells),
        flips_known=any(c.flips for c in findings.cells),
        labels_told=any(s.within_labels is not None for s in findings.scored),
        sources=_sources(findings),
        unread=_unread(findings),
        facts=facts(findings),
        draws=count(RESAMPLES),
    )


def figures(findings: Findings, rows: Tables) -> dict[str, Picture]:
    """The pictures that the findings hold data for, numbered in page order."""
    heads, texts = titles(findings), captions(findings, rows)
    pictures: dict[str, Picture] = {}
    for name, draw in DRAW.items():
        svg = draw(findings, rows, name, heads[name])
        if svg is not None:
            place = len(pictures) + 1
            pictures[name] = Picture(place, name, Markup(svg), heads[name], texts[name])
    return pictures


def _sources(findings: Findings) -> list[str]:
    named = {p.source for p in findings.methods_published}
    return sorted(named | {p.source for p in findings.layers_published})


def _unread(findings: Findings) -> str:
    """How much of the published methods' table is empty, being unreadable; "" if nothing is."""
    every = findings.methods_published
    numbers = [v for p in every for pair in p.accuracy.values() for v in pair]
    numbers += [v for p in every for v in (p.win_rate, p.win_rate_sd)]
    numbers_lost = sum(math.isnan(v) for v in numbers)
    fronts_lost = sum(p.rank is None for p in every)
    if not numbers_lost + fronts_lost:
        return ""
    return (
        f"{count(numbers_lost)} of {count(len(numbers))} numbers and {count(fronts_lost)} of "
        f"{count(len(every))} fronts"
    )
