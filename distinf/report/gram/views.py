"""The page's printed tables: rows of `tables` under headings, numbers as readers see them."""

import math
from collections.abc import Callable
from functools import partial

from distinf.report.columns import Column, View, blank, span, text, value, view
from distinf.report.formats import (
    SPACE,
    count,
    duration,
    fixed,
    number,
    shortened,
    signed,
    size,
)
from distinf.report.gram.comparison_views import comparison_views
from distinf.report.gram.findings import Findings
from distinf.report.gram.summaries import Row, falling, groups, spoken
from distinf.report.gram.tables import Tables
from distinf.report.gram.theorem import theorem_view
from distinf.report.grids import Entry, Grid, GridColumn, grid

MOST_PRINTED = 15
CELLS_LISTED = 8
NUMBERS = ("own_loss", "gradient_norm")  # of a ranked row, beside its score
MOST_LETTERS = 400  # of a row's text; the CSV has all of it


def views(findings: Findings, rows: Tables) -> dict[str, View | Grid]:
    """Name -> table, those that have rows."""
    detected = rows.get("detection", [])
    share = f"{100 * findings.headline.share:g}"
    made: dict[str, View | Grid | None] = {
        "cells": _cells(rows),
        "detection": _detection(_beside(rows), share, "those that find the most"),
        "every detection": None,
        "accuracy": _accuracy(rows.get("accuracy", []), findings.epoch),
        "query loss": _query_loss(rows),
        "conditioning": _conditioning(rows),
        "costs": _costs(rows),
        "estimator times": _estimator_times(findings, rows),
        "theorem": theorem_view(rows.get("theorem", [])),
        **comparison_views(findings, rows),
    }
    if len(detected) > MOST_PRINTED:
        made["every detection"] = _detection(detected, share, "every configuration")
    for cell in listed(findings):
        flips = any(c.flips for c in findings.cells if c.name == cell)
        made[f"ranking {cell}"] = _ranking(cell, rows, flips)
    return {name: table for name, table in made.items() if table is not None}


def listed(findings: Findings) -> list[str]:
    """The first cells that have ranked rows."""
    return list(dict.fromkeys(r.cell for r in findings.ranking))[:CELLS_LISTED]


def _beside(rows: Tables) -> list[Row]:
    """The configurations that find the most, and the free rankings in their places among them."""
    free = [
        row | {"estimator": row["ranking"], "group": "", "how": "no influence"}
        for row in rows.get("free_rankings", [])
    ]
    most = rows.get("detection", [])[:MOST_PRINTED]
    return sorted(most + free, key=lambda r: falling(r["ndr_mean_pct"]))


def _cells(rows: Tables) -> View | None:
    percent: Callable[[float], str] = lambda v: fixed(100 * v)  # noqa: E731
    return view(
        "Datasets and seeds, and the model that was scored",
        rows.get("cells", []),
        [
            Column("cell", text("cell"), False),
            Column("rows", value("rows", count)),
            Column("queries", value("queries", count)),
            Column("predicted right", value("correct_queries", count)),
            Column("by one class", blank("majority_queries", count)),
            Column("wrong labels", value("flips", count)),
            Column("likely wrong, by the model", blank("suggested_wrong", count)),
            Column("rows cut", lambda r: count(r["truncated"]) if r["truncated"] else ""),
            Column("epoch", value("best_epoch", count)),
            Column("query loss", value("query_loss", number)),
            Column("query accuracy [%]", blank("query_accuracy", percent)),
            Column("test accuracy [%]", blank("test_accuracy", percent)),
        ],
    )


def _detection(rows: list[Row], share: str, which: str) -> View | None:
    return view(
        f"Wrong labels found in the lowest {share}{SPACE}%, {which}",
        rows,
        [
            Column("estimator", text("estimator"), False),
            Column("layers", text("group"), False),
            Column("aggregation", text("how"), False),
            Column("cells", value("cells", count)),
            Column(f"NDR@{share} [%]", _spread("ndr_", "_pct", 1)),
            Column("95 % interval", span("ndr_low_pct", "ndr_high_pct")),
            Column("random [%]", value("chance_pct", fixed)),
            Column("random, same labels [%]", blank("chance_within_labels_pct", fixed)),
            Column("AUC", _spread("auc_", "", 3)),
        ],
    )


def _spread(prefix: str, unit: str, digits: int) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        mean, sd = row[f"{prefix}mean{unit}"], row[f"{prefix}sd{unit}"]
        told = fixed(mean, digits)
        return told if not math.isfinite(sd) else f"{told}{SPACE}±{SPACE}{fixed(sd, digits)}"

    return cell


