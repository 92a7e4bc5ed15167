"""The parts of the page that a run has any number of: experiments, and runs beside it."""

from dataclasses import dataclass, replace

from distinf.report.columns import View
from distinf.report.grids import Grid
from distinf.report.spectral.captions import Tables
from distinf.report.spectral.experiment_tables import arm_rows
from distinf.report.spectral.experiment_views import arms_view, rates_view
from distinf.report.spectral.experiment_words import gist, name_of, question, reading, setup
from distinf.report.spectral.families import experiments, kind, run_label
from distinf.report.spectral.findings import Findings
from distinf.report.spectral.headline_tables import by_target, paired, summary, targets
from distinf.report.spectral.views import run_views
from distinf.report.spectral.wording import Answer, answer


@dataclass(frozen=True)
class Experiment:
    """`picture` names its figure; `tables` are printed, `folded` can be opened."""

    anchor: str
    heading: str
    question: str
    setup: str
    reading: str
    gist: str
    tables: tuple[View | Grid, ...]
    folded: tuple[View | Grid, ...]

    @property
    def picture(self) -> str:
        return self.anchor


@dataclass(frozen=True)
class Variation:
    """A run beside this one: its own answer and tables, and deviations that are not this run's."""

    anchor: str
    heading: str
    task: str
    deviations: tuple[str, ...]
    answer: Answer
    tables: tuple[View | Grid, ...]
    folded: tuple[View | Grid, ...]


def experiment_sections(findings: Findings, rows: Tables) -> list[Experiment]:
    """One per family but Table 1's, in order."""
    found = []
    for place, family in enumerate(experiments(findings), 1):
        mine = [r for r in rows.get("arms", []) if r["experiment"] == family.name]
        swept = [r for r in rows.get("rates", []) if r["experiment"] == family.name]
        sweep = kind(family) == "rates"
        arms = arms_view(findings, family, mine)
        rates = rates_view(findings, family, swept)
        found.append(
            Experiment(
                f"experiment-{place}",
                name_of(family),
                question(findings, family),
                setup(findings, family),
                reading(findings, family, rows),
                gist(findings, family, rows),
                tuple(v for v in (rates if sweep else arms,) if v is not None),
                tuple(v for v in (arms if sweep else None,) if v is not None),
            )
        )
    return found


def variation_sections(findings: Findings) -> list[Variation]:
    """One per run beside this one."""
    found = []
    for place, (name, run) in enumerate(findings.beside.items(), 1):
        rows: Tables = {
            "summary": summary(run),
            "paired": paired(run),
            "by_target": by_target(run),
            "targets": targets(run),
        }
        printed = run_views(run, rows)
        arms = [arms_view(run, f, arm_rows(run, f)) for f in experiments(run)]
        titled = [
            replace(v, title=f"{name_of(f)}. {v.title}")
            for f, v in zip(experiments(run), arms, strict=True)
            if v is not None
        ]
        found.append(
            Variation(
                f"variation-{place}",
                run_label(name, run),
                run.task,
                tuple(d for d in run.deviations if d not in findings.deviations),
                answer(run, rows),
                tuple(printed[k] for k in ("summary", "targets") if k in printed),
                (*(printed[k] for k in ("by_target",) if k in printed), *titled),
            )
        )
    return found
