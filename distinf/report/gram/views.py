"""The page's tables: which rows under which columns."""

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
from distinf.report.gram.tables import ANY, Tables
from distinf.report.gram.trials import datasets, falling, grouped
from distinf.report.rows import Row
from distinf.report.schema import Cell, Column, Table, difference, spread, stub, text

MOST_CELLS, MOST_DETECTION, MOST_METHODS, CELLS_LISTED = 12, 15, 12, 8  # printed unfolded, listed
FEWEST_POINTS = 3  # for a correlation
NOT_SIGNIFICANT_P = 0.05  # Table 2 of Vitel and Chhabra: marked with a star above it
MOST_LETTERS = 400  # of a row's text; the CSV has all of it
WE_TOP = "tracin-we-top10"
LAYERS = (WE_TOP, TRACIN_WE, EMBEDDING, *(f"attention-{k}" for k in range(1, 5)), HEAD)
Told = Callable[[Row], Cell]


def numbers(form: Callable[[Any], str], *named: str) -> list[Column]:
    """A column for each "key: heading", or key alone; empty where a number is missing."""
    pairs = [name.partition(": ") for name in named]
    return [Column(head or key.replace("_", " "), known(key, form)) for key, _, head in pairs]


def known(key: str, form: Callable[[Any], str]) -> Told:
    return lambda row: Cell() if missing(row.get(key)) else Cell(form(row[key]), value=row[key])


def words(*named: str) -> list[Column]:
    """As `numbers`, of texts."""
    return [text(head or key, key) for key, _, head in (name.partition(": ") for name in named)]


def pair(row: Row, mean: str, sd: str, form: Callable[[Any], str]) -> str:
    """Mean ± sd; "" without a mean."""
    if missing(row.get(mean)):
        return ""
    return form(row[mean]) + ("" if missing(row.get(sd)) else f"{SPACE}±{SPACE}{form(row[sd])}")


def pivoted(rows: Sequence[Row], across: str, *names: str) -> list[Row]:
    """A row for each of these names' values, and in it under "of" its rows by `across`."""
    return [
        dict(zip(names, key, strict=True)) | {"of": {r[across]: r for r in mine}}
        for key, mine in grouped(rows, *names).items()
    ]


def across(names: Sequence[str], told: Callable[[Row, Row], Cell], group: str = "") -> list[Column]:
    """Columns of `pivoted` rows; `told` of the row under the name, and of the whole line."""

    def cell(name: str, line: Row) -> Cell:
        return told(line["of"][name], line) if name in line["of"] else Cell()

    return [Column(name, partial(cell, name), group=group) for name in names]


def cells(rows: Tables) -> Table:
    every = rows.get("cells", [])
    columns = [
        stub("cell", "cell"),
        *numbers(count, "rows", "queries", "correct_queries: predicted right"),
        *numbers(count, "majority_queries: by one class", "flips: wrong labels"),
        *numbers(count, "suggested_wrong: likely wrong, by the model"),
        Column("rows cut", lambda row: count(row["truncated"]) if row["truncated"] else ""),
        *numbers(count, "best_epoch: epoch"),
        *numbers(number, "query_loss"),
        *numbers(percent, "query_accuracy: query accuracy [%]"),
        *numbers(percent, "test_accuracy: test accuracy [%]"),
    ]
    title = "Datasets and seeds, and the model that was scored"
    return Table(title, every, columns, "cells", folded=len(every) > MOST_CELLS)


def percent(value: float) -> str:
    return fixed(100 * value)


