"""Every number of the report as plain rows."""

from distinf.report.rows import plain
from distinf.report.spectral import headline_tables, machine_tables
from distinf.report.spectral.experiment_tables import experiment_tables
from distinf.report.spectral.findings import Findings
from distinf.report.spectral.overlaps import overlaps
from distinf.report.spectral.run_tables import beside_tables, effects, table_1_rows, variations
from distinf.report.spectral.summaries import Row


def tables(findings: Findings) -> dict[str, list[Row]]:
    """Name -> rows. Percentages carry `_pct`, percentage points `_points`; missing is NaN/None.

    `low` and `high` bound the 95 % bootstrap interval over targets, then seeds. The tables of
    further experiments, of attribution and of other runs are there where those are.
    """
    always = {
        "summary": headline_tables.summary(findings),
        "paired": headline_tables.paired(findings),
        "by_target": headline_tables.by_target(findings),
        "comparison": headline_tables.comparison(findings),
        "trials": [headline_tables.trial(o) for o in findings.outcomes],
        "steps": headline_tables.steps(findings),
        "axis": headline_tables.axis(findings),
        "targets": headline_tables.targets(findings),
        "scores": machine_tables.scores(findings),
        "top_samples": machine_tables.top_samples(findings),
        "ritz": machine_tables.ritz(findings),
        "solves": [plain(s) for s in findings.solves],
        "training": machine_tables.training(findings),
        "costs": machine_tables.costs(findings),
        "published": [plain(p) for p in findings.published],
    }
    some = {
        "table_1": table_1_rows(findings),
        "effects": effects(findings),
        "overlaps": overlaps(findings),
        "truncation": machine_tables.truncation(findings),
        "attributions": machine_tables.attributions(findings),
        "attribution_sums": machine_tables.attribution_sums(findings),
        "variations": variations(findings),
        **experiment_tables(findings),
        **beside_tables(findings),
    }
    return always | {name: rows for name, rows in some.items() if rows}
