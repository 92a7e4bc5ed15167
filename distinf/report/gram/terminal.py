"""The answer of a Gram run in the terminal: the report's own sentences, and the first rows."""

from typing import Any

from rich.table import Table

from distinf.gram.ranking import OWN_LOSS, SUGGESTED, cell_ranking
from distinf.gram.session import Session
from distinf.report.formats import fixed, number
from distinf.report.gram.findings import EPOCHS, Findings, findings
from distinf.report.gram.page import answer
from distinf.report.gram.tables import Tables, tables
from distinf.report.gram.views import ranking_name, telling
from distinf.terminal import by_query_table, rows_table

WORST, MOST_WARNINGS = 10, 8
TOKENS = ("query_row", "place", "row", "product", "text")
QUERIES = 5  # whose rows are shown; the table has all


def summary(session: Session) -> list[Table | str]:
    """What filtering did, the lowest rows, the answer, and where the ranked rows are."""
    found = findings(session)
    rows, (first, *more) = tables(found), found.cells
    where = f"{session.blobs.root}/report/{ranking_name(first['name'])}.csv"
    told = f"the {first['rows']:,} training rows ranked, most detrimental first: {where}"
    told += f" and {len(more)} more" if more else ""
    lines = [*filtered(found, rows), worst_table(session)]
    asked = rows.get("by_query", [])
    if asked:
        own = [row for row in asked if row["cell"] == first["name"]]
        shown = [*dict.fromkeys(row["query_row"] for row in own)][:QUERIES]
        few = [row for row in own if row["query_row"] in shown]
        lines.append(by_query_table("Training rows by query", few))
        told += f"; by query: {session.blobs.root}/report/by_query.csv"
        shares = [row for row in rows.get("tokens", []) if row["cell"] == first["name"]]
        few = [row for row in telling(shares) if row["query_row"] in shown]
        if few:
            lines.append(rows_table("The tokens of these rows that say most", few, TOKENS))
            told += f"; by token: {session.blobs.root}/report/tokens.csv"
    return [*lines, *answer_lines(found, rows), told]


def answer_lines(found: Findings, rows: Tables) -> list[str]:
    """What was run; the page's answer, a warning in it first; the first other warnings."""
    _, sentences, _ = answer(found, rows)
    others = [line for line in found.warnings if line not in sentences]
    more = [f"and {len(others) - MOST_WARNINGS} more in the report"]
    others = others[:MOST_WARNINGS] + (more if len(others) > MOST_WARNINGS else [])
    told = [f"warning: {s}" if s in found.warnings else s for s in (found.task, *sentences)]
    return told + [f"warning: {line}" for line in others]


def filtered(found: Findings, rows: Tables) -> list[Table]:
    """Means over the runs of each configuration; without test rows of the query loss."""
    name, title, columns = "accuracy", "Test accuracy", list[Any]()
    columns += [("best epoch [%]", "mean_pct", fixed)]
    columns += [(f"{EPOCHS[found.selected_epoch]} [%]", "at_best_pct", fixed)]
    if not rows.get(name):
        name, title, columns = "query_loss", "Query loss", [("lowest", "mean", number)]
    if not rows.get(name):
        return []
    columns = [("left out by", "configuration", str), *columns, ("runs", "trials", str)]
    table = Table(title=f"{title} after leaving rows out", title_justify="left")
    for k, (heading, _, _) in enumerate(columns):
        table.add_column(heading, justify="right" if k else "left")
    for row in rows[name]:
        table.add_row(*(form(row[key]) for _, key, form in columns))
    return [table]


def worst_table(session: Session) -> Table:
    """The rows of the first cell that harm the most, for a first look; the CSV has all of them."""
    rows = cell_ranking(session, next(iter(session.outline.cells.values())))[:WORST]
    keys = ("row", "label", SUGGESTED, OWN_LOSS, "text")
    return rows_table("The most detrimental training rows", rows, keys)