def detection(findings: Findings, rows: Tables) -> Iterator[Table]:
    """Those that find the most, with the free rankings among them, and all of them."""
    share, every = f"{100 * findings.share:g}", rows.get("detection", [])
    free = [
        row | {"estimator": row["ranking"], "how": "no influence"}
        for row in rows.get("free_rankings", [])
    ]
    most = sorted([*every[:MOST_DETECTION], *free], key=lambda row: falling(row["ndr_mean_pct"]))
    columns = [
        *words("estimator", "group: layers", "how: aggregation"),
        *numbers(count, "cells"),
        spread(f"NDR@{share} [%]", "ndr_", form=fixed),
        *numbers(fixed, "chance_pct: random [%]"),
        *numbers(fixed, "chance_within_labels_pct: random, same labels [%]"),
        spread("AUC", "auc_", "", partial(fixed, digits=3)),
    ]
    title = f"Wrong labels found in the lowest {share}{SPACE}%"
    yield Table(f"{title}, those that find the most", most, columns, "free_rankings")
    yield Table(f"{title}, every configuration", every, columns, "detection", folded=True)


def ranking_name(cell: str) -> str:
    """The table that has all of a cell's rows, the most detrimental first."""
    return f"ranked_rows-{cell}" if cell else "ranked_rows"


def rankings(rows: Tables) -> Iterator[Table]:
    """The first cells' lowest rows, with what the task says of them."""
    own = ("cell", "rank", "row", "score", "label", "flipped", "text", "own_loss", "gradient_norm")
    wrong = {None: "", True: "yes", False: "no"}
    found = grouped(rows.get("ranking", []), "cell")
    for (cell,), mine in list(found.items())[:CELLS_LISTED]:
        same = all(str(row.get("id")) == str(row["row"]) for row in mine)
        more = dict.fromkeys(key for row in mine for key in row if key not in own)
        columns = [
            *numbers(count, "rank"),
            Column("row", "row", str),
            text("text", lambda row: shortened(row["text"], MOST_LETTERS)),
            *words("label"),
            text("known to be wrong", lambda row: wrong[row["flipped"]]),
            *(
                Column(key.replace("_", " "), key, number, kind="text")
                for key in more
                if not (same and key == "id")
            ),
            *numbers(number, "own_loss", "gradient_norm", "score"),
        ]
        title = f"{cell}: the {count(len(mine))} lowest rows" if cell else "The lowest rows"
        yield Table(title, mine, columns, ranking_name(cell), folded=(cell,) != next(iter(found)))


def accuracy(rows: Tables, epoch: str) -> Table:
    def wins(row: Row) -> str:
        pairs = row.get("vs_random_pairs")
        return f"{count(row['vs_random_wins'])} of {count(pairs)}" if pairs else ""

    columns = [
        text("configuration", lambda row: spoken(row["configuration"])),
        *numbers(count, "trials"),
        spread("best epoch [%]", form=fixed),
        *numbers(fixed, f"at_best_pct: {epoch} [%]"),
        difference("minus random [points]", "vs_random_"),
        text("higher", wins),
        difference("minus full [points]", "vs_full_"),
    ]
    title = "Test accuracy of the models trained again"
    return Table(title, rows.get("accuracy", []), columns, "accuracy", folded=True)


def query_loss(rows: Tables) -> Table:
    """Where the task has no test rows, what filtering did to the queries' loss."""
    columns = [
        text("configuration", lambda row: spoken(row["configuration"])),
        *numbers(count, "trials"),
        *numbers(number, "mean: lowest query loss"),
    ]
    found = [] if rows.get("accuracy") else rows.get("query_loss", [])
    return Table("Query loss of the models trained again", found, columns, "query_loss")


def methods(findings: Findings, rows: Tables) -> Iterator[Table]:
    """The best by front, all of them, and published rows of the run's estimators and datasets that
    it did not train again; below each number the published one."""
    every, names = rows.get("methods", []), datasets(findings)
    ranked = [row for row in every if row["source"] == MEASURED]
    theirs = {row["configuration"]: row for row in every if row["source"] != MEASURED}
    kept = (*BASELINES, findings.headline)
    short = [r for k, r in enumerate(ranked) if k < MOST_METHODS or r["configuration"] in kept]
    ours = {row["configuration"] for row in ranked}
    asked = {*BASELINES, *(row["estimator"] for row in findings.scored)}
    others = [
        row
        for name, row in theirs.items()
        if row["estimator"] in asked and name not in ours
        if any(f"{dataset}_mean_pct" in row for dataset in names)
    ]
    title = "Methods by Pareto front, then win rate"
    title = title if any(row["rank"] for row in ranked) else "Methods by accuracy"
    title += "; below each number the published one" if theirs else ""
    beside, alone = _method_columns(names, theirs), _method_columns(names, {})
    part = f" ({count(len(short))} of {count(len(ranked))})" if len(short) < len(ranked) else ""
    yield Table(title + part, short, beside, "methods")
    yield Table("Every method", ranked if part else [], beside, "methods", folded=True)
    title = "Published rows without a counterpart in this run"
    yield Table(title, others, alone, "methods", folded=True)


