"""The page's tables whose rows or columns are not a table as it is; all others: words.yaml."""

from collections.abc import Iterator, Sequence

from distinf.gram.blocks import EMBEDDING, HEAD
from distinf.gram.configurations import place, spoken
from distinf.gram.settings import BASELINES
from distinf.numerics.separation import LEVELS
from distinf.report.formats import SPACE, count, duration, fixed, missing, number, signed
from distinf.report.gram.against import COMBINED
from distinf.report.gram.findings import Findings
from distinf.report.gram.retraining import MEASURED, TRACIN_WE
from distinf.report.gram.tables import Tables
from distinf.report.gram.trials import datasets, falling
from distinf.report.rows import Row, combined, grouped
from distinf.report.schema import Column, Entry, Table, crossed, spread, stub, text
from distinf.report.words import Words, column

MOST_DETECTION, MOST_METHODS, CELLS_LISTED = 15, 12, 8  # rows printed unfolded; cells listed
MOST_TOKENS = 6  # of a row
LAYERS = ("tracin-we-top10", TRACIN_WE, EMBEDDING, *(f"attention-{k}" for k in range(1, 5)), HEAD)
NO_INFLUENCE = {COMBINED: "with the loss"}
NAMED = stub("configuration", lambda row: spoken(row["configuration"]))
CONFIGURATION = [column("estimator", "text"), column("layers", "text group"),
                 column("aggregation", "text how")]  # fmt: skip
SOURCE = Column("", "source", lambda source: "" if source == MEASURED else "published", kind="text")
PAIR = [stub("ranking", lambda row: spoken(row["ours"])),
        text("against", lambda row: spoken(row["other"]))]  # fmt: skip
NO_PREMISE = {LEVELS[0]: "no premise"}
LEAST = stub("C(w) at least", lambda row: NO_PREMISE.get(row["least_c"], number(row["least_c"])))


def known(rows: Sequence[Row]) -> list[Row]:
    """Without numbers that are not known, whose cells are empty."""
    return [{key: value for key, value in row.items() if value == value} for row in rows]


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
    found = grouped(rows.get("ranking", []), "cell")
    for k, ((cell,), every) in enumerate(list(found.items())[:CELLS_LISTED]):
        mine = [row if cell in flips else row | {"flipped": None} for row in known(every)]
        same = all(str(row.get("id")) == str(row["row"]) for row in mine)
        more = dict.fromkeys(key for row in mine for key in row if key not in own)
        named = [key for key in more if not (same and key == "id")]
        columns = [Column(key.replace("_", " "), key, number, kind="text") for key in named]
        title = {"cell": f" of {cell}" if cell else "", "many": count(len(mine))}
        yield told.table("rows", mine, columns, ranking_name(cell), folded=k > 0, **title)


def by_query(told: Words, rows: Tables) -> Iterator[Table]:
    """Of the first cells, the rows that each query asks for."""
    found = grouped(rows.get("by_query", []), "cell")
    for k, ((cell,), mine) in enumerate(list(found.items())[:CELLS_LISTED]):
        of = f" of {cell}" if cell else ""
        yield told.table("by_query", known(mine), folded=k > 0, cell=of)


def telling(rows: Sequence[Row]) -> list[Row]:
    """Of a line for each token, a line for each row of each query: its product, and as `text` the
    tokens with the largest shares, either way."""

    def of(mine: list[Row]) -> Row:
        most = sorted(mine, key=lambda row: -abs(row["share"]))[:MOST_TOKENS]
        told = (f"{r['token']!r} {'+' * (r['share'] > 0)}{number(r['share'])}" for r in most)
        product = sum(row["share"] for row in mine)
        return {"row": mine[0]["row"], "product": product, "text": ", ".join(told)}

    return combined(rows, ("cell", "query_row", "place"), of)


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
    columns = [NAMED, SOURCE, column("front", "some rank")]
    columns += [column("win rate", "over win_rate win_rate_sd ±")]
    columns += [spread(name, f"{name}_", group="test accuracy [%]") for name in names]
    yield told.table(title, known(short), columns, "methods", part=part)
    more = lines if len(short) < len(lines) else []
    yield told.table("every method", known(more), columns, "methods", folded=True)


def layers(told: Words, rows: Tables) -> Table:
    """Groups down, estimator families across: front and win rate; the published below."""
    every = [{"group": "", **row} for row in rows.get("layers", [])]
    ours = {(row["layer"], row["estimator"]) for row in every if row["source"] == MEASURED}
    both = [row for row in every if (row["layer"], row["estimator"]) in ours]

    def placed(row: Row) -> Entry:
        return Entry(f"{row['rank'] or 'n/a'} ({fixed(row['win_rate'], 2)})", value=row["win_rate"])

    lines, columns = crossed(both, ("layer", "group", "source"), "estimator", placed)
    lines.sort(key=lambda row: place(row["layer"], LAYERS))
    stubs = [stub("layers", "layer"), text("group", "group"), SOURCE]
    return told.table("layers", lines, [*stubs, *columns])


def gains(told: Words, rows: Tables) -> Table:
    def changed(row: Row) -> Entry:
        text = signed(row["change_pct"]) + (f"{SPACE}*" if row["marked"] else "")
        sure = "" if missing(row["p"]) else f"p {number(row['p'], 2)}"
        return Entry(text, sure, row["change_pct"])

    group = "change of accuracy against mean [%]"
    every = [row | {"dataset": f"{group} | {row['dataset']}"} for row in rows.get("gains", [])]
    lines, columns = crossed(every, ("estimator", "group", "how"), "dataset", changed)
    return told.table("gains", lines, [*CONFIGURATION, *columns], folded=True)


def estimator_times(told: Words, rows: Tables) -> Table:
    """Estimators down, layer groups across."""

    def took(row: Row) -> Entry:
        return Entry(duration(row["wall_s"]), duration(row["processor_s"]), row["wall_s"])

    every = [r | {"group": f"layers | {r['group']}"} for r in rows.get("estimator_times", [])]
    lines, columns = crossed(every, ("estimator",), "group", took)
    columns.insert(0, stub("estimator", "estimator"))
    return told.table("estimator_times", lines, columns, note=told.of("notes", "times"))
