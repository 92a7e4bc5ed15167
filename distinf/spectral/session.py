"""A run of the spectral recipe as one process sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from pydantic import TypeAdapter
from torch import nn

from distinf.engine import session as engine_session
from distinf.engine.session import row_ranges
from distinf.engine.stage import WHOLE, Keys
from distinf.numerics.kronecker import Form, forms_of
from distinf.numerics.layer_uses import wanted_layers
from distinf.numerics.parameters import Layout
from distinf.runtime import Lever, Unit
from distinf.spectral.settings import StageSettings
from distinf.store import CachedRows, Rows
from distinf.tasks.identity import rows_of
from distinf.tasks.methods import method_by_layers
from distinf.tasks.rehearsal import checked_shapes, skeleton_of
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import SPLITS, Batch, GeneratingTask, StoredTask, Task, build_task

DATA = "data"
OF_TARGETS = ("evaluate", "targets", "queries", "gradients", "scores")  # by evaluation rows


@dataclass(frozen=True)
class Outline:
    """All that the list of units depends on: no data, no device."""

    settings: StageSettings
    keys: Keys
    data_keys: Mapping[str, str]  # by split; of candidates there is train alone
    rows: Mapping[str, int]
    rows_per_unit: Mapping[str, int]  # of a generating task; empty for one with its own data
    losses: Sequence[str]
    shapes: Shapes
    entries: int  # of a direction: of the parameters that the curvature is of
    forms: Mapping[str, Form]  # of weights with Kronecker factors, if they are asked for

    @property
    def training_rows(self) -> int:
        """How many rows of the training split, from the first on, the model is trained on."""
        return min(self.settings.train.rows or self.rows["train"], self.rows["train"])

    @property
    def vector(self) -> float:
        """Bytes of a direction."""
        return 4.0 * self.entries

    @property
    def state(self) -> dict[str, float]:
        """What a training step holds: the weights, two moments of those trained."""
        return {"weights": self.shapes.model_bytes, "optimizer": 8.0 * self.shapes.tuned}

    @property
    def stored(self) -> float:
        """Bytes of a checkpoint: of what is trained, and two moments."""
        return 12.0 * self.shapes.tuned

    @property
    def loaded(self) -> dict[str, float]:
        """Cost.loaded of the trained model, which is stored with its moments."""
        stored = self.stored if self.settings.train.steps else 0.0
        made = 0.0 if stored and self.shapes.tuned == self.shapes.parameters else 1.0
        return {"model": stored + made * self.shapes.model_bytes}


class Session(engine_session.Session):
    """Opens nothing before it is asked."""

    @cached_property
    def settings(self) -> StageSettings:
        """With the method of gradients that the layers allow, until one is chosen."""
        found = TypeAdapter(StageSettings).validate_python(self.context["settings"])
        if found.gradients.method is not None:
            return found
        task = build_task(self.context["task"], self.context["task_settings"], self.seed)
        model = skeleton_of(task)
        method = method_by_layers(model, Layout.of(model, found.curvature.blocks))
        return replace(found, gradients=replace(found.gradients, method=method))

    @cached_property
    def task(self) -> Task:
        """The task, its generated or imported rows attached; they are read on first use."""
        task = self.tasks[WHOLE]
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
        task, asked = self.task, self.asked_keys(self.keys)
        per_unit = (
            {split: task.rows_per_unit(split) for split in SPLITS}
            if isinstance(task, GeneratingTask)
            else {}
        )
        data_keys = {"train": self.keys[DATA], "evaluation": asked[DATA]}
        if self.of_candidates:
            data_keys = {"train": asked[DATA]}
        return Outline(
            settings=self.settings,
            keys={**self.keys, **{name: asked[name] for name in OF_TARGETS}},
            data_keys=data_keys,
            rows={split: rows_of(task, split) for split in data_keys},
            rows_per_unit=per_unit,
            losses=list(task.losses),
            shapes=checked_shapes(task),
            entries=self._entries(task),
            forms=self._forms(task),
        )

    def _entries(self, task: Task) -> int:
        shapes, blocks = checked_shapes(task), self.settings.curvature.blocks
        if blocks == "all":
            return shapes.tuned
        return Layout.of(skeleton_of(task), blocks).size

    def _forms(self, task: Task) -> dict[str, Form]:
        if not self.settings.scores.ekfac or self.settings.gradients.method != "hooks":
            return {}
        model = skeleton_of(task)
        return forms_of(wanted_layers(model, Layout.of(model, self.settings.curvature.blocks)))

    def batch(self, split: str, ids: np.ndarray) -> Batch:
        """The rows on this worker's device."""
        return self.read(self.task, split, ids)

    def kept_model(self) -> nn.Module | None:
        found: nn.Module | None = self._cache.get("trained")
        return found

    def kept_rows(self) -> tuple[Lever, ...]:
        """Splits up to data.cache_mb; below a split's size it is not kept at all."""
        rows, per_row = self.outline.rows, self.outline.shapes.row_bytes
        sizes = {split: count * per_row.get(split, 0.0) for split, count in rows.items()}
        kept = [sizes[split] for split in sizes if sizes[split] and self._fits_in_memory(split)]
        return tuple(
            Lever("data.cache_mb", size / 2**20, size, least=0.0, where="host") for size in kept
        )

    def fresh_model(self) -> nn.Module:
        """The model as it starts, on this worker's device, where a quantised one is already."""
        model = self.model_of(self.task)
        return model if getattr(model, "is_quantized", False) else model.to(self.device)


def split_units(outline: Outline, split: str) -> list[Unit]:
    """The data stage's units of one split, in row order; none if the task has data of its own."""
    if not outline.rows_per_unit:
        return []
    ranges = row_ranges(outline.rows[split], outline.rows_per_unit[split])
    return [Unit(DATA, outline.data_keys[split], a, b, {"split": split}) for a, b in ranges]
