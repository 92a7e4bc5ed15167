"""Which tokens of a row say most of what it does to a query."""

from collections.abc import Iterator, Sequence

from distinf.report.formats import number
from distinf.report.gram.trials import grouped
from distinf.report.rows import Row

MOST = 6  # tokens of a row


def telling(rows: Sequence[Row]) -> Iterator[Row]:
    """Of a line for each token, a line for each row of each query: its product, and as `text` the
    tokens with the largest shares, either way."""
    for (cell, query, place), mine in grouped(rows, "cell", "query_row", "place").items():
        most = sorted(mine, key=lambda row: -abs(row["share"]))[:MOST]
        yield {
            "cell": cell, "query_row": query, "place": place, "row": mine[0]["row"],
            "product": sum(row["share"] for row in mine),
            "text": ", ".join(map(_told, most)),
        }  # fmt: skip


def _told(row: Row) -> str:
    plus = "+" if row["share"] > 0 else ""
    return f"{row['token']!r} {plus}{number(row['share'])}"
