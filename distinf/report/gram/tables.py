"""Every number of the report as plain rows."""

from distinf.report.gram import detection_tables, method_tables, spread_tables
from distinf.report.gram.findings import Findings
from distinf.report.gram.summaries import Row
from distinf.report.gram.theorem import theorem_rows

Tables = dict[str, list[Row]]


def tables(findings: Findings) -> Tables:
    """Name -> rows, for CSV and JSON. Percentages carry `_pct`, percentage points `_points`.

    `low` and `high` bound the 95 % bootstrap interval over datasets, then seeds; missing is NaN or
    None. Tables without rows are left out.
    """
    made = {
        "cells": detection_tables.cells(findings),
        "ranking": detection_tables.ranking(findings),
        "detection": detection_tables.detection(findings),
        "free_rankings": detection_tables.free_rankings(findings),
        "scored": detection_tables.scored(findings),
        "deciles": detection_tables.deciles(findings),
        "curves": detection_tables.curves(findings),
        "modules": detection_tables.modules(findings),
        "accuracy": method_tables.accuracy(findings),
        "query_loss": method_tables.query_loss(findings),
        "methods": method_tables.methods(findings),
        "layers": method_tables.layer_ranks(findings),
        "gains": spread_tables.gains(findings),
        "gain_trials": spread_tables.gain_trials(findings),
        "quartiles": spread_tables.quartiles(findings),
        "proxies": method_tables.proxies(findings),
        "proxy_points": method_tables.proxy_points(findings),
        "retrained": method_tables.retrained(findings),
        "cancellation": _cancellation(findings),
        "theorem": theorem_rows(findings),
        "correlations": detection_tables.correlations(findings),
        "joint_correlations": detection_tables.joint_correlations(findings),
        "conditioning": detection_tables.conditioning(findings),
        "estimator_times": detection_tables.estimator_times(findings),
        "costs": detection_tables.costs(findings),
    }
    return {name: rows for name, rows in made.items() if rows}


def _cancellation(findings: Findings) -> list[Row]:
    """Table 1 with its last column, where there are accuracies to correlate with."""
    agreed = method_tables.c_agreement(findings)
    rows = detection_tables.cancellation(findings)
    for row in rows:
        if row["group"] in agreed:
            row |= {"rho": agreed[row["group"]].rho, "p": agreed[row["group"]].p}
    return rows