def _method_columns(names: Sequence[str], published: dict[str, Row]) -> list[Column]:
    def of(heading: str, key: str, told: Callable[[Row], str], group: str = "") -> Column:
        def cell(row: Row) -> Cell:
            return Cell(told(row), told(published.get(row["configuration"], {})), row.get(key))

        return Column(heading, cell, group=group)

    def spreads(heading: str, mean: str, sd: str, digits: int, group: str = "") -> Column:
        form = partial(fixed, digits=digits)
        return of(heading, mean, lambda row: pair(row, mean, sd, form), group)

    return [
        stub("method", lambda row: spoken(row["configuration"])),
        of("front", "rank", lambda row: str(row.get("rank") or "")),
        spreads("win rate", "win_rate", "win_rate_sd", 2),
        *(spreads(n, f"{n}_mean_pct", f"{n}_sd_pct", 1, "test accuracy [%]") for n in names),
    ]


def layers(rows: Tables) -> Table:
    """Groups down, estimator families across: front and win rate; the published below."""
    every = rows.get("layers", [])
    theirs = {(r["layer"], r["estimator"]): r for r in every if r["source"] != MEASURED}
    ours = [row for row in every if row["source"] == MEASURED]

    def placed(row: Row | None) -> str:
        return f"{row['rank'] or 'n/a'} ({fixed(row['win_rate'], 2)})" if row else ""

    def both(row: Row, _: Row) -> Cell:
        published = theirs.get((row["layer"], row["estimator"]))
        return Cell(placed(row), placed(published), row["win_rate"])

    def name(line: Row) -> str:
        group = next(iter(line["of"].values()))["group"]
        return line["layer"] + ("" if line["layer"] in (group, WE_TOP) else f" ({group})")

    title = "Layer groups: front (win rate) within each estimator, mean scores"
    title += "; below, the published ones" if theirs else ""
    title += f"; {TRACIN_WE} is TracIn on the embedding, token by token"
    lines = sorted(pivoted(ours, "estimator", "layer"), key=lambda r: place(r["layer"], LAYERS))
    families = list(dict.fromkeys(row["estimator"] for row in ours))
    return Table(title, lines, [stub("layers", name), *across(families, both)], "layers")


def gains(findings: Findings, rows: Tables) -> Table:
    def changed(row: Row, _: Row) -> Cell:
        told = signed(row["change_pct"]) + (f"{SPACE}*" if row["marked"] else "")
        sure = "" if missing(row["p"]) else f"p {number(row['p'], 2)}"
        return Cell(told, sure, row["change_pct"])

    title = "Rank and vote against mean: * where Wilcoxon's p < 0.1 and the change is over 1 %"
    named = {"estimator": "estimator", "group": "layers", "how": "way"}
    columns = [stub(heading, key) for key, heading in named.items()]
    columns += across(datasets(findings), changed, "change of accuracy against mean [%]")
    lines = pivoted(rows.get("gains", []), "dataset", *named)
    return Table(title, lines, columns, "gains", folded=True)


def quartiles(rows: Tables) -> Table:
    title = "Accuracy after filtering by layer group, mean scores: mean and quartiles over seeds"
    columns = [
        *words("estimator", "group: layers", "dataset"),
        *numbers(count, "trials"),
        *numbers(fixed, "mean_pct: mean [%]", "q1_pct: lower quartile"),
        *numbers(fixed, "median_pct: median", "q3_pct: upper quartile"),
    ]
    return Table(title, rows.get("quartiles", []), columns, "quartiles", folded=True)


