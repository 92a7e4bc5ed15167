"""What the empirical recipe asks of a task beyond `tasks.task.Task`, all of it optional."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.tasks.task import SPLITS, Batch, Task, error_context

TRAIN, EVALUATION = SPLITS  # rows that are tuned on, and rows that are evaluated
CLEAN = ""  # the level of rows that were not disturbed
COLUMNS = ("sample", "group", "level", "matrix", "draw")


@dataclass(frozen=True)
class Contrast:
    """Of a matrix: does learning the group `after` help `right` more than `wrong`? With `less`:
    more than learning that group does?"""

    matrix: str
    name: str
    after: str
    right: str
    wrong: str
    less: str = ""


@runtime_checkable
class Based(Protocol):
    """A task whose model is trained on something else first, once, in the run."""

    def base(self, device: torch.device, tell: Callable[[float], None]) -> Mapping[str, np.ndarray]:
        """Its weights, by name as in model().state_dict(); tell(share done) now and then."""


@runtime_checkable
class Related(Protocol):
    """A task that can say how rows of both splits belong together."""

    def relations(self, split: str) -> Mapping[str, np.ndarray]:
        """Columns [rows], any of: "sample", int, the same of a sample wherever it is; "group", str,
        its class or its name; "level", str, how it was disturbed, "" for not at all; "matrix", str,
        and "draw", int: rows are measured on those of the same matrix and draw alone, and the draws
        of a matrix have the same samples."""


@runtime_checkable
class Contrasting(Protocol):
    """A task that knows which conclusions are right."""

    def contrasts(self) -> Sequence[Contrast]:
        """In the order of the page."""


@runtime_checkable
class Implying(Protocol):
    """A task that knows what its groups say of each other."""

    def implications(self) -> Mapping[str, Mapping[tuple[str, str], int]]:
        """By matrix: (group, another) -> 1 where the other follows, -1 where it is contradicted."""


@runtime_checkable
class Reworded(Protocol):
    """A task that says the same in several wordings, each a matrix of the same samples."""

    wordings: Mapping[str, Sequence[str]]  # the matrices of each


@runtime_checkable
class Parted(Protocol):
    """A task that can have a row learned in several steps, one after another."""

    def parts(self, row: int) -> Sequence[Batch]:
        """Of a training row, a batch of one row for each step."""


@runtime_checkable
class Pieced(Protocol):
    """A task whose evaluation rows consist of pieces, some of which are in several rows."""

    def pieces(self, ids: np.ndarray, most: int) -> tuple[Sequence[Batch], np.ndarray]:
        """Batches of at most so many pieces, each piece once, and its share of each row's loss
        [rows, pieces]."""


@runtime_checkable
class Prompted(Protocol):
    """A task whose samples can stand in a prompt instead of being learned."""

    def prompted(self, model: nn.Module, row: int, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """fp64 [n] each: the losses of the evaluation rows `ids` with the training row in the
        prompt, and with something unrelated, as long, in its place."""


@runtime_checkable
class PromptsChecked(Protocol):
    """A `Prompted` task that knows before any work which prompts its model cannot read."""

    def check_prompts(self) -> None:
        """InputError for one that is too long, or of unknown tokens."""


@runtime_checkable
class Embedded(Protocol):
    """A task whose model has a representation of a sample, for cosines to be held against."""

    def embeddings(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n, D], of each row."""


@runtime_checkable
class Worded(Protocol):
    """A task of texts, for BM25 and their lengths."""

    def words(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Word numbers of all rows, one after another, and where each row begins [rows + 1]."""


def relations(task: Task, split: str) -> dict[str, np.ndarray]:
    """All COLUMNS of a split's rows; where the task says nothing, each is a sample of its own.

    InputError for columns of another name, length or kind, and a sample that stands twice.
    """
    count = task.rows(split)
    alone = np.arange(count) if split == TRAIN else -1 - np.arange(count)
    found: dict[str, np.ndarray] = {"sample": alone, "draw": np.zeros(count, np.int64)}
    found |= {name: np.full(count, "") for name in ("group", "level", "matrix")}
    if isinstance(task, Related):
        with error_context(f"relations('{split}')"):
            told = {name: np.asarray(values) for name, values in task.relations(split).items()}
        odd = [name for name, v in told.items() if name not in COLUMNS or v.shape != (count,)]
        if odd:
            raise InputError(
                f"task: relations('{split}') has {odd[0]!r} of shape {told[odd[0]].shape}; give "
                f"any of {', '.join(COLUMNS)}, each one value a row"
            )
        found |= {name: _typed(split, name, values) for name, values in told.items()}
    _refuse_twice(split, found)
    return found


def _typed(split: str, name: str, values: np.ndarray) -> np.ndarray:
    """Whole numbers, or texts."""
    whole = name in ("sample", "draw")
    if whole and values.dtype.kind in "iub":
        return values.astype(np.int64)
    if not whole and all(isinstance(value, str) for value in values.tolist()):
        return values.astype(str)
    kind = "whole numbers" if whole else "texts"
    raise InputError(
        f"task: relations('{split}') has {name!r} of {values.dtype}; give {kind}, one a row"
    )


def _refuse_twice(split: str, columns: Mapping[str, np.ndarray]) -> None:
    seen = set()
    names = ("sample", "level", "matrix", "draw")
    for key in zip(*(columns[name].tolist() for name in names), strict=True):
        if key in seen:
            what = ", ".join(f"{name} {value!r}" for name, value in zip(names, key, strict=True))
            raise InputError(
                f"task: relations('{split}') has two rows of {what}; give each a sample of its own"
            )
        seen.add(key)


Place = tuple[str, int]  # a matrix, and which draw of it


def places(columns: Mapping[str, np.ndarray]) -> list[Place]:
    """Of every row."""
    return [*zip(columns["matrix"].tolist(), columns["draw"].tolist(), strict=True)]
