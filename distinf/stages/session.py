"""A run as one process sees it: where it is stored, what it computes, and what is done already.

The context that crosses to a worker is JSON: root, task, settings, and the basis of each stage,
which is the digest of all that the stage's results depend on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from distinf.errors import CorruptionError
from distinf.numerics.collective import Collective
from distinf.runtime import Ledger, Unit, Work, digest
from distinf.runtime.ledger import Record
from distinf.stages.checkpoint import content_digest
from distinf.stages.settings import StageSettings
from distinf.stages.task import (
    SPLITS,
    Batch,
    GeneratingTask,
    Shapes,
    StoredTask,
    Task,
    build_task,
    task_path,
    telling,
)
from distinf.store import CachedRows, Rows, open_root, read_group, write_group

DATA = "data"


@dataclass(frozen=True)
class Outline:
    """All that the list of units depends on: no data, no device."""

    settings: StageSettings
    basis: Mapping[str, str]
    rows: Mapping[str, int]
    rows_per_unit: Mapping[str, int]  # of a generating task; empty for one with its own data
    losses: Sequence[str]
    shapes: Shapes

    @property
    def training_rows(self) -> int:
        """How many rows of the training split, from the first on, the model is trained on."""
        return min(self.settings.train.rows or self.rows["train"], self.rows["train"])


def bases(
    name: str, task_settings: Mapping[str, Any], task: Task, seed: int, settings: StageSettings
) -> dict[str, str]:
    """Digest chain: each stage's basis covers its own settings and what it reads from.

    What cannot change a result is left out (cache sizes, checkpoint intervals), and so is what a
    unit's own id already says (how many seeds, which selections): asking for more keeps the rest.
    """
    per_unit = (
        {split: task.rows_per_unit(split) for split in SPLITS}
        if isinstance(task, GeneratingTask)
        else {}
    )
    with telling("digests()"):
        identity = dict(task.digests())
    found: dict[str, str] = {}
    s = asdict(settings)
    refine = {k: s["curvature"].pop(k) for k in list(s["curvature"]) if k.startswith("refine")}
    data = {k: v for k, v in s["data"].items() if k != "cache_mb"}
    train = {k: v for k, v in s["train"].items() if k != "checkpoint_every"}
    if train["checkpoint"]:  # what is in the file counts, not where it lies
        train["checkpoint"] = content_digest(train["checkpoint"])
    rows = {split: task.rows(split) for split in SPLITS}
    rows_from = identity.get("data") or dict(task_settings)
    found["data"] = digest([task_path(name), seed, rows_from, rows, per_unit, data])
    found["train"] = digest(
        [found["data"], dict(task_settings), identity, list(task.losses), train]
    )
    found["evaluate"] = digest([found["train"], s["evaluate"]])
    found["curvature"] = digest([found["train"], s["curvature"]])
    solved = [refine, s["scores"]["damping"], s["scores"]["negative"]] if refine["refine"] else []
    method = s["gradients"]["method"]
    found["queries"] = digest([found["evaluate"], found["curvature"], s["targets"], solved, method])
    found["gradients"] = digest([found["queries"], s["gradients"]])
    found["scores"] = digest([found["gradients"], s["scores"]])
    passes = {k: s["gradients"][k] for k in ("chunk", "method", "precision")}
    found["trajectory"] = digest(
        [found["evaluate"], s["targets"], passes, s["curvature"]["blocks"]]
    )
    # Which checkpoints TracIn sums over: their units name them one by one.
    chosen = [s["trajectory"], s["train"]["checkpoint_every"]]
    found["tracin"] = digest([found["trajectory"], chosen])
    headline = {k: s["actions"][k] for k in ("loss", "variant")}
    summed = found["tracin"] if headline["variant"] == "tracin" else ""
    found["attribution"] = digest(
        [found["scores"], s["attribution"]["rows"], s["gradients"]["chunk"], headline, summed]
    )
    found["actions"] = digest([found["scores"], s["evaluate"], s["actions"]["non_targets"]])
    read = [found[name] for name in ("actions", "tracin", "attribution")]
    found["report"] = digest([read, s["actions"], s["attribution"], s["report"]])
    return found


class Session:
    """Opens nothing before it is asked."""

    def __init__(self, context: Mapping[str, Any], device: torch.device):
        self.context = {k: v for k, v in context.items() if k != "beside"}
        self.name: str = context.get("name", "")  # of a variation; "" for the run itself
        self.beside: Mapping[str, Session] = {
            name: Session(inner, device) for name, inner in context.get("beside", {}).items()
        }
        self.device = device
        self.seed: int = context["seed"]
        self.basis: Mapping[str, str] = context["basis"]
        self._cache: dict[Any, Any] = {}

    @cached_property
    def settings(self) -> StageSettings:
        return TypeAdapter(StageSettings).validate_python(self.context["settings"])

    @cached_property
    def blobs(self) -> Any:
        return open_root(self.context["root"])

    @cached_property
    def task(self) -> Task:
        """The task, its generated or imported rows attached; they are read on first use."""
        task = build_task(self.context["task"], self.context["task_settings"], self.seed)
        for split in SPLITS:
            keep = partial(self._fits_in_memory, split)
            if isinstance(task, GeneratingTask):
                task.attach(split, CachedRows(partial(self._generated, split), keep))
            elif isinstance(task, StoredTask):
                task.attach(split, CachedRows(partial(task.stored, split), keep))
        return task

    def _generated(self, split: str) -> Rows:
        return self.rows(split_units(self.outline, split))

    def _fits_in_memory(self, split: str) -> bool:
        stored = self.outline.rows[split] * self.outline.shapes.row_bytes.get(split, 0.0)
        return stored <= self.settings.data.cache_mb * 2**20

    @cached_property
    def outline(self) -> Outline:
        task = self.task
        per_unit = (
            {split: task.rows_per_unit(split) for split in SPLITS}
            if isinstance(task, GeneratingTask)
            else {}
        )
        with telling("shapes()"):
            shapes = task.shapes()
        return Outline(
            settings=self.settings,
            basis=self.basis,
            rows={split: task.rows(split) for split in SPLITS},
            rows_per_unit=per_unit,
            losses=list(task.losses),
            shapes=shapes,
        )

    def ledger(self, stage: str) -> Ledger:
        return self.cached(("ledger", stage), lambda: Ledger(self.blobs, stage))

    def work(self, body: str) -> Work:
        return Work(body, "distinf.stages.session:prepare", self.context)

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
        folder = f"jobs/{unit.id}" if unit.stage == "actions" else f"{unit.stage}.zarr/{unit.id}"
        manifest = write_group(
            self.blobs, f"{folder}/{attempt}", arrays,
            chunk_rows=chunk_rows, may_hold_nan=may_hold_nan,
        )  # fmt: skip
        content = {"manifest": manifest, "summary": dict(summary or {}), "name": attempt}
        return self.ledger(unit.stage).commit(unit, _number(attempt), content)

    def done(self, units: Sequence[Unit]) -> dict[str, Record]:
        """Commit records by unit id, of those units that have one."""
        return self.ledger(units[0].stage).read(units) if units else {}

    def arrays(self, unit: Unit, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """A committed unit's arrays; CorruptionError if it has no record."""
        record = self.ledger(unit.stage).get(unit)
        if record is None:
            raise CorruptionError(f"{unit.describe()} has no commit record; run again")
        return read_group(self.blobs, record["manifest"], names)

    def rows(self, units: Sequence[Unit]) -> Rows:
        """Committed units of a row range as one array."""
        records = self.done(units)
        missing = [unit for unit in units if unit.id not in records]
        if missing:
            raise CorruptionError(f"{missing[0].describe()} has no commit record; run again")
        return Rows(self.blobs, [(u.start, u.stop, records[u.id]["manifest"]) for u in units])

    def cached(self, key: Any, make: Any) -> Any:
        """The value made once per process for this key."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def note_time(self, stage: str, began: float, seconds: float, busy_s: float) -> None:
        """Remember what a stage took this time; a resumed run adds one note to the others."""
        note = {"stage": stage, "began": began, "seconds": seconds, "busy_s": busy_s}
        note["run"] = self.name
        self.blobs.put(f"timing/{stage}-{int(began * 1e3)}.json", json.dumps(note).encode())

    def times(self) -> list[dict[str, Any]]:
        """All notes of `note_time`, a variation's only in that variation."""
        notes = [json.loads(self.blobs.get(name)) for name in self.blobs.names("timing")]
        return [note for note in notes if note.get("run", "") == self.name]

    def batch(self, split: str, ids: np.ndarray) -> Batch:
        """The rows on this worker's device."""
        return to_device(self.task.batch(split, ids), self.device)

    def fresh_model(self) -> nn.Module:
        return self.task.model().to(self.device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {k: v.to(device) for k, v in batch.items()} if device.type != "cpu" else batch


def prepare(context: Mapping[str, Any], device: torch.device) -> Session:
    """What a worker holds for as long as it works on one run."""
    return Session(context, device)


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


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Counter-based random numbers for one purpose."""
    return np.random.Generator(np.random.Philox(key=int(digest([seed, purpose])[:16], 16)))


def split_units(outline: Outline, split: str) -> list[Unit]:
    """The data stage's units of one split, in row order; none if the task has data of its own."""
    if not outline.rows_per_unit:
        return []
    ranges = row_ranges(outline.rows[split], outline.rows_per_unit[split])
    return [Unit(DATA, outline.basis[DATA], a, b, {"split": split}) for a, b in ranges]


def _number(attempt: str) -> int:
    head = attempt.split("-", 1)[0]
    return int(head) if head.isdigit() else 1
