"""The page's tables: column lists, and the rows of those that are not a table as it is."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from distinf.gram.blocks import EMBEDDING, HEAD
from distinf.gram.settings import BASELINES
from distinf.numerics.separation import LEVELS
from distinf.report.formats import SPACE, count, duration, fixed, missing, number, shortened, signed
from distinf.report.gram.configurations import groups, place, spoken
from distinf.report.gram.findings import Findings
from distinf.report.gram.retraining import MEASURED, TRACIN_WE
from distinf.report.gram.tables import Tables
from distinf.report.gram.trials import datasets, falling, grouped
from distinf.report.rows import Row
from distinf.report.schema import Cell, Column, Table, difference, spread, stub, text
from distinf.report.words import Words

MOST_DETECTION, MOST_METHODS, CELLS_LISTED = 15, 12, 8  # rows printed unfolded; cells listed
NOT_SIGNIFICANT_P = 0.05  # Table 2 of Vitel and Chhabra: marked with a star above it
MOST_LETTERS = 400  # of a row's text; the CSV has all of it
WE_TOP = "tracin-we-top10"
LAYERS = (WE_TOP, TRACIN_WE, EMBEDDING, *(f"attention-{k}" for k in range(1, 5)), HEAD)


def numbers(form: Callable[[Any], str], *named: str) -> list[Column]:
    """A column for each "key: heading", or key alone; empty where a number is missing."""
    pairs = [name.partition(": ") for name in named]
    return [Column(head or key.replace("_", " "), known(key, form)) for key, _, head in pairs]


def known(key: str, form: Callable[[Any], str]) -> Callable[[Row], Cell]:
    return lambda row: Cell() if missing(row.get(key)) else Cell(form(row[key]), value=row[key])


def words(*named: str) -> list[Column]:
    """As `numbers`, of texts."""
    return [text(head or key, key) for key, _, head in (name.partition(": ") for name in named)]


def pair(row: Row, mean: str, sd: str, form: Callable[[Any], str]) -> str:
    """Mean ± sd; "" without a mean, ∞ for an infinite one."""
    if isinstance(row.get(mean), float) and math.isinf(row[mean]):
        return "∞"
    if missing(row.get(mean)):
        return ""
    return form(row[mean]) + ("" if missing(row.get(sd)) else f"{SPACE}±{SPACE}{form(row[sd])}")


def starred(heading: str, rho: str, p: str) -> Column:
    """A correlation, with a star where it is not significant."""

    def cell(row: Row) -> Cell:
        if missing(row.get(rho)):
            return Cell()
        return Cell(fixed(row[rho], 2) + "*" * (row[p] > NOT_SIGNIFICANT_P), value=row[rho])

    return Column(heading, cell)


def size(heading: str, mean: str, sd: str = "") -> Column:
    return Column(heading, lambda row: Cell(pair(row, mean, sd, number), value=row[mean]))


def percent(value: float) -> str:
    return fixed(100 * value)


TWO = partial(fixed, digits=2)
NAMED = text("configuration", lambda row: spoken(row["configuration"]))
CONFIGURATION = words("estimator", "group: layers", "how: aggregation")
CELLS = [
    stub("cell", "cell"),
    *numbers(count, "rows", "queries", "correct_queries: predicted right"),
    *numbers(count, "majority_queries: by one class", "flips: wrong labels"),
    *numbers(count, "suggested_wrong: likely wrong, by the model"),
    Column("rows cut", lambda row: count(row["truncated"]) if row["truncated"] else ""),
    *numbers(count, "best_epoch: epoch"),
    *numbers(number, "query_loss"),
    *numbers(percent, "query_accuracy: query accuracy [%]", "test_accuracy: test accuracy [%]"),
]
DETECTION = [
    *CONFIGURATION,
    *numbers(count, "cells"),
    spread("NDR [%]", "ndr_", form=fixed),
    *numbers(fixed, "chance_pct: random [%]"),
    *numbers(fixed, "chance_within_labels_pct: random, same labels [%]"),
    spread("AUC", "auc_", "", partial(fixed, digits=3)),
]
QUERY_LOSS = [NAMED, *numbers(count, "trials"), *numbers(number, "mean: lowest query loss")]
QUARTILES = [
    *CONFIGURATION[:2],
    *words("dataset"),
    *numbers(count, "trials"),
    *numbers(fixed, "mean_pct: mean [%]", "q1_pct: lower quartile"),
    *numbers(fixed, "median_pct: median", "q3_pct: upper quartile"),
]
PROXIES = [
    *words("how: aggregation", "estimator"),
    *numbers(count, "points"),
    *(starred(key.upper(), f"{key}_rho", f"{key}_p") for key in ("c", "ndr", "auc")),
    *numbers(TWO, "c_within_rho: C within", "ndr_within_rho: NDR within"),
    *numbers(TWO, "auc_within_rho: AUC within"),
]
CANCELLATION = [
    stub("layers", "group"),
    size("C, norms", "norm_mean", "norm_sd"),
    size("C, L1", "l1_mean", "l1_sd"),
    *(size(name, name) for name in ("median", "least", "most")),
    starred("ρ with accuracy", "rho", "p"),
]
NO_PREMISE = {LEVELS[0]: "no premise"}
THEOREM = [
    stub("C(w) at least", lambda row: NO_PREMISE.get(row["least_c"], number(row["least_c"]))),
    *numbers(count, "premises: noisy row, clean row, θ, w"),
    *numbers(fixed, "premises_pct: of all [%]"),
    *numbers(fixed, "claimed_pct: some query separates more [%]"),
    *numbers(count, "triples: times queries"),
    *numbers(fixed, "more_pct: separates more [%]", "aligned_pct: aligned [%]"),
]
CONDITIONING = [
    stub("estimator", "estimator"),
    *numbers(count, "systems"),
    *numbers(number, "least_damping: least λ", "most_damping: largest λ"),
    *numbers(number, "median_condition", "worst_condition"),
    *words("worst: in"),
]


def accuracy(epoch: str) -> list[Column]:
    def wins(row: Row) -> str:
        pairs = row.get("vs_random_pairs")
        return f"{count(row['vs_random_wins'])} of {count(pairs)}" if pairs else ""

    return [
        NAMED,
        *numbers(count, "trials"),
        spread("best epoch [%]", form=fixed),
        *numbers(fixed, f"at_best_pct: {epoch} [%]"),
        difference("minus random [points]", "vs_random_"),
        text("higher", wins),
        difference("minus full [points]", "vs_full_"),
    ]


def detection(rows: Tables) -> list[Row]:
    """Those that find the most, with the free rankings among them."""
    most = rows.get("detection", [])[:MOST_DETECTION]
    free = [
        row | {"estimator": row["ranking"], "how": "no influence"}
        for row in rows.get("free_rankings", [])
    ]
    return sorted([*most, *free], key=lambda row: falling(row["ndr_mean_pct"]))


def ranking_name(cell: str) -> str:
    """The table that has all of a cell's rows, the most detrimental first."""
    return f"ranked_rows-{cell}" if cell else "ranked_rows"


