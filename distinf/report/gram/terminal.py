"""The answer of a Gram run in the terminal."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from rich.table import Table

from distinf.gram.actions import results
from distinf.gram.ranking import OWN_LOSS, SUGGESTED, cell_ranking
from distinf.gram.session import Session
from distinf.gram.train import stored_fit
from distinf.report.gram.cells import cell_rows
from distinf.report.gram.findings import EPOCHS
from distinf.report.gram.views import ranking_name
from distinf.report.gram.warnings import chance_warnings, class_warnings, label_warnings
from distinf.report.rows import Row
from distinf.terminal import fitted

WORST = 10  # rows
MOST_CELLS = 20  # columns of the terminal for a label


def summary(session: Session) -> list[Table | str]:
    """What was caught, what filtering did, and where the ranked rows are."""
    (title, *headings), rows = filtered(session)
    table = Table(title=title, title_justify="left")
    table.add_column("left out by")
    for heading in (*headings, "runs"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return [*([table] if rows else []), worst_table(session), *summary_lines(session)]


def filtered(session: Session) -> tuple[list[str], list[list[str]]]:
    """(Title and headings; of each configuration its name, means over its runs, and how many): last
    of the models trained on all rows. Without test rows it is the query loss that is told."""
    again = [(of.configuration, stored) for of, stored in results(session)]
    whole = [("nothing", stored_fit(session, name)) for name in session.outline.cells]
    found: dict[str, list[list[float]]] = {}
    tested = any("test_accuracy" in stored for _, stored in again)
    for name, stored in [*again, *(whole if again else [])]:
        if tested:
            accuracy = stored["test_accuracy"]
            numbers = [float(np.nanmax(accuracy)), float(accuracy[int(stored["best"])])]
        else:
            numbers = [float(np.nanmin(stored["query_loss"]))]
        found.setdefault(name, []).append(numbers)
    form = "{:.1%}" if tested else "{:.4g}"
    epoch = EPOCHS[session.settings.train.selected_epoch]
    heads = ["Test accuracy after leaving rows out", "best epoch", epoch]
    heads = heads if tested else ["Query loss after leaving rows out", "lowest"]
    return heads, [
        [name, *(form.format(mean) for mean in np.mean(runs, axis=0)), str(len(runs))]
        for name, runs in found.items()
    ]


def summary_lines(session: Session) -> list[str]:
    """The answer in a few lines."""
    cells, share = cell_rows(session), session.settings.actions.fraction
    found = [f"warning: {line}" for line in chance_warnings(cells)]  # before any rate
    found += _detected(cells, share)
    if not any(cell.trained for cell in session.outline.cells.values()):
        found.append("the model was scored as model() returns it; nothing was trained")
    further = (*label_warnings(cells, share), *class_warnings(session))
    found += [f"warning: {line}" for line in further]
    told = [c for c in cells if c["suggested_wrong"] is not None]
    if told:
        wrong, rows = (sum(c[key] for c in told) for key in ("suggested_wrong", "rows"))
        found.append(
            f"about {wrong:,} of {rows:,} labels are wrong, by the model's own predictions "
            "(confident learning)"
        )
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    return [
        *found,
        f"the {cells[0]['rows']:,} training rows ranked, most detrimental first: "
        f"{session.blobs.root}/report/{ranking_name(cells[0]['name'])}.csv{more}",
    ]


def _detected(cells: Sequence[Row], share: float) -> list[str]:
    """How many known wrong labels the headline finds, and what finds as many for nothing."""
    found: dict[str, list[float]] = {}
    for name, rate in (pair for cell in cells for pair in cell["ndr"].items()):
        found.setdefault(name, []).append(rate)
    if not found:
        return []
    (name, ours), *free = ((name, float(np.mean(rates))) for name, rates in found.items())
    told = ", ".join(f"{each} {rate:.0%}" for each, rate in free)
    told += "; influence finds no more than these here" * (max(r for _, r in free) >= ours)
    return [
        f"{name}: {ours:.0%} of the mislabelled rows are among the lowest {share:.0%} "
        f"(random: {share:.0%})",
        f"at no cost beside it: {told}",
    ]


def worst_table(session: Session) -> Table:
    """The rows of the first cell that harm the most, for a first look; the CSV has all of them."""
    rows = cell_ranking(session, next(iter(session.outline.cells.values())))[:WORST]
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
