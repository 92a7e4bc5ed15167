"""A run of the basis route as one process sees it, and what each stage's results depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from distinf.engine import session as stages_session
from distinf.engine.session import row_ranges
from distinf.naming import CONFIG
from distinf.numerics.parameters import Layout
from distinf.runtime import Unit, digest
from distinf.spectral.settings import StageSettings
from distinf.store import CachedRows, Rows
from distinf.tasks.checkpoint import content_digest
from distinf.tasks.identity import rows_of, stated
from distinf.tasks.methods import method_by_layers
from distinf.tasks.rehearsal import checked_shapes
from distinf.tasks.task import (
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
    name: str,
    task_settings: Mapping[str, Any],
    task: Task,
    seed: int,
    settings: StageSettings,
    run: Mapping[str, Any] | None = None,
) -> tuple[dict[str, str], Mapping[str, Any]]:
    """Digest chain: each stage's basis covers its own settings and what it reads from.

    What cannot change a result is left out (cache sizes, checkpoint intervals), and so is what a
    unit's own id already says (how many seeds, which selections): asking for more keeps the rest.
    The second is in which evaluation the targets are chosen: that of the `run` whose variation this
    is, if both have the same rows and settings of targets.
    """
    per_unit = (
        {split: task.rows_per_unit(split) for split in SPLITS}
        if isinstance(task, GeneratingTask)
        else {}
    )
    identity = stated(task)
    found: dict[str, str] = {}
    s = asdict(settings)
    refine = {k: s["curvature"].pop(k) for k in list(s["curvature"]) if k.startswith("refine")}
    data = {k: v for k, v in s["data"].items() if k != "cache_mb"}
    train = {k: v for k, v in s["train"].items() if k != "checkpoint_every"}
    if train["checkpoint"]:  # what is in the file counts, not where it lies
        train["checkpoint"] = content_digest(train["checkpoint"])
    rows = {split: rows_of(task, split) for split in SPLITS}
    rows_from = identity.get("data") or dict(task_settings)
    found["data"] = digest([task_path(name), seed, rows_from, rows, per_unit, data])
    found["train"] = digest(
        [found["data"], dict(task_settings), identity, list(task.losses), train]
    )
    found["evaluate"] = digest([found["train"], s["evaluate"]])
    found["curvature"] = digest([found["train"], s["curvature"]])
    chosen_in = {
        "evaluate": found["evaluate"],
        "rows_per_unit": settings.evaluate.rows_per_unit,
        "choice": digest([found["data"], s["targets"]]),
    }
    if run and run["choice"] == chosen_in["choice"]:
        chosen_in = dict(run)
    targets = [chosen_in["evaluate"], chosen_in["choice"]]
    operator = [s["scores"][k] for k in ("damping", "negative", "complement")]
    solved = [refine, *operator] if refine["refine"] else []
    s["gradients"].pop("check")  # it changes no number
    method = s["gradients"]["method"]
    found["queries"] = digest([found["evaluate"], found["curvature"], targets, solved, method])
    found["gradients"] = digest([found["queries"], s["gradients"]])
    found["scores"] = digest([found["gradients"], s["scores"]])
    passes = {k: s["gradients"][k] for k in ("chunk", "method", "precision")}
    found["trajectory"] = digest([found["evaluate"], targets, passes, s["curvature"]["blocks"]])
    # Which checkpoints TracIn sums over: their units name them one by one.
    chosen = [s["trajectory"], s["train"]["checkpoint_every"]]
    found["tracin"] = digest([found["trajectory"], chosen])
    headline = {k: s["actions"][k] for k in ("loss", "variant")}
    summed = found["tracin"] if headline["variant"] == "tracin" else ""
    found["attribution"] = digest(
        [found["scores"], s["attribution"]["rows"], s["gradients"]["chunk"], headline, summed]
    )
    measured = [s["actions"][k] for k in ("non_targets", "guard", "fresh_draws")]
    found["actions"] = digest([found["scores"], s["evaluate"], measured])
    read = [found[name] for name in ("actions", "tracin", "attribution")]
    found["report"] = digest([read, s["actions"], s["attribution"], s["report"]])
    return found, chosen_in


class Session(stages_session.Session):
    """Opens nothing before it is asked."""

    PREPARE = "distinf.spectral.session:prepare"
    ROUTE = "basis"

    @cached_property
    def settings(self) -> StageSettings:
        """With the method of gradients that the layers allow, until one is chosen."""
        found = TypeAdapter(StageSettings).validate_python(self.context["settings"])
        if found.gradients.method is not None:
            return found
        with telling("model()"):
            model = build_task(
                self.context["task"], self.context["task_settings"], self.seed
            ).model()
        method = method_by_layers(model, Layout.of(model, found.curvature.blocks))
        return replace(found, gradients=replace(found.gradients, method=method))

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
        return Outline(
            settings=self.settings,
            basis=self.basis,
            rows={split: rows_of(task, split) for split in SPLITS},
            rows_per_unit=per_unit,
            losses=list(task.losses),
            shapes=checked_shapes(task),
        )

    def batch(self, split: str, ids: np.ndarray) -> Batch:
        """The rows on this worker's device."""
        return self.read(self.task, split, ids)

    def kept_model(self) -> nn.Module | None:
        found: nn.Module | None = self._cache.get("trained")
        return found

    def built(self) -> Mapping[str, Task]:
        return {"": self.task}

    def fresh_model(self) -> nn.Module:
        return self.model_of(self.task).to(self.device)


def prepare(context: Mapping[str, Any], device: torch.device) -> Session:
    """What a worker holds for as long as it works on one run."""
    session = Session(context, device)
    session.blobs.require(CONFIG)
    session.refuse_other_data()
    return session


def split_units(outline: Outline, split: str) -> list[Unit]:
    """The data stage's units of one split, in row order; none if the task has data of its own."""
    if not outline.rows_per_unit:
        return []
    ranges = row_ranges(outline.rows[split], outline.rows_per_unit[split])
    return [Unit(DATA, outline.basis[DATA], a, b, {"split": split}) for a, b in ranges]
