"""What the Gram recipe asks of a task beyond `tasks.task.Task`, all of it optional.

A plain task is scored as it is: its training rows against its evaluation rows, with the model that
it returns. A task of several datasets or seeds has a cell for each; a cell that can be trained is
trained, and trained again on what is left after filtering.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from distinf.blobs import Blobs
from distinf.collective import Collective
from distinf.errors import InputError
from distinf.gram.settings import Epoch, StageSettings, TrainSettings
from distinf.naming import refuse_names
from distinf.numerics.label_noise import check_probabilities
from distinf.tasks.factors import Classifying
from distinf.tasks.notes import described
from distinf.tasks.task import SPLITS, Batch, ElementTask, Task, check_losses, error_context

Tell = Callable[[float], None]
FIRST = 64  # rows
METRICS = ("train_loss", "query_loss", "query_accuracy", "test_loss", "test_accuracy")


def no_one(share: float) -> None:
    """A `Tell` for when no one asks."""


@dataclass(frozen=True)
class Fit:
    """How a training went.

    history  METRICS by epoch, each [epochs]
    best     the epoch that recipe.selected_epoch asks for, from 0: see `selected_epoch`
    weights  the trained parameters at that epoch, by name
    row_losses  of every kept row, in their order, its loss in the step of each epoch that took it:
             [epochs, n]; None where it was not noted
    loss_before  mean loss of the first FIRST kept rows before any training; None: not measured
    """

    history: Mapping[str, Sequence[float]]
    best: int
    weights: Mapping[str, np.ndarray]
    row_losses: np.ndarray | None = None
    loss_before: float | None = None


def selected_epoch(history: Mapping[str, Sequence[float]], rule: Epoch) -> int:
    """The epoch whose weights are kept, from 0, of those measured so far; the first of equal ones.

    It goes by the queries alone: test rows, which measure what filtering did, choose nothing.
    """
    losses = np.asarray(history["query_loss"], dtype=np.float64)
    if rule == "last":
        return len(losses) - 1
    ranked = np.nan_to_num(losses, nan=np.inf)
    if rule == "least_query_loss":
        return int(np.argmin(ranked))
    right = np.nan_to_num(np.asarray(history["query_accuracy"], dtype=np.float64), nan=-np.inf)
    return int(np.lexsort((ranked, -right))[0])


@runtime_checkable
class ManyCells(Protocol):
    """A task of several datasets and seeds."""

    def cells(self) -> Mapping[str, Task]:
        """Each by its name, such as "qnli-3"."""


@runtime_checkable
class Prepared(Protocol):
    """A cell whose rows are made once, in the data stage, and read from the run afterwards."""

    def prepare(self) -> Mapping[str, np.ndarray]:
        """Everything about its rows, as arrays."""

    def attach(self, arrays: Mapping[str, np.ndarray]) -> None:
        """From now on all rows come from `arrays`."""


@runtime_checkable
class Trainable(Protocol):
    """A cell that can be trained, and trained again on fewer rows from the same start."""

    def fit(
        self, kept: np.ndarray, recipe: TrainSettings, device: torch.device, tell: Tell = no_one
    ) -> Fit:
        """Train on the rows `kept` [n] (int64, ascending), saying tell(share done) now and then.

        The weights to return are those of recipe.selected_epoch.
        """


@dataclass(frozen=True)
class Gang:
    """The ranks that share a training, and where it is saved on its way: `folder` of `blobs`."""

    collective: Collective
    blobs: Blobs
    folder: str


@runtime_checkable
class Shared(Protocol):
    """A cell whose training several devices can share, by DeepSpeed."""

    def fit_together(
        self, kept: np.ndarray, recipe: TrainSettings, device: torch.device, tell: Tell, gang: Gang
    ) -> Fit:
        """As `fit`, on every rank alike, going on from what was saved; the weights are rank 0's."""


