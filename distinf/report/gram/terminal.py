"""The answer of a Gram run in the terminal."""

from typing import Literal

from rich.table import Table

from distinf.gram.session import Session
from distinf.report.gram import report as gram_report
from distinf.report.gram.findings import EPOCHS
from distinf.report.gram.free_rankings import OWN_LOSS, SUGGESTED
from distinf.terminal import fitted

MOST_CELLS = 20  # columns of the terminal for a label


def summary(session: Session) -> list[Table | str]:
    """What was caught, what filtering did, and where the ranked rows are."""
    lines: list[Table | str] = []
    accuracies = gram_report.accuracies(session)
    if accuracies:
        table = Table(title="Test accuracy after leaving rows out", title_justify="left")
        epoch = EPOCHS[session.settings.train.selected_epoch]
        for name in ("left out by", "best epoch", epoch, "runs"):
            table.add_column(name, justify="left" if name == "left out by" else "right")
        for name, best, at_best, runs in accuracies:
            table.add_row(name, f"{best:.1%}", f"{at_best:.1%}", str(runs))
        lines.append(table)
    elif losses := gram_report.query_losses(session):
        table = Table(title="Query loss after leaving rows out", title_justify="left")
        for name in ("left out by", "lowest", "runs"):
            table.add_column(name, justify="left" if name == "left out by" else "right")
        for name, lowest, runs in losses:
            table.add_row(name, f"{lowest:.4g}", str(runs))
        lines.append(table)
    return [*lines, _worst_table(session), *gram_report.summary_lines(session)]


def _worst_table(session: Session) -> Table:
    """The rows that harm the most, for a first look; the CSV has all of them."""
    rows = gram_report.worst_rows(session)
    shown: dict[str, tuple[str, Literal["left", "right"]]] = {
        "row": ("row", "right"),
        "label": ("label", "left"),
        SUGGESTED: ("suggested", "left"),
        OWN_LOSS: ("own loss", "right"),
        "text": ("text", "left"),
    }
    table = Table(title="The most detrimental training rows", title_justify="left", box=None)
    kept = [key for key in shown if any(key in row for row in rows)]
    table.expand = "text" in kept  # which takes what the others leave
    for key in kept:
        heading, justify = shown[key]
        ratio, most = (1, None) if key == "text" else (None, MOST_CELLS)
        table.add_column(
            heading, justify=justify, no_wrap=True, overflow="ellipsis", ratio=ratio, max_width=most
        )
    for row in rows:
        table.add_row(*(fitted(row.get(key, "")) for key in kept))
    return table
