"""The one way to a terminal for tables and progress: what it is given is shown, never obeyed."""

from typing import Any

from rich.console import Console
from rich.text import Text

from distinf.printable import printable

MOST_LETTERS = 300  # of a text, before it is fitted into the terminal


class Terminal(Console):
    """A Rich console for text of others: brackets are no markup, colons no emoji, and letters that
    move the cursor or turn the direction are escaped. Styles are given by `Text`, of our own words.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Of every text that is printed, alone or in a table."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


def fitted(value: Any) -> Text:
    """A value from data, as a cell of a table: of a text the beginning, on one line."""
    if isinstance(value, float):
        return Text(f"{value:.3g}")
    return Text(printable(" ".join(str(value)[:MOST_LETTERS].split())))
