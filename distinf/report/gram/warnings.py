"""What a reader of the report should know before believing it, a line each."""

from collections.abc import Mapping, Sequence
from typing import Any

from distinf.gram.session import Session
from distinf.gram.task import Summarised
from distinf.report.formats import shortened
from distinf.report.rows import Row

UNEQUAL = 0.1  # above the share of rows: what the given label alone may find before it is told


def summary(task: Any) -> Mapping[str, Any]:
    return task.summary() if isinstance(task, Summarised) else {}


def by_split(task: Any, key: str) -> Mapping[str, Any]:
    """What a task that has a summary says of the rows of each split."""
    found: Mapping[str, Any] = summary(task).get(key) or {}
    return found


def chance_warnings(cells: Sequence[Row]) -> list[str]:
    """A line for each cell whose model is no better at its queries than always saying one class."""
    return [
        f"{c['name']}: the model gets {c['correct_queries']} of {c['queries']} queries right, and "
        f"always saying the same class {c['majority_queries']}: it has learned too little for its "
        "gradients to tell rows apart; train longer (train.epochs), at another train.lr, or on "
        "more rows"
        for c in cells
        if c["learned_nothing"]
    ]


def label_warnings(cells: Sequence[Row], share: float) -> list[str]:
    """A line for each cell where the given label alone finds far more than rows at random."""
    return [
        f"{c['name']}: classes are unequal: the given label alone finds {c['label_ndr']:.0%} of "
        f"the wrong rows among {share:.0%} of all, and rows of the same labels as the headline's, "
        f"chosen at random, {c['within_labels']:.0%}; compare with these"
        for c in cells
        if c["label_ndr"] is not None and c["label_ndr"] > share + UNEQUAL
    ]


def class_warnings(session: Session) -> list[str]:
    """A line for each cell and split that lacks classes."""
    found = []
    for cell in session.outline.cells:
        for split, names in by_split(session.task(cell), "absent_classes").items():
            if names:
                told = ", ".join(shortened(repr(name)) for name in names[:5])
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                found.append(
                    f"{cell}: no row of '{split}' has class {told}{more}; what it says of such "
                    "rows rests on the other classes"
                )
    return found


def warnings(session: Session, cells: Sequence[Row]) -> list[str]:
    found = chance_warnings(cells) + label_warnings(cells, session.settings.actions.fraction)
    found += class_warnings(session)
    for c in cells:
        name, task = c["name"], session.task(c["name"])
        texts = {"empty": "are empty.", "texts_shared_with_train": "are training texts too."}
        if c["correct_queries"] == 0:
            found.append(
                f"{name}: no query is predicted right: rank and vote, which count only those, have "
                "nothing there."
            )
        if c["truncated"]:
            found.append(f"{name}: {c['truncated']} rows are longer than the limit and were cut.")
        if replaced := summary(task).get("replaced"):
            found.append(f"{name}: {replaced} half characters of the file are U+FFFD here.")
        found += [
            f"{name}: {count} texts of '{split}' {what}"
            for key, what in texts.items()
            for split, count in by_split(task, key).items()
            if count
        ]
    return found
