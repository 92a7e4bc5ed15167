"""A run as one process sees it: where it is stored, and what is done already.

The context that crosses to a worker is JSON: root, recipe, task, settings, and the key of each
stage, which is the digest of all that the stage's results depend on.
"""

import errno
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from distinf.collective import Collective
from distinf.engine import source_notes
from distinf.engine.recipe import Recipe, recipe_named
from distinf.engine.stage import WHOLE, Keys
from distinf.engine.stored import Stored
from distinf.errors import InputError
from distinf.microbatch import MICROBATCHES
from distinf.naming import CONFIG, refuse_names
from distinf.numerics.batches import mapped
from distinf.numerics.losses import dense_embeddings
from distinf.numerics.randomness import generator
from distinf.runtime import Lever, Unit, Work, digest
from distinf.runtime.activity import HERE
from distinf.runtime.litter import TOLD
from distinf.runtime.records import JOBS, Record
from distinf.store import write_group
from distinf.tasks.culprit import InHand, failing_row
from distinf.tasks.identity import needs_model, refuse_other, rows_of, seen, seen_model, stated
from distinf.tasks.rehearsal import checked_shapes
from distinf.tasks.shapes import Shapes
from distinf.tasks.sources import digest_of, loaded_beyond, sources
from distinf.tasks.task import SPLITS, Batch, Task, build_task, task_path

PREPARE = "distinf.engine.session:prepare"


@dataclass(frozen=True)
class Outline:
    """All that the list of units depends on: no data, no device.

    keys  by stage. rows: by split
    """

    settings: Any
    keys: Keys
    rows: Mapping[str, int]
    shapes: Shapes


class Session(Stored):
    """Opens nothing before it is asked. A recipe may have its own, with more to offer."""

    def __init__(self, context: Mapping[str, Any], device: torch.device):
        super().__init__(context["root"], context.get("name", ""))
        self.context = {k: v for k, v in context.items() if k != "variations"}
        self.variations: Mapping[str, Any] = {
            name: type(self)(inner, device) for name, inner in context.get("variations", {}).items()
        }
        asked = context.get("asked")  # where these training rows are candidates of a run
        self.asked: Any = type(self)(asked, device) if asked else self  # who has the queries
        self.device = device
        self.seed: int = context["seed"]
        self.keys: Keys = context["keys"][WHOLE]
        self._modules = 0  # how many this process had imported when their sources were noted
        self.in_hand: list[InHand] = []  # what was read last, to find the row that fails

    def asked_keys(self, keys: Keys) -> Keys:
        """`keys` for what depends on query rows: others where the rows came after the run."""
        late = self.context.get("late", "")
        return {name: digest([key, late]) for name, key in keys.items()} if late else keys

    @property
    def of_candidates(self) -> bool:
        """Its task's training rows are candidates; the run's own, the queries and all that was
        made of them are those of `asked`."""
        return self.asked is not self

    @property
    def asked_method(self) -> Any:
        """gradients.method as it was set; None leaves the choice to the rehearsal."""
        return self.context["settings"].get("gradients", {}).get("method")

    def settle(self, context: Mapping[str, Any]) -> None:
        """Take a context that differs in settings alone, before anything is done with them."""
        for name, inner in self.variations.items():
            inner.settle(context["variations"][name])
        self.context = {k: v for k, v in context.items() if k != "variations"}
        self.keys = context["keys"][WHOLE]
        for name in ("settings", "outline"):
            self.__dict__.pop(name, None)
        self._cache.clear()

    @cached_property
    def recipe(self) -> Recipe:
        return recipe_named(self.context["recipe"])

    @cached_property
    def settings(self) -> Any:
        """Of the recipe's stages, a section a field."""
        return TypeAdapter(self.recipe.settings).validate_python(self.context["settings"])

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """By cell, as this process built them; rows that the run makes are not attached yet."""
        built = build_task(
            self.context["task"], self.context["task_settings"], self.seed, self.recipe.task
        )
        return dict(self.recipe.cells(built))

    @cached_property
    def task(self) -> Any:
        """That of a run of a single cell."""
        return self.tasks[WHOLE]

    @cached_property
    def outline(self) -> Any:
        """All that the list of units depends on."""
        rows = {split: rows_of(self.task, split) for split in SPLITS}
        return Outline(self.settings, self.keys, rows, checked_shapes(self.task))

    def task_of(self, cell: str) -> Any:
        """A cell's task, with its rows."""
        return self.task if cell == WHOLE else self.tasks[cell]

    def kept_rows(self) -> tuple[Lever, ...]:
        """What a worker keeps in its host's memory once it was read."""
        return ()

    def refuse_other_data(self) -> None:
        """InputError if this process has other code, data or model settings than the driver."""
        _refuse_other_code(self.context["sources"], sources(task_path(self.context["task"])))
        for cell, task in self.tasks.items():
            drivers = {k: v for k, v in self.context["seen"][cell].items() if not needs_model(k)}
            refuse_other(drivers, seen(task, stated(task)))
        if self.of_candidates:
            self.asked.refuse_other_data()

    def model_of(self, task: Task, cell: str = "") -> nn.Module:
        """The task's model as it starts; InputError if it is another one than the driver's.

        Its embeddings' gradients are dense: most optimizers take no others, nor do sums of shards.
        """
        model = task.model()
        drivers = {k: v for k, v in self.context["seen"][cell].items() if needs_model(k)}
        refuse_other(drivers, seen_model(task, model))
        dense_embeddings(model)
        return model

    def read(self, task: Task, split: str, ids: np.ndarray) -> Batch:
        """The rows on this worker's device."""
        HERE.report()
        self.in_hand = [InHand(task, split, ids)]
        return to_device(task.batch(split, ids), self.device)

    def culprit(self, error: BaseException) -> str:
        """What of the rows in hand fails in this way alone; "" if nothing does."""
        if not self.in_hand:
            return ""
        model = self.kept_model() or self.in_hand[0].task.model().to(self.device)
        return failing_row(self.in_hand, model, self.read, error)

    def kept_model(self) -> nn.Module | None:
        """The trained model, if this process has it."""
        return None

    def memory_settings(self, stage: str) -> list[str]:
        """What a stage's memory goes by, what saves most first."""
        costs = (cost for each in self.recipe.every if each.name == stage
                 for _, cost in each.units(self.outline))  # fmt: skip
        most = max(costs, key=lambda cost: sum(lever.bytes for lever in cost.levers))
        levers = sorted(most.levers, key=lambda lever: -lever.bytes)
        return list(dict.fromkeys(lever.setting for lever in levers if not lever.advice))

    def work(self, body: str) -> Work:
        return Work(body, PREPARE, self.context)

    def commit(
        self,
        unit: Unit,
        attempt: str,
        arrays: Mapping[str, np.ndarray],
        *,
        summary: Mapping[str, Any] | None = None,
        chunk_rows: int | None = None,
        may_hold_nan: Sequence[str] = (),
    ) -> Record:
        """Write the unit's group, verify it, put its record: after this it is done."""
        refuse_names(f"{unit.stage}: arrays", arrays, cased=True)
        self._note_sources()
        folder = f"{JOBS}/{unit.id}" if self._is_job(unit) else f"{unit.stage}.zarr/{unit.id}"
        manifest = write_group(
            self.blobs, f"{folder}/{attempt}", arrays,
            chunk_rows=chunk_rows, may_hold_nan=may_hold_nan,
        )  # fmt: skip
        content: dict[str, Any] = {
            "manifest": manifest,
            "summary": dict(summary or {}),
            "name": attempt,
        }
        content |= HERE.spent(unit.stage)
        if MICROBATCHES.lowered:
            content["microbatch"] = MICROBATCHES.lowered
        record = self.ledger(unit.stage).commit(unit, _number(attempt), content)
        self._refuse_swept(unit, record)
        if self._told.pop(unit.id, None) is not None:
            self.blobs.delete(f"{TOLD}/{unit.stage}/{unit.id}")
        return record

    def _is_job(self, unit: Unit) -> bool:
        return any(stage.is_jobs for stage in self.recipe.stages if stage.name == unit.stage)

    def _refuse_swept(self, unit: Unit, record: Record) -> None:
        """OSError if another driver, which took this one for dead, deleted what was committed."""
        manifest = record["manifest"]
        first = next(iter(manifest["files"]), None)
        if first is not None:
            try:
                self.blobs.size(f"{manifest['group']}/{first}")
            except KeyError:
                self.ledger(unit.stage).take_out(unit.id, self._delete)
                raise FileNotFoundError(
                    errno.ENOENT, "another driver swept it", manifest["group"]
                ) from None

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.blobs.delete(name)

    def _note_sources(self) -> None:
        """Store what code this process has imported that the task's files do not name."""
        if len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        found = loaded_beyond(self.context["sources"])
        if found:
            source_notes.keep(self.blobs, found)

    def changed_sources(self) -> list[str]:
        """Of the code that was so noted, the modules whose source is now another."""
        names = self.blobs.names(source_notes.FOLDER)
        notes = [source_notes.kept(self.blobs, name) for name in names]
        return sorted({k for note in notes for k, v in note.items() if digest_of(k) != v})

    def forget_sources(self) -> None:
        """Of code that was accepted; what runs from now on is noted anew."""
        for name in self.blobs.names(source_notes.FOLDER):
            self.blobs.delete(name)


