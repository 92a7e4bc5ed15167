"""The page's tables: column lists, and the rows of those that are not a table as it is."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from distinf.gram.blocks import EMBEDDING, HEAD
from distinf.gram.configurations import place, spoken
from distinf.gram.settings import BASELINES
from distinf.numerics.separation import LEVELS
from distinf.report.formats import SPACE, count, duration, fixed, missing, number, shortened, signed
from distinf.report.gram.against import COMBINED
from distinf.report.gram.findings import Findings
from distinf.report.gram.retraining import MEASURED, TRACIN_WE
from distinf.report.gram.tables import Tables
from distinf.report.gram.trials import datasets, falling, grouped
from distinf.report.rows import Row
from distinf.report.schema import Column, Entry, Table, difference, spread, stub, text
from distinf.report.words import Words

MOST_DETECTION, MOST_METHODS, CELLS_LISTED = 15, 12, 8  # rows printed unfolded; cells listed
NOT_SIGNIFICANT_P = 0.05  # Table 2 of Vitel and Chhabra: marked with a star above it
MOST_LETTERS = 400  # of a row's text; the CSV has all of it
LAYERS = ("tracin-we-top10", TRACIN_WE, EMBEDDING, *(f"attention-{k}" for k in range(1, 5)), HEAD)


def numbers(form: Callable[[Any], str], *named: str) -> list[Column]:
    """A column for each "key: heading", or key alone; empty where a number is missing."""
    pairs = [name.partition(": ") for name in named]
    return [Column(head or key.replace("_", " "), known(key, form)) for key, _, head in pairs]


def known(key: str, form: Callable[[Any], str]) -> Callable[[Row], Entry]:
    def cell(row: Row) -> Entry:
        value = row.get(key)
        return Entry() if value is None or value != value else Entry(form(value), value=value)

    return cell


def words(*named: str) -> list[Column]:
    """As `numbers`, of texts."""
    return [text(head or key, key) for key, _, head in (name.partition(": ") for name in named)]


def starred(heading: str, rho: str, p: str) -> Column:
    """A correlation, with a star where it is not significant."""

    def cell(row: Row) -> Entry:
        if missing(row.get(rho)):
            return Entry()
        return Entry(TWO(row[rho]) + "*" * (row[p] > NOT_SIGNIFICANT_P), value=row[rho])

    return Column(heading, cell)


def percent(value: float) -> str:
    return fixed(100 * value)


def size(value: float) -> str:
    return "∞" if value == math.inf else number(value)


def wins(row: Row) -> str:
    pairs = row.get("vs_random_pairs")
    return f"{count(row['vs_random_wins'])} of {count(pairs)}" if pairs else ""


def win_rate(row: Row) -> Entry:
    rate, sd = row["win_rate"], row["win_rate_sd"]
    told = (
        ""
        if missing(rate)
        else TWO(rate)
        if missing(sd)
        else f"{TWO(rate)}{SPACE}±{SPACE}{TWO(sd)}"
    )
    return Entry(told, value=rate)


TWO, THREE = (partial(fixed, digits=digits) for digits in (2, 3))
NO_INFLUENCE = {COMBINED: "with the loss"}
NAMED = stub("configuration", lambda row: spoken(row["configuration"]))
CONFIGURATION = words("estimator", "group: layers", "how: aggregation")
SOURCE = Column("", "source", lambda source: "" if source == MEASURED else "published", kind="text")
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
    spread("AUC", "auc_", "", THREE),
    text("only sorts by class", lambda row: "yes" if row.get("only_by_class") else ""),
]
AGAINST = [
    stub("ranking", lambda row: spoken(row["ours"])),
    text("against", lambda row: spoken(row["other"])),
    text("which was", "chosen"),
    *numbers(count, "pairs"),
    difference("NDR, difference [points]", ""),
    difference("AUC, difference [points]", "auc_"),
]
QUERY_LOSS = [NAMED, *numbers(count, "trials"), *numbers(number, "mean: lowest query loss")]
ACCURACY = [
    NAMED,
    *numbers(count, "trials"),
    spread("best epoch [%]", form=fixed),
    *numbers(fixed, "at_best_pct: epoch of the scores [%]"),
    difference("minus random [points]", "vs_random_"),
    text("higher", wins),
    difference("minus full [points]", "vs_full_"),
]
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
    spread("C, norms", "norm_", "", size),
    spread("C, L1", "l1_", "", size),
    *numbers(size, "median", "least", "most"),
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
LOSS_AND_INFLUENCE = [
    stub("filtered by", "filtered_by"),
    *numbers(count, "rows", "wrong: wrong labels"),
    *numbers(fixed, "wrong_pct: of its rows [%]"),
]
SENSITIVITY = [
    stub("estimator", "estimator"),
    *words("factor: damping"),
    *numbers(count, "queries"),
    *numbers(number, "spearman: mean", "least: lowest"),
]
CONDITIONING = [
    stub("estimator", "estimator"),
    *numbers(count, "systems"),
    *numbers(number, "least_damping: least λ", "most_damping: largest λ"),
    *numbers(size, "median_condition", "worst_condition"),
    *words("worst: in"),
]


def detection(rows: Tables) -> list[Row]:
    """Those that find the most, with the free rankings among them."""
    most = rows.get("detection", [])[:MOST_DETECTION]
    free = [
        row | {"estimator": row["ranking"], "how": NO_INFLUENCE.get(row["ranking"], "no influence")}
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


def by_query(told: Words, rows: Tables) -> Iterator[Table]:
    """Of the first cells, the rows that each query asks for."""
    columns = [
        Column("query", "query_row", str),
        text("of", lambda row: shortened(str(row.get("query_text", "")), MOST_LETTERS)),
        Column("place", "place", str),
        *numbers(number, "score"),
        Column("row", "row", str),
        text("text", lambda row: shortened(str(row.get("text", "")), MOST_LETTERS)),
    ]
    found = grouped(rows.get("by_query", []), "cell")
    for k, ((cell,), mine) in enumerate(list(found.items())[:CELLS_LISTED]):
        of = f" of {cell}" if cell else ""
        yield told.table("by_query", mine, columns, "by_query", folded=k > 0, cell=of)


def methods(told: Words, findings: Findings, rows: Tables) -> Iterator[Table]:
    """The best by front, then all of them: below each the published row, and last those of the
    run's estimators and datasets that it did not train again."""
    every, names = rows.get("methods", []), datasets(findings)
    ranked = {row["configuration"]: k for k, row in enumerate(every) if row["source"] == MEASURED}
    kept = {*list(ranked)[:MOST_METHODS], *BASELINES, findings.headline} & {*ranked}
    asked = {*BASELINES, *(row["estimator"] for row in findings.scored)}
    beside = [
        row for row in every
        if row["configuration"] in ranked
        or (row["estimator"] in asked and any(f"{name}_mean_pct" in row for name in names))
    ]  # fmt: skip
    lines = sorted(beside, key=lambda row: ranked.get(row["configuration"], len(every)))
    short = [row for row in lines if row["configuration"] in kept]
    title = "methods" if any(row["rank"] for row in every) else "methods by accuracy"
    part = f" ({count(len(kept))} of {count(len(ranked))})" if len(kept) < len(ranked) else ""
    columns = [NAMED, SOURCE, *numbers(lambda rank: str(rank or ""), "rank: front")]
    columns += [Column("win rate", win_rate)]
    columns += [spread(name, f"{name}_", form=fixed, group="test accuracy [%]") for name in names]
    yield told.table(title, short, columns, "methods", part=part)
    more = lines if len(short) < len(lines) else []
    yield told.table("every method", more, columns, "methods", folded=True)


