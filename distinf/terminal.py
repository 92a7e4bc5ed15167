"""The one way to a terminal for tables and progress: what it is given is shown, never obeyed."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distinf.printable import printable

MOST_LETTERS = 300  # of a text, before it is fitted into the terminal
MOST_LABEL = 20  # columns of the terminal for a label


class Terminal(Console):
    """A Rich console for text of others: brackets are no markup, colons no emoji, and letters that
    move the cursor or turn the direction are escaped. Styles are given by `Text`, of our own words.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Nobody reads on, as of `| head`: a run goes on all the same."""
        self.quiet = True

    def render_str(self, text: str, **options: Any) -> Text:
        """Of every text that is printed, alone or in a table."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


def fitted(value: Any) -> Text:
    """A value from data, as a cell of a table: of a text the beginning, on one line."""
    if isinstance(value, float):
        return Text(f"{value:.3g}")
    return Text(printable(" ".join(str(value)[:MOST_LETTERS].split())))


def rows_table(title: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Table:
    """Rows by those of the keys that any of them has. Texts take what the others leave."""
    table = Table(title=title, title_justify="left", box=None)
    kept = [key for key in keys if any(key in row for row in rows)]
    table.expand = "text" in kept
    for key in kept:
        words, label = key.endswith("text"), key.endswith("label")
        ratio, most = 1 if words else None, MOST_LABEL if label else None
        table.add_column(
            key.replace("_", " "), justify="left" if words or label else "right",
            no_wrap=True, overflow="ellipsis", ratio=ratio, max_width=most,
        )  # fmt: skip
    for row in rows:
        table.add_row(*(fitted(row.get(key, "")) for key in kept))
    return table


def by_query_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `Answer.extremes`, each with its query's text, or number where there is no text."""
    keys = ["query_text", "place", "score", "row", "label", "text"]
    if not any("query_text" in row for row in rows):
        keys = ["query_row", *keys]
    return rows_table(title, rows, keys)
