"""Which pictures a page can have, in its order, and what draws each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from distinf.report.spectral import experiment_captions as words
from distinf.report.spectral.attribution_figure import attribution_figure
from distinf.report.spectral.axis_figures import axis_grid
from distinf.report.spectral.captions import Tables, captions, titles
from distinf.report.spectral.diagnostics import (
    costs_figure,
    ritz_figure,
    score_runs_figure,
    scores_figure,
    training_figure,
)
from distinf.report.spectral.families import experiments, kind
from distinf.report.spectral.figures import axis_figure, steps_figure, targets_figure
from distinf.report.spectral.findings import Family, Findings
from distinf.report.spectral.gap_figure import gap_figure
from distinf.report.spectral.path_figure import path_figure
from distinf.report.spectral.rate_figure import rate_figure
from distinf.report.spectral.run_figures import arms_figure, table_1_figure, variations_figure
from distinf.report.spectral.truncation_figure import truncation_figure

DRAW = {  # of any run; their titles and captions are in captions.py
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
class Drawing:
    """A picture to draw: `draw` takes its name and title, and gives None without data for it."""

    name: str
    title: str
    draw: Callable[[str, str], str | None]
    caption: str | Callable[[], str]


def drawings(findings: Findings, rows: Tables) -> Iterator[Drawing]:
    """In page order. Of two by one name the first that can be drawn is meant."""
    heads, texts = titles(findings), captions(findings, rows)

    def usual(*names: str) -> Iterator[Drawing]:
        for name in names:
            yield Drawing(
                name, heads[name], partial(_by_findings, findings, DRAW[name]), texts[name]
            )

    yield from usual("gap", "steps")
    yield Drawing(
        "axis", heads["axis"], partial(axis_grid, findings), lambda: words.axis_caption(findings)
    )
    yield from usual("axis")
    yield Drawing(
        "table-1",
        words.table_1_title(findings),
        partial(table_1_figure, rows),
        lambda: words.table_1_caption(findings),
    )
    for place, family in enumerate(experiments(findings), 1):
        yield _experiment(findings, family, rows, f"experiment-{place}")
    yield Drawing(
        "variations",
        f"{findings.metric.name} and gap closed, by run",
        partial(variations_figure, rows.get("variations", []), findings.metric.name),
        lambda: words.variations_caption(findings),
    )
    yield from usual("targets", "scores")
    yield Drawing(
        "score-runs",
        f"Influence scores of the training {findings.headline.noun}, by run",
        partial(score_runs_figure, findings),
        lambda: words.score_runs_caption(findings),
    )
    for target in dict.fromkeys(a.target for a in findings.attributions):
        yield _attribution(findings, target, rows)
    yield from usual("ritz")
    yield Drawing(
        "truncation",
        "By how much each Ritz value lowers the truncation bound",
        partial(truncation_figure, findings, rows),
        lambda: words.truncation_caption(findings, rows),
    )
    yield from usual("training", "costs")


def _by_findings(
    findings: Findings, draw: Callable[[Findings], str | None], _name: str, _title: str
) -> str | None:
    return draw(findings)


def _experiment(findings: Findings, family: Family, rows: Tables, name: str) -> Drawing:
    shape = kind(family)
    mine = [r for r in rows.get("arms", []) if r["experiment"] == family.name]
    draw: Callable[[str, str], str | None]
    if shape == "updates":
        draw = partial(path_figure, findings, family)
    elif shape == "rates":
        draw = partial(rate_figure, findings, family)
    else:
        draw = partial(arms_figure, mine, findings.metric.name)
    return Drawing(
        name,
        words.experiment_title(findings, family),
        draw,
        lambda: words.experiment_caption(findings, family, rows),
    )


def _attribution(findings: Findings, target: int, rows: Tables) -> Drawing:
    return Drawing(
        f"attribution-{target}",
        words.attribution_title(findings, target),
        partial(attribution_figure, findings, target),
        lambda: words.attribution_caption(target, rows),
    )