# -- tables with a column for each name ----------------------------------------------------


def crossed(
    rows: Sequence[Row],
    across: str,
    stubs: Sequence[Column],
    told: Callable[[Row], Entry],
    group: str = "",
) -> tuple[list[Row], list[Column]]:
    """Rows by the stubs' keys, and their columns: the stubs, then of each value of `across` what
    `told` says of the row that has it."""
    keys = [str(each.cell) for each in stubs]
    lines = [
        {**mine[0], "of": {r[across]: r for r in mine}} for mine in grouped(rows, *keys).values()
    ]

    def cell(name: str, line: Row) -> Entry:
        return told(line["of"][name]) if name in line["of"] else Entry()

    names = dict.fromkeys(row[across] for row in rows)
    return lines, [*stubs, *(Column(name, partial(cell, name), group=group) for name in names)]


def layers(told: Words, rows: Tables) -> Table:
    """Groups down, estimator families across: front and win rate; the published below."""
    every = [{"group": "", **row} for row in rows.get("layers", [])]
    ours = {(row["layer"], row["estimator"]) for row in every if row["source"] == MEASURED}
    both = [row for row in every if (row["layer"], row["estimator"]) in ours]

    def placed(row: Row) -> Entry:
        return Entry(f"{row['rank'] or 'n/a'} ({TWO(row['win_rate'])})", value=row["win_rate"])

    stubs = [stub("layers", "layer"), text("group", "group"), SOURCE]
    lines, columns = crossed(both, "estimator", stubs, placed)
    return told.table("layers", sorted(lines, key=lambda row: place(row["layer"], LAYERS)), columns)


def gains(told: Words, rows: Tables) -> Table:
    def changed(row: Row) -> Entry:
        text = signed(row["change_pct"]) + (f"{SPACE}*" if row["marked"] else "")
        sure = "" if missing(row["p"]) else f"p {number(row['p'], 2)}"
        return Entry(text, sure, row["change_pct"])

    group = "change of accuracy against mean [%]"
    lines, columns = crossed(rows.get("gains", []), "dataset", CONFIGURATION, changed, group)
    return told.table("gains", lines, columns, folded=True)


def estimator_times(told: Words, rows: Tables) -> Table:
    """Estimators down, layer groups across."""

    def took(row: Row) -> Entry:
        return Entry(duration(row["wall_s"]), duration(row["processor_s"]), row["wall_s"])

    every, stubs = rows.get("estimator_times", []), [stub("estimator", "estimator")]
    lines, columns = crossed(every, "group", stubs, took, "layers")
    return told.table("estimator_times", lines, columns, note=told.of("notes", "times"))