def _accuracy(rows: list[Row], epoch: str) -> View | None:
    return view(
        "Test accuracy of the models trained again",
        rows,
        [
            Column("configuration", lambda r: spoken(r["configuration"]), False),
            Column("trials", value("trials", count)),
            Column("best epoch [%]", _spread("", "_pct", 1)),
            Column(f"{epoch} [%]", blank("at_best_pct", fixed)),
            Column("minus random [points]", blank("vs_random_points", signed)),
            Column("95 % interval", span("vs_random_low_points", "vs_random_high_points", signed)),
            Column("higher", _wins),
            Column("minus full [points]", blank("vs_full_points", signed)),
        ],
    )


def _query_loss(rows: Tables) -> View | None:
    """Where the task has no test rows, what filtering did to the queries' loss."""
    return view(
        "Query loss of the models trained again",
        [] if rows.get("accuracy") else rows.get("query_loss", []),
        [
            Column("configuration", lambda r: spoken(r["configuration"]), False),
            Column("trials", value("trials", count)),
            Column("lowest query loss", value("mean", number)),
        ],
    )


def _wins(row: Row) -> str:
    pairs = row.get("vs_random_pairs", 0)
    return f"{count(row['vs_random_wins'])} of {count(pairs)}" if pairs else ""


def _ranking(cell: str, rows: Tables, flips: bool) -> View | None:
    mine = [r for r in rows["ranking"] if r["cell"] == cell]
    own = ("cell", "rank", "row", "score", "label", "flipped", "text", *NUMBERS)
    extra = [k for k in dict.fromkeys(k for r in mine for k in r) if k not in own]
    if all(str(r.get("id")) == str(r["row"]) for r in mine):
        extra = [k for k in extra if k != "id"]
    known = [Column("known to be wrong", lambda r: _known(r["flipped"]), False)] if flips else []
    return view(
        f"{cell}: the {count(len(mine))} lowest rows" if cell else "The lowest rows",
        mine,
        [
            Column("rank", value("rank", count)),
            Column("row", text("row")),
            Column("text", lambda r: shortened(r["text"], MOST_LETTERS), False),
            Column("label", text("label"), False),
            *known,
            *(Column(key.replace("_", " "), _plain(key), False) for key in extra),
            *(Column(key.replace("_", " "), blank(key, number)) for key in NUMBERS),
            Column("score", value("score", number)),
        ],
    )


def _known(flipped: bool | None) -> str:
    return "" if flipped is None else "yes" if flipped else "no"


def _plain(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else number(row[key])


def _conditioning(rows: Tables) -> View | None:
    return view(
        "Condition numbers of the damped Fisher systems",
        rows.get("conditioning", []),
        [
            Column("estimator", text("estimator"), False),
            Column("systems", value("systems", count)),
            Column("least λ", value("least_damping", number)),
            Column("largest λ", value("most_damping", number)),
            Column("median condition", value("median_condition", number)),
            Column("worst condition", value("worst_condition", number)),
            Column("in", text("worst"), False),
        ],
    )


def _costs(rows: Tables) -> View | None:
    return view(
        "Cost by stage",
        rows.get("costs", []),
        [
            Column("stage", text("stage"), False),
            Column("units", value("units", count)),
            Column("wall time", value("seconds", duration)),
            Column("worker time", value("worker_seconds", duration)),
            Column("stored", value("bytes", size)),
        ],
    )


def _estimator_times(findings: Findings, rows: Tables) -> Grid | None:
    """Estimators down, layer groups across."""
    found: dict[str, Row] = {}
    for r in rows.get("estimator_times", []):
        found.setdefault(r["estimator"], {"estimator": r["estimator"]})[r["group"]] = r
    columns = [
        GridColumn("layers", name, partial(_took, name))
        for name in groups({t.group for t in findings.estimator_times})
    ]
    many = ", mean over cells" if len(findings.cells) > 1 else ""
    return grid(
        f"Wall time of each estimator{many}; below it processor time",
        list(found.values()),
        [("estimator", text("estimator"))],
        columns,
    )


def _took(group: str, line: Row) -> Entry:
    took = line.get(group)
    return Entry(duration(took["wall_s"]), duration(took["processor_s"])) if took else Entry()


def facts(findings: Findings) -> list[tuple[str, str]]:
    """The provenance as a short name-value list; unknown values are absent."""
    source = findings.provenance
    origin = [("fingerprint", source.fingerprint)]
    origin += [(str(k), str(v)) for k, v in source.machine.items()]
    origin += [(f"{k} version", str(v)) for k, v in source.versions.items()]
    origin += [(f"{k} seed", str(v)) for k, v in source.seeds.items()]
    return [(k, v) for k, v in origin if v]
