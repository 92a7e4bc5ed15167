"""What a reader of the report should know before believing it, a line each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.gram import gradients, scores
from distinf.gram.actions import flipped_rows, lowest_first
from distinf.gram.session import QUERY, Cell, Session
from distinf.gram.task import Predicting, Summarised
from distinf.numerics.metrics import ndr_of_labels, ndr_within_labels
from distinf.report.formats import shortened

UNEQUAL = 0.1  # above the share of rows: what the given label alone may find before it is told


def summary(task: Any) -> Mapping[str, Any]:
    return task.summary() if isinstance(task, Summarised) else {}


def by_split(task: Any, key: str) -> Mapping[str, Any]:
    """What a task that has a summary says of the rows of each split."""
    found: Mapping[str, Any] = summary(task).get(key) or {}
    return found


def majority_queries(session: Session, cell: Cell) -> int | None:
    """How many queries always saying their most frequent class gets right; None where the task
    does not say."""
    most = by_split(session.task(cell.name), "largest_class").get(QUERY)
    return None if most is None else round(most * cell.rows[QUERY])


def learned_nothing(session: Session, cell: Cell) -> bool:
    """The model is known to be no better at its queries than always saying one class: within two
    standard errors of it."""
    by_one_class = majority_queries(session, cell)
    if by_one_class is None or not gradients.says_right(session, cell.name):
        return False
    queries = cell.rows[QUERY]
    most = by_one_class / queries
    by_chance = most + 2.0 * np.sqrt(most * (1.0 - most) / queries)
    return bool(scores.right_queries(session, cell).sum() / queries <= by_chance)


def chance_warnings(session: Session) -> list[str]:
    """A line for each cell whose model is no better at its queries than always saying one class."""
    return [
        f"{cell.name}: the model gets {int(scores.right_queries(session, cell).sum())} of "
        f"{cell.rows[QUERY]} queries right, and always saying the same class "
        f"{majority_queries(session, cell)}: it has learned too little for its gradients to tell "
        "rows apart; train longer (train.epochs), at another train.lr, or on more rows"
        for cell in session.outline.cells.values()
        if learned_nothing(session, cell)
    ]


def given_labels(session: Session, cell: Cell) -> Tensor | None:
    """int64 [N]: the class that each training row is labelled with; None where none is told."""
    task = session.task(cell.name)
    if not isinstance(task, Predicting) or task.classes() is None:
        return None
    return torch.from_numpy(np.asarray(task.given()))


def label_chances(session: Session, cell: Cell) -> tuple[float, float] | None:
    """(NDR expected by the given label alone, of rows with the headline's labels at random); None
    where labels or which are wrong are not told."""
    labels, noise = given_labels(session, cell), flipped_rows(session, cell.name)
    if labels is None or noise is None or not noise.any():
        return None
    flipped = torch.from_numpy(noise)
    scores_N = scores.all_scores(session, cell)[scores.headline(session, cell)]
    ranked, share = torch.from_numpy(lowest_first(scores_N)), session.settings.actions.fraction
    return (
        ndr_of_labels(labels, flipped, share),
        ndr_within_labels(ranked, labels, flipped, share),
    )


def label_warnings(session: Session) -> list[str]:
    """A line for each cell where the given label alone finds far more than rows at random."""
    found, share = [], session.settings.actions.fraction
    for cell in session.outline.cells.values():
        chances = label_chances(session, cell)
        if chances is not None and chances[0] > share + UNEQUAL:
            found.append(
                f"{cell.name}: classes are unequal: the given label alone finds {chances[0]:.0%} "
                f"of the wrong rows among {share:.0%} of all, and rows of the same labels as the "
                f"headline's, chosen at random, {chances[1]:.0%}; compare with these"
            )
    return found


def class_warnings(session: Session) -> list[str]:
    """A line for each cell and split that lacks classes."""
    found = []
    for cell in session.outline.cells.values():
        for split, names in by_split(session.task(cell.name), "absent_classes").items():
            if names:
                told = ", ".join(shortened(repr(name)) for name in names[:5])
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                found.append(
                    f"{cell.name}: no row of '{split}' has class {told}{more}; what it says of "
                    "such rows rests on the other classes"
                )
    return found


def warnings(session: Session, cells: Sequence[Cell]) -> list[str]:
    found = [
        *chance_warnings(session), *label_warnings(session), *class_warnings(session),
    ]  # fmt: skip
    for cell in cells:
        task = session.task(cell.name)
        for split, count in by_split(task, "empty").items():
            if count:
                found.append(f"{cell.name}: {count} texts of '{split}' are empty.")
        cut = sum(by_split(task, "truncated").values())
        if cut:
            found.append(f"{cell.name}: {cut} rows are longer than the limit and were cut.")
        replaced = summary(task).get("replaced")
        if replaced:
            found.append(f"{cell.name}: {replaced} half characters of the file are U+FFFD here.")
        for split, count in by_split(task, "texts_shared_with_train").items():
            if count:
                found.append(f"{cell.name}: {count} texts of '{split}' are training texts too.")
    return found