def starred(heading: str, rho: str, p: str) -> Column:
    def cell(row: Row) -> Cell:
        if missing(row.get(rho)):
            return Cell()
        return Cell(fixed(row[rho], 2) + "*" * (row[p] > NOT_SIGNIFICANT_P), value=row[rho])

    return Column(heading, cell)


def proxies(findings: Findings, rows: Tables) -> Table:
    title = "Spearman's correlation with accuracy after filtering, pooled: * where p > 0.05"
    named, inside = {"c": "C", "ndr": "NDR", "auc": "AUC"}, []
    if len(datasets(findings)) > 1:
        title += "; within: inside each dataset, mean over datasets"
        inside = [f"{key}_within_rho: {name} within" for key, name in named.items()]
    columns = [
        *words("how: aggregation", "estimator"),
        *numbers(count, "points"),
        *(starred(name, f"{key}_rho", f"{key}_p") for key, name in named.items()),
        *numbers(partial(fixed, digits=2), *inside),
    ]
    enough = [row for row in rows.get("proxies", []) if row["points"] >= FEWEST_POINTS]
    return Table(title, enough, columns, "proxies")


def cancellation(rows: Tables) -> Table:
    def size(heading: str, mean: str, sd: str = "") -> Column:
        def cell(row: Row) -> Cell:
            told = "∞" if math.isinf(row[mean]) else pair(row, mean, sd, number)
            return Cell(told, value=row[mean])

        return Column(heading, cell)

    columns = [
        stub("layers", "group"),
        size("C, norms", "norm_mean", "norm_sd"),
        size("C, L1", "l1_mean", "l1_sd"),
        *(size(name, name) for name in ("median", "least", "most")),
        starred("ρ with accuracy", "rho", "p"),
    ]
    title = "Cancellation of the training gradients (1: none; ∞: complete)"
    return Table(title, rows.get("cancellation", []), columns, "cancellation")


def theorem(rows: Tables, note: str) -> Table:
    least = {LEVELS[0]: "no premise"}
    columns = [
        stub("C(w) at least", lambda row: least.get(row["least_c"], number(row["least_c"]))),
        *numbers(count, "premises: noisy row, clean row, θ, w"),
        *numbers(fixed, "premises_pct: of all [%]"),
        *numbers(fixed, "claimed_pct: some query separates more [%]"),
        *numbers(count, "triples: times queries"),
        *numbers(fixed, "more_pct: separates more [%]", "aligned_pct: aligned [%]"),
    ]
    title = (
        "Theorem 5.1 of Vitel and Chhabra on this run's gradients, over all pairs of layer groups"
    )
    pooled = [row for row in rows.get("theorem", []) if row["theta"] == ANY]
    return Table(title, pooled, columns, "theorem", note)


def conditioning(rows: Tables) -> Table:
    columns = [
        stub("estimator", "estimator"),
        *numbers(count, "systems"),
        *numbers(number, "least_damping: least λ", "most_damping: largest λ"),
        *numbers(number, "median_condition", "worst_condition"),
        *words("worst: in"),
    ]
    title = "Condition numbers of the damped Fisher systems"
    return Table(title, rows.get("conditioning", []), columns, "conditioning")


def estimator_times(findings: Findings, rows: Tables, note: str) -> Table:
    """Estimators down, layer groups across."""

    def took(row: Row, _: Row) -> Cell:
        return Cell(duration(row["wall_s"]), duration(row["processor_s"]), row["wall_s"])

    every = rows.get("estimator_times", [])
    columns = across(groups(row["group"] for row in every), took, "layers")
    mean = ", mean over cells" if len(findings.cells) > 1 else ""
    title = f"Wall time of each estimator{mean}; below it processor time"
    lines = pivoted(every, "group", "estimator")
    stubs = [stub("estimator", "estimator")]
    return Table(title, lines, [*stubs, *columns], "estimator_times", note)