def rankings(told: Words, rows: Tables) -> Iterator[Table]:
    """The first cells' lowest rows, with what the task says of them."""
    own = ("cell", "rank", "row", "score", "label", "flipped", "text", "own_loss", "gradient_norm")
    flips = {cell["cell"] for cell in rows.get("cells", []) if cell["flips"]}

    def wrong(row: Row) -> str:
        return {True: "yes", False: "no"}.get(row["flipped"], "") if row["cell"] in flips else ""

    found = grouped(rows.get("ranking", []), "cell")
    for k, ((cell,), mine) in enumerate(list(found.items())[:CELLS_LISTED]):
        same = all(str(row.get("id")) == str(row["row"]) for row in mine)
        more = dict.fromkeys(key for row in mine for key in row if key not in own)
        named = [key for key in more if not (same and key == "id")]
        columns = [
            *numbers(count, "rank"),
            Column("row", "row", str),
            text("text", lambda row: shortened(row["text"], MOST_LETTERS)),
            *words("label"),
            text("known to be wrong", wrong),
            *(Column(key.replace("_", " "), key, number, kind="text") for key in named),
            *numbers(number, "own_loss", "gradient_norm", "score"),
        ]
        title = {"cell": f" of {cell}" if cell else "", "many": count(len(mine))}
        yield told.table("rows", mine, columns, ranking_name(cell), folded=k > 0, **title)


def methods(told: Words, findings: Findings, rows: Tables) -> Iterator[Table]:
    """The best by front, all of them, and published rows of the run's estimators and datasets that
    it did not train again; below each number the published one."""
    every, names = rows.get("methods", []), datasets(findings)
    ranked = [row for row in every if row["source"] == MEASURED]
    theirs = {row["configuration"]: row for row in every if row["source"] != MEASURED}
    kept = (*BASELINES, findings.headline)
    short = [r for k, r in enumerate(ranked) if k < MOST_METHODS or r["configuration"] in kept]
    asked = {*BASELINES, *(row["estimator"] for row in findings.scored)}
    alone = {name: row for name, row in theirs.items() if row["estimator"] in asked}
    for row in ranked:
        alone.pop(row["configuration"], None)
    others = [r for r in alone.values() if any(f"{dataset}_mean_pct" in r for dataset in names)]
    title = "methods" if any(row["rank"] for row in ranked) else "methods by accuracy"
    part = f" ({count(len(short))} of {count(len(ranked))})" if len(short) < len(ranked) else ""
    below, columns = told.of("notes", "below") if theirs else "", _method_columns(names, theirs)
    yield told.table(title, short, columns, "methods", below, part=part)
    yield told.table("every method", ranked if part else [], columns, "methods", folded=True)
    yield told.table("published", others, _method_columns(names, {}), "methods", folded=True)


