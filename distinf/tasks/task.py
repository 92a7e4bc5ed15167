"""What a study or a user supplies: a model, its data, losses per sample and a metric.

A task is an import path plus settings. Every worker builds its own; none is ever pickled.
"""

import difflib
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from distinf.errors import DistinfError, InputError
from distinf.naming import refuse_names
from distinf.runtime import faults
from distinf.runtime.worker import resolve
from distinf.tasks.shapes import Shapes

if TYPE_CHECKING:  # the store is heavy to import
    from distinf.store import Rows

Batch = dict[str, Tensor]
PerSampleLoss = Callable[[nn.Module, Batch], Tensor]  # -> [N]
SPLITS = ("train", "evaluation")


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


HOME = Path(__file__).parents[1] / "studies"
STUDIES = tuple(  # each a folder of distinf/studies, or "folder.inner"; imported on demand
    sorted(".".join(file.parent.relative_to(HOME).parts) for file in HOME.rglob("task.py"))
)


def task_path(name: str) -> str:
    """A study's short name, or "module:function" as it stands."""
    if name in STUDIES:
        return f"distinf.studies.{name}.task:task"
    faults.note_task(name)
    if not all(name.partition(":")):
        known = ", ".join(sorted(STUDIES))
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "write it as in mine:task"
        raise InputError(f"task: '{name}' is neither a study ({known}) nor module:function; {hint}")
    return name


def settings_type(name: str) -> Any:
    """What the factory says its settings are: a dataclass, or dict where it says nothing."""
    with error_context(f"importing {name}"):
        factory = resolve(task_path(name))
    try:
        names = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        names = []
    if len(names) != 2:
        raise InputError(f"task: {name} is no task factory; write it as task(settings, seed)")
    hinted = typing.get_type_hints(factory).get(names[0], dict)
    return hinted if is_dataclass(hinted) else dict[str, Any]


def recipe_of(name: str) -> str:
    """The recipe that a task is for, as its module's RECIPE says; "spectral" where it has none."""
    with error_context(f"importing {name}"):
        factory = resolve(task_path(name))
        module = sys.modules.get(getattr(factory, "__module__", ""))
    return str(getattr(module, "RECIPE", "spectral"))


def setting_of_file(name: str, rows: str) -> str:
    """The dotted name of the task's setting that takes a file of queries or of candidates, "" if it
    has none: its module's QUERIES, or CANDIDATES."""
    factory = resolve(task_path(name))
    module = sys.modules.get(getattr(factory, "__module__", ""))
    found = getattr(module, rows.upper(), "")
    return found if isinstance(found, str) else ""


@contextmanager
def error_context(what: str) -> Iterator[None]:
    """Whatever the user's code raises becomes one line that says where; its cause rides along.

    What may pass (memory, a connection) is raised as it is, and so is Ctrl-C.
    """
    try:
        yield
    except (DistinfError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if faults.whose(error) == "passing":
            raise
        raise InputError(f"task: {what} failed {faults.told(error)}") from error


def build_task(name: str, settings: Mapping[str, Any], seed: int, kind: Any = Task) -> Task:
    """Call the factory with its validated settings -> the task, of this protocol."""
    typed = TypeAdapter(settings_type(name)).validate_python(dict(settings))
    with error_context(f"{name}(settings, seed)"):
        task: Any = resolve(task_path(name))(typed, seed)
    if task is None:
        raise InputError(f"task: {name} returned None; did you forget its return?")
    if not isinstance(task, kind):
        missing = [m for m in _members(kind) if not hasattr(task, m)]
        raise InputError(f"task: {name} returned an object without {', '.join(missing)}")
    if kind is Task:
        check_losses(task)
    return task


def check_losses(task: Task) -> None:
    """InputError for losses that are none, or whose names cannot be arrays' names."""
    losses = task.losses
    if not isinstance(losses, Mapping) or not losses:
        raise InputError(f"task: losses is {kind_of(losses)}; make it a mapping of names to losses")
    refuse_names("task: losses", losses)
    for name, loss in losses.items():
        if not callable(loss):
            raise InputError(
                f"task: losses[{name!r}] is {kind_of(loss)}; a loss is a function of (model, batch)"
            )


def kind_of(value: Any) -> str:
    """What a value is, in words: "a list of 3"."""
    if value is None:
        return "None"
    many = f" of {len(value)}" if isinstance(value, Sequence | Mapping) else ""
    return f"a {type(value).__name__}{many}"


def _members(protocol: type) -> list[str]:
    return (
        sorted(typing.get_protocol_members(protocol))
        if hasattr(typing, "get_protocol_members")
        else sorted(set(protocol.__annotations__) | {n for n in vars(protocol) if n[0] != "_"})
    )