@runtime_checkable
class Exported(Protocol):
    """A cell whose trained weights others can read."""

    def exported(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
        """Files by name."""


@runtime_checkable
class Reseeded(Protocol):
    """A cell that can be trained again as if its training had drawn otherwise."""

    def reseeded(self, seed: int, own_start: bool = False) -> "Trainable":
        """The same rows; its order of rows and its dropout from `seed` too, and its starting
        weights where they are to be its own."""


@runtime_checkable
class Measured(Protocol):
    """A cell whose rows have lengths, for batches of about as many tokens."""

    def lengths(self, split: str) -> np.ndarray:
        """int64 [rows]: tokens of each row."""


@runtime_checkable
class Labelled(Protocol):
    """A cell that knows which training labels are wrong."""

    def flipped(self) -> np.ndarray | None:
        """bool [N], or None where it is not known after all."""


@runtime_checkable
class Predicting(Classifying, Protocol):
    """A cell whose model tells classes apart: then rows get suggested labels."""

    def given(self) -> np.ndarray:
        """int64 [N]: the class that each training row is labelled with, right or wrong."""


@runtime_checkable
class OfTexts(Predicting, Protocol):
    """A cell of labelled texts, whose model has a part that training leaves as it was: then there
    are baselines from embeddings and from words."""

    def embeddings(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n, D]: of each row, by the model as it is before training."""

    def words(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Word numbers of all rows, one after another, and where each row begins [rows + 1]."""

    def labels(self, split: str) -> np.ndarray:
        """int64 [rows]: the class of each row, as given."""


@runtime_checkable
class Described(Protocol):
    """A cell that can say what a training row is."""

    def describe(self, ids: np.ndarray) -> Sequence[Mapping[str, Any]]:
        """For each row its original number, text, label, and what else is worth a column."""


@runtime_checkable
class AskedAbout(Protocol):
    """A cell that can say what a query is."""

    def describe_queries(self, ids: np.ndarray) -> Sequence[Mapping[str, Any]]:
        """As `describe`, of query rows."""


@runtime_checkable
class Tokenised(ElementTask, Protocol):
    """A cell whose loss is a sum over a row's tokens (`parts`), and that can say what they are."""

    def tokens(self, split: str, row: int) -> Sequence[str]:
        """The text of each of the row's `parts`, in order."""


@runtime_checkable
class Checked(Protocol):
    """A cell that can tell, before anything is begun, whether its rows can be made."""

    def check(self) -> None:
        """InputError if not."""


@runtime_checkable
class Numbered(Protocol):
    """A cell whose rows have numbers in the user's own data."""

    def numbers(self, split: str) -> np.ndarray:
        """int64 [rows]: each row's number there."""


@runtime_checkable
class Summarised(Protocol):
    """A cell that can say what is worth knowing of its rows."""

    def summary(self) -> Mapping[str, Any]:
        """Any of: by split truncated, empty, texts_shared_with_train (rows) and largest_class (its
        share) and absent_classes (names); vocabulary, the number of tokens kept; replaced, half
        characters now U+FFFD."""


@runtime_checkable
class Deviating(Protocol):
    """A cell that carries out a published study, and can say where a run is not what it was."""

    def deviations(self, settings: StageSettings, entries: Mapping[str, int]) -> Sequence[str]:
        """A sentence each. entries: of every block whose gradients are taken, by its name."""


def rehearse_probabilities(task: Task) -> None:
    """InputError where a task whose rows are there tells classes, and two rows' are not right."""
    names = task.classes() if isinstance(task, Predicting) else None
    if names is None or not isinstance(task, Predicting):
        return
    ids = np.arange(min(2, task.rows(SPLITS[0])))
    with error_context("model()"):
        model = task.model().eval()
    with error_context("probabilities() on two rows of 'train'"), torch.no_grad():
        found = task.probabilities(model, task.batch(SPLITS[0], ids))
    try:
        check_probabilities(found, torch.from_numpy(np.asarray(task.given()))[ids])
    except InputError as error:
        raise InputError(f"task: probabilities(): {error}") from None
    twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
    if twice:
        raise InputError(f"task: two classes are called '{twice[0]}'; call each otherwise")
    if found.shape[1] != len(names):
        raise InputError(
            f"task: probabilities() are of {found.shape[1]} classes, and {len(names)} are named "
            f"({', '.join(map(str, names[:5]))}); name them all (classes=)"
        )


def cells_of(task: Task) -> dict[str, Task]:
    """The task's cells; a plain task is its own only one, by the name ""."""
    if not isinstance(task, ManyCells):
        return {"": task}
    with error_context("cells()"):
        found = dict(task.cells())
    refuse_names("task: cells()", found)
    for cell in found.values():
        check_losses(cell)
    return found


def described_rows(task: Task, rows: np.ndarray) -> list[dict[str, Any]]:
    """What the task says of these training rows, plain; at least "row", each row's number."""
    if not isinstance(task, Described):
        return [{"row": row} for row in rows.tolist()]
    with error_context("describe()"):
        return described(task.describe, rows)