def _method_columns(names: Sequence[str], published: dict[str, Row]) -> list[Column]:
    def of(heading: str, key: str, form: Callable[[Row], str], group: str = "") -> Column:
        def cell(row: Row) -> Cell:
            return Cell(form(row), form(published.get(row["configuration"], {})), row.get(key))

        return Column(heading, cell, group=group)

    def spreads(heading: str, key: str, digits: int, unit: str = "", group: str = "") -> Column:
        mean, sd = f"{key}_mean{unit}" if unit else key, f"{key}_sd{unit}"
        form = partial(fixed, digits=digits)
        return of(heading, mean, lambda row: pair(row, mean, sd, form), group)

    return [
        stub("method", lambda row: spoken(row["configuration"])),
        of("front", "rank", lambda row: str(row.get("rank") or "")),
        spreads("win rate", "win_rate", 2),
        *(spreads(name, name, 1, "_pct", "test accuracy [%]") for name in names),
    ]


# -- tables with a column for each name ----------------------------------------------------


def pivoted(rows: Sequence[Row], across: str, *names: str) -> list[Row]:
    """A row for each of these names' values, and in it under "of" its rows by `across`."""
    return [
        dict(zip(names, key, strict=True)) | {"of": {row[across]: row for row in mine}}
        for key, mine in grouped(rows, *names).items()
    ]


def across(names: Sequence[str], told: Callable[[Row], Cell], group: str = "") -> list[Column]:
    """Columns of `pivoted` rows; `told` of the row under the name."""

    def cell(name: str, line: Row) -> Cell:
        return told(line["of"][name]) if name in line["of"] else Cell()

    return [Column(name, partial(cell, name), group=group) for name in names]


def layers(told: Words, rows: Tables) -> Table:
    """Groups down, estimator families across: front and win rate; the published below."""
    every = rows.get("layers", [])
    theirs = {(r["layer"], r["estimator"]): r for r in every if r["source"] != MEASURED}
    ours = [row for row in every if row["source"] == MEASURED]

    def placed(row: Row | None) -> str:
        return f"{row['rank'] or 'n/a'} ({fixed(row['win_rate'], 2)})" if row else ""

    def both(row: Row) -> Cell:
        published = theirs.get((row["layer"], row["estimator"]))
        return Cell(placed(row), placed(published), row["win_rate"])

    def name(line: Row) -> str:
        group = next(iter(line["of"].values()))["group"]
        return line["layer"] + ("" if line["layer"] in (group, WE_TOP) else f" ({group})")

    lines = sorted(pivoted(ours, "estimator", "layer"), key=lambda r: place(r["layer"], LAYERS))
    families = list(dict.fromkeys(row["estimator"] for row in ours))
    note = told.of("notes", "below") if theirs else ""
    return told.table("layers", lines, [stub("layers", name), *across(families, both)], note=note)


def gains(told: Words, findings: Findings, rows: Tables) -> Table:
    def changed(row: Row) -> Cell:
        text = signed(row["change_pct"]) + (f"{SPACE}*" if row["marked"] else "")
        sure = "" if missing(row["p"]) else f"p {number(row['p'], 2)}"
        return Cell(text, sure, row["change_pct"])

    columns = [stub(c.heading, c.cell) for c in CONFIGURATION]
    columns += across(datasets(findings), changed, "change of accuracy against mean [%]")
    lines = pivoted(rows.get("gains", []), "dataset", "estimator", "group", "how")
    return told.table("gains", lines, columns, folded=True)


def estimator_times(told: Words, rows: Tables) -> Table:
    """Estimators down, layer groups across."""

    def took(row: Row) -> Cell:
        return Cell(duration(row["wall_s"]), duration(row["processor_s"]), row["wall_s"])

    every = rows.get("estimator_times", [])
    columns = [stub("estimator", "estimator")]
    columns += across(groups(row["group"] for row in every), took, "layers")
    lines, note = pivoted(every, "group", "estimator"), told.of("notes", "times")
    return told.table("estimator_times", lines, columns, note=note)