def prepare(context: Mapping[str, Any], device: torch.device) -> Session:
    """What a worker holds for as long as it works on one run."""
    session = session_of(context, device)
    session.blobs.require(CONFIG)
    session.refuse_other_data()
    return session


def session_of(context: Mapping[str, Any], device: torch.device) -> Session:
    """The run as this process sees it, by its recipe's own kind of session."""
    kind = recipe_named(context["recipe"]).session or Session
    return kind(context, device)


def _refuse_other_code(drivers: Mapping[str, str], here: Mapping[str, str]) -> None:
    names = sorted(k for k in drivers.keys() | here.keys() if drivers.get(k) != here.get(k))
    if names:
        raise InputError(
            f"task: the source of {', '.join(names[:3])} on {socket.gethostname()} is not what the "
            "run was started with; every process must run the same code: undo the change, or stop "
            "the run and start it again"
        )


def to_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    moved: Batch = mapped(batch, lambda _, leaf: leaf.to(device) if torch.is_tensor(leaf) else leaf)
    return moved


def done_for_all(session: Session, collective: Collective, units: Sequence[Unit]) -> list[bool]:
    """Which units are committed, as rank 0 sees it: ranks must not branch on what each reads."""
    records = session.done(units)
    seen = torch.tensor([[unit.id in records for unit in units]], dtype=torch.int32)
    return [bool(x) for x in collective.all_gather(seen.to(session.device))[0].tolist()]


def row_ranges(rows: int, rows_per_unit: int) -> list[tuple[int, int]]:
    """[(start, stop)] that cover `rows` in pieces of `rows_per_unit`."""
    return [(a, min(a + rows_per_unit, rows)) for a in range(0, rows, rows_per_unit)]


def draw(seed: int, purpose: str, count: int, size: int | None) -> np.ndarray:
    """`size` (None: all) distinct ids of `count` in random order, from (seed, purpose) alone."""
    return generator(seed, purpose).permutation(count)[:size]


def _number(attempt: str) -> int:
    head = attempt.split("-", 1)[0]
    return int(head) if head.isdigit() else 1
