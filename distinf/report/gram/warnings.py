"""What a reader of the report should know before believing it, a line each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distinf.gram.session import Session
from distinf.gram.task import Summarised
from distinf.report.formats import shortened
from distinf.report.rows import Row
from distinf.report.words import Words

UNEQUAL = 0.1  # above the share of rows: what the given label alone may find before it is told
ROSE = 1.2  # training's loss by that before it: more than dropout makes of it
BY_SPLIT = {"empty": "empty", "texts_shared_with_train": "shared"}


def summary(task: Any) -> Mapping[str, Any]:
    return task.summary() if isinstance(task, Summarised) else {}


def by_split(task: Any, key: str) -> Mapping[str, Any]:
    """What a task that has a summary says of the rows of each split."""
    found: Mapping[str, Any] = summary(task).get(key) or {}
    return found


def said(kind: str, rows: Sequence[Row], **more: Any) -> list[str]:
    """The words of a kind of warning for each of these rows; a cell may have no name."""
    words = Words("distinf.report.gram", more)
    return [words.say("warnings", kind, **row).removeprefix(": ") for row in rows]


def chance_warnings(cells: Sequence[Row]) -> list[str]:
    """A line for each cell whose model is no better at its queries than always saying one class, or
    was made worse at its own rows."""
    found = said("learned nothing", [c for c in cells if c["learned_nothing"]])
    told = [c for c in cells if c["loss_before"] is not None and not c["learned_nothing"]]
    return found + said("worse", [c for c in told if c["loss_after"] > ROSE * c["loss_before"]])


def warnings(session: Session, cells: Sequence[Row]) -> list[str]:
    share = session.settings.actions.fraction
    unequal = [c for c in cells if c["label_ndr"] is not None and c["label_ndr"] > share + UNEQUAL]
    found = chance_warnings(cells) + said("unequal", unequal, share=share)
    found += said("absent", list(_absent(session)))
    for c in cells:
        task = session.task(c["name"])
        found += said("none right", [c] if c["correct_queries"] == 0 else [])
        found += said("truncated", [c] if c["truncated"] else [])
        replaced = summary(task).get("replaced")
        found += said("replaced", [c | {"replaced": replaced}] if replaced else [])
        for key, kind in BY_SPLIT.items():
            counts = by_split(task, key).items()
            rows = [{"name": c["name"], "split": split, "many": many} for split, many in counts]
            found += said(kind, [row for row in rows if row["many"]])
    return found


def _absent(session: Session) -> Iterator[Row]:
    """A row for each cell and split that lacks classes."""
    for cell in session.outline.cells:
        for split, names in by_split(session.task(cell), "absent_classes").items():
            told = ", ".join(shortened(repr(name)) for name in names[:5])
            told += f" and {len(names) - 5} more" if len(names) > 5 else ""
            if names:
                yield {"name": cell, "split": split, "classes": told}
