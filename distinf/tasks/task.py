"""What a study or a user supplies: a model, its data, losses per sample and a metric.

A task is an import path plus settings. Every worker builds its own; none is ever pickled.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # the store is heavy to import
    from distinf.store import Rows

Batch = dict[str, Tensor]
PerSampleLoss = Callable[[nn.Module, Batch], Tensor]  # -> [N]
SPLITS = ("train", "evaluation")


@dataclass(frozen=True)
class Shapes:
    """What `plan` needs to know without data and without a download.

    flops_per_sample             of one forward pass
    activation_bytes_per_sample  kept for one backward pass
    recomputed_bytes_per_sample  where each layer keeps its input alone; 0: that is not known
    row_bytes                    stored per row, by split; 0 where the task's data are its own
    weight_bytes                 of all parameters; 0: four a parameter
    tokens_per_row               on average; 0 where rows have no lengths
    trained                      how many of the parameters are; 0: all
    largest                      entries of the largest parameter that is; 0: as if all were one
    kept_bytes                   of weights that a process keeps on its host beside each model
    lengths                      tokens of some rows, ascending; () where rows have no lengths
    assumption                   what of this is not known and assumed, for people
    """

    parameters: int
    flops_per_sample: float
    activation_bytes_per_sample: float
    row_bytes: Mapping[str, float] = field(default_factory=dict)
    weight_bytes: float = 0.0
    tokens_per_row: float = 0.0
    trained: int = 0
    largest: int = 0
    kept_bytes: float = 0.0
    recomputed_bytes_per_sample: float = 0.0
    lengths: tuple[int, ...] = ()
    assumption: str = ""

    @property
    def tuned(self) -> int:
        """How many parameters are trained."""
        return self.trained or self.parameters

    @property
    def forwards(self) -> dict[str, float]:
        """Arithmetic of the primitives in forward passes: gradients of activations cost as much as
        one, and so do those of weights, where they are trained; a Hessian product (jvp over grad)
        costs nine, and through frozen weights four."""
        trained = self.tuned / max(self.parameters, 1)
        gradient = 2.0 + trained
        whole = {"forward": 1.0, "train": gradient, "gradient": gradient}
        return {**whole, "product": 4.0 + 5.0 * trained}

    def activations(self, recomputed: bool = False) -> float:
        """Bytes of a sample that a backward pass keeps, with layers computed again if so."""
        found = self.recomputed_bytes_per_sample if recomputed else 0.0
        return found or self.activation_bytes_per_sample

    def padded(self, rows: float = math.inf) -> float:
        """Tokens of a row once it is padded to the longest of so many, drawn at random, over those
        that rows have on average; without a number, to the longest there is."""
        if not self.lengths:
            return 1.0
        shares = (np.arange(len(self.lengths) + 1) / len(self.lengths)) ** rows
        expected = float(np.diff(shares) @ np.array(self.lengths))
        return max(1.0, expected * len(self.lengths) / sum(self.lengths))

    @property
    def model_bytes(self) -> float:
        return self.weight_bytes or 4.0 * self.parameters


@dataclass(frozen=True)
class Published:
    """A number from the literature to print beside ours.

    `column` tells the source's training sets apart ("800k"); `run` names the run that it stands
    beside: "" is this one, another is a variation's name.
    """

    source: str
    loss: str
    variant: str
    selection: str
    mean_pct: float
    sd_pct: float | None = None
    note: str = ""
    column: str = ""
    run: str = ""


@dataclass(frozen=True)
class Wording:
    """How the report speaks of a task. Labels are for people; `baseline` is a column's name.

    deviations: what is reconstructed or differs from the paper that the task follows, one sentence
    each.
    published: that paper's own numbers, to print beside a run's.
    columns: stored per-row columns worth showing beside a row; category columns name their values
    in the task's `labels`.
    """

    question: str = "Which training samples help the model where it does worst?"
    noun: str = "samples"
    metric: str = "metric"
    reference: str | None = None
    baseline: str | None = None
    baseline_label: str | None = None
    axis: str | None = None
    log: bool = False
    columns: tuple[str, ...] = ()
    deviations: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()


class RowSource(Protocol):
    """Stored rows of a split."""

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The rows named by `ids` [n], in that order, of every array."""


@runtime_checkable
class Task(Protocol):
    """The contract of design.md; `TensorTask` implements it for data that fit in memory.

    losses     per-sample losses by name; the first is the training loss, the others query losses
    metric     the key of `evaluate` that should go down
    reference  the key of what is achievable per sample, or None: the gap is the metric itself
    axis       a key of `evaluate` to plot the metric against, or None

    It may also have `conditions`, keys of `evaluate`: rows that agree on all of them were measured
    under the same conditions, and of those one is taken as a target. And `criteria`, functions of
    evaluate's columns (arrays [E]) that give a gap [E], by names that targets.criterion can take.
    """

    losses: Mapping[str, PerSampleLoss]
    metric: str
    reference: str | None
    axis: str | None

    def model(self) -> nn.Module:
        """Freshly initialised, deterministic in the seed, on the CPU."""

    def rows(self, split: str) -> int:
        """How many rows the split ("train" or "evaluation") has."""

    def batch(self, split: str, ids: np.ndarray) -> Batch:
        """CPU tensors of the rows `ids` [n], in that order, first dimension n."""

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Columns [n]: the metric, and whatever else is worth a column."""

    def optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """The optimizer of training and of fine-tuning."""

    def digests(self) -> Mapping[str, str]:
        """What identifies data and model, as texts by name; a resumed run must have the same.

        The source of every module that the task imports is covered without it; a file that a task
        reads by itself (a table, weights) is not, unless its content's digest is among these.
        """

    def shapes(self) -> Shapes:
        """Sizes and costs, from the settings alone."""


@runtime_checkable
class Identified(Protocol):
    """All that is asked of the task of a recipe without a model."""

    def digests(self) -> Mapping[str, str]:
        """What identifies what it works on, as texts by name; a resumed run must have the same."""


@runtime_checkable
class GeneratingTask(Protocol):
    """A task whose rows are made, unit by unit, in the data stage."""

    def rows_per_unit(self, split: str) -> int:
        """Rows of one unit; every unit starts at a multiple of it."""

    def generate(self, split: str, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Arrays [stop - start, ...], a function of (seed, split, start, stop) alone."""

    def attach(self, split: str, rows: RowSource) -> None:
        """From now on `batch` reads the split from `rows`."""


@runtime_checkable
class StoredTask(Protocol):
    """A task whose rows lie in a store of their own, made before the run."""

    def stored(self, split: str) -> "Rows":
        """The split's committed rows."""

    def attach(self, split: str, rows: RowSource) -> None:
        """From now on `batch` reads the split from `rows`."""


@runtime_checkable
class RedrawingTask(Protocol):
    """A task that can draw more rows under the conditions of one of its evaluation rows."""

    def redrawn(self, row: int, count: int) -> Batch:
        """`count` rows that are in no split, as `batch` gives them; the same at every call."""


@runtime_checkable
class ElementTask(Protocol):
    """A task whose training loss is a sum over the elements of a row, for attribution to them.

    It may name the two axes of a row's elements: `part_axes`, ("line", "column"), say.
    """

    def parts(self, model: nn.Module, batch: Batch) -> Tensor:
        """[N, A, B] or [N, B]: summed over a row's elements, the training loss of the row.

        NaN marks an element that has no part in it.
        """
