"""Every number of the report as plain rows, and those rows as CSV or JSON."""

import csv
import io
import json
from collections.abc import Sequence

from distinf.stages.page import headline_tables, machine_tables
from distinf.stages.page.experiment_tables import experiment_tables
from distinf.stages.page.findings import Findings, plain
from distinf.stages.page.run_tables import beside_tables, effects, table_1_rows, variations
from distinf.stages.page.summaries import Row


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
        "truncation": machine_tables.truncation(findings),
        "attributions": machine_tables.attributions(findings),
        "attribution_sums": machine_tables.attribution_sums(findings),
        "variations": variations(findings),
        **experiment_tables(findings),
        **beside_tables(findings),
    }
    return always | {name: rows for name, rows in some.items() if rows}


def csv_text(rows: Sequence[Row]) -> str:
    """Rows as CSV with the union of their columns; missing and non-finite values are empty."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None else v for k, v in plain(row).items()})
    return out.getvalue()


def json_text(rows: Sequence[Row]) -> str:
    """Rows as strict JSON; non-finite values are null."""
    return json.dumps(plain(rows), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
