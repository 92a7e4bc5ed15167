"""A run of the Gram recipe as one process sees it."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from torch import nn

from distinf.collective import Collective
from distinf.engine import session as engine_session
from distinf.engine.stage import Keys
from distinf.errors import InputError
from distinf.gram.blocks import Blocks, blocks_of, groups_of
from distinf.gram.settings import EKFAC, GradientSettings, StageSettings
from distinf.gram.task import OfTexts, Prepared, Trainable
from distinf.numerics.checkpointing import layers_alike
from distinf.numerics.hooks import known_layers
from distinf.numerics.kronecker import Form, forms_of
from distinf.numerics.layer_uses import wanted_layers
from distinf.numerics.parameters import Layout
from distinf.runtime import Cost, Runtime, Unit
from distinf.tasks.identity import rows_of
from distinf.tasks.methods import in_a_run, method_by_layers
from distinf.tasks.rehearsal import checked_shapes, skeleton_of
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import Batch, Task

DATA = "data"
TRAIN, QUERY = "train", "evaluation"  # the task's splits, as this recipe uses them


@dataclass(frozen=True)
class Cell:
    """A dataset and seed: all that the list of its units depends on."""

    name: str
    keys: Keys
    asked_keys: Keys  # of what depends on the queries
    row_keys: Keys  # of what depends on the training rows, or candidates, alone
    rows: Mapping[str, int]
    shapes: Shapes
    blocks: Blocks
    groups: Mapping[str, tuple[str, ...]]
    forms: Mapping[str, Form]  # of weights with Kronecker factors, if they are asked for
    prepared: bool  # its rows are made in the data stage
    trained: bool  # it is trained, and can be trained again
    of_texts: bool = False  # of which there are baselines
    frozen: tuple[float, float] = (0.0, 0.0)  # of the model, its frozen layers, and the largest one
    quantised: bool = False  # its frozen weights

    @property
    def stored(self) -> float:
        """Bytes of its rows; 0 where they are the task's own."""
        return sum(n * self.shapes.row_bytes.get(split, 0.0) for split, n in self.rows.items())

    @property
    def loaded(self) -> dict[str, float]:
        """Cost.loaded: the model as it starts, the same for all cells, and its own rows."""
        return {"model": self.shapes.model_bytes, f"rows of {self.name}": self.stored}


@dataclass(frozen=True)
class Outline:
    """All that the list of units depends on."""

    settings: StageSettings
    keys: Keys  # of the report
    cells: Mapping[str, Cell]
    ranking: str = ""  # estimator/group, of candidates


class Session(engine_session.Session):
    """Opens nothing before it is asked."""

    sharing = Collective()  # the ranks that its model is spread over

    @cached_property
    def settings(self) -> StageSettings:
        """With the method of gradients that the layers allow, until one is chosen."""
        found = TypeAdapter(StageSettings).validate_python(self.context["settings"])
        if found.gradients.method is not None:
            return found
        asked = found.gradients
        only_hooks = bool(asked.embeddings or asked.projection)
        model = skeleton_of(next(iter(self.tasks.values())))
        method = method_by_layers(model, layout_of(model, asked), only_hooks=only_hooks)
        return replace(found, gradients=replace(asked, method=method))

    def task(self, cell: str) -> Task:
        """A cell's task; its rows come from the run once they are committed."""
        task = self.tasks[cell]
        if isinstance(task, Prepared) and ("attached", cell) not in self._cache:
            unit = data_unit(cell, self.asked_keys(self.cell_keys(cell)))
            if self.ledger(DATA).get(unit) is not None:
                task.attach(self.arrays(unit))
                self._cache["attached", cell] = True
        return task

    def task_of(self, cell: str) -> Task:
        return self.task(cell)

    def cell_keys(self, cell: str) -> Keys:
        found: Keys = self.context["keys"][cell]
        return found

    @property
    def outline(self) -> Outline:
        """Rows are as planned until the data stage is done, and as found afterwards."""
        cells = {name: self.cell(name) for name in self.tasks}
        return Outline(self.settings, self.keys, cells, self.context.get("ranking", ""))

    def cell(self, name: str) -> Cell:
        """As planned until its rows are attached, then as found."""
        task = self.task(name)
        settled = not isinstance(task, Prepared) or ("attached", name) in self._cache
        return self.cached(("cell", name, settled), lambda: self._cell(name, task))

    def _cell(self, name: str, task: Task) -> Cell:
        model, keys = skeleton_of(task), self.cell_keys(name)
        blocks = self._blocks(model)
        asked_keys = self.asked_keys(keys)
        splits = (TRAIN,) if self.of_candidates else (TRAIN, QUERY)
        return Cell(
            name=name,
            keys=keys,
            asked_keys=asked_keys,
            row_keys=asked_keys if self.of_candidates else keys,
            rows={split: rows_of(task, split) for split in splits},
            shapes=checked_shapes(task),
            blocks=blocks,
            groups=groups_of(blocks, self.settings.scores),
            forms=self._forms(model),
            prepared=isinstance(task, Prepared),
            trained=isinstance(task, Trainable),
            of_texts=isinstance(task, OfTexts) and task.classes() is not None,
            frozen=frozen_layers(model, layout_of(model, self.settings.gradients)),
            quantised=bool(getattr(model, "is_quantized", False)),
        )

    def _blocks(self, model: nn.Module) -> Blocks:
        settings = self.settings.gradients
        layout = layout_of(model, settings)
        if settings.method == "hooks":
            with in_a_run():
                known_layers(model, layout)
        return _blocks_of_model(model, layout, settings)

    def _forms(self, model: nn.Module) -> dict[str, Form]:
        settings = self.settings.gradients
        if EKFAC not in self.settings.scores.estimators or settings.method != "hooks":
            return {}
        return forms_of(wanted_layers(model, layers_of(model, settings)))

    def batch(self, cell: str, split: str, ids: np.ndarray) -> Batch:
        """The rows on this worker's device."""
        return self.read(self.task(cell), split, ids)

    def kept_model(self) -> nn.Module | None:
        slot = self._cache.get(("latest", "model"))
        return slot[1] if slot else None


def layout_of(model: nn.Module, settings: Any) -> Layout:
    """The parameters whose gradients are taken: trained ones, and the embedding if asked for."""
    layout = Layout.of(model, settings.blocks, embeddings=settings.embeddings)
    if not settings.exclude:
        return layout
    try:
        kept = _among(layout, lambda name: not re.search(settings.exclude, name))
    except re.error as error:
        raise InputError(f"gradients.exclude: not a regex: {error}") from None
    if not kept.names:
        raise InputError(f"gradients.exclude: '{settings.exclude}' leaves no block")
    return kept


def own_parameters(model: nn.Module, layout: Layout) -> set[nn.Parameter]:
    """Those that are trained, or whose gradients are taken; the others are frozen."""
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    return trained | {model.get_parameter(name) for name in layout.names}


def frozen_layers(model: nn.Module, layout: Layout) -> tuple[float, float]:
    """Shares of the model's parameters: those frozen in its list of layers, and in the largest of
    these; none where they are quantised."""
    own = own_parameters(model, layout)
    sizes = [
        sum(parameter.numel() for parameter in layer.parameters() if parameter not in own)
        for layer in layers_alike(model)
        if not getattr(model, "is_quantized", False)
    ]
    every = sum(parameter.numel() for parameter in model.parameters())
    return sum(sizes) / every, max(sizes, default=0) / every


def layers_of(model: nn.Module, settings: GradientSettings) -> Layout:
    """The same without embeddings."""
    layout = layout_of(model, settings)
    words = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return _among(layout, lambda name: id(model.get_parameter(name)) not in words)


def _among(layout: Layout, wanted: Callable[[str], Any]) -> Layout:
    named = zip(layout.names, layout.shapes, strict=True)
    kept = [(name, shape) for name, shape in named if wanted(name)]
    return Layout(tuple(name for name, _ in kept), tuple(shape for _, shape in kept))


def _blocks_of_model(model: nn.Module, layout: Layout, settings: Any) -> Blocks:
    owners = {
        f"{path}.{local}" if path else local: module
        for path, module in model.named_modules()
        for local, _ in module.named_parameters(recurse=False)
    }
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    words = [name for name in shapes if isinstance(owners.get(name), nn.Embedding)]
    dense_words: list[str] = []
    if settings.method != "hooks":  # which alone take an embedding's gradients as sparse rows
        words, dense_words = [], words
    if len(words) > 1:
        raise InputError(
            f"gradients: {len(words)} embeddings are among the blocks ({', '.join(words[:3])}); "
            "leave all but one out by gradients.exclude, or --set gradients.method=loop"
        )
    dense = {name: shape for name, shape in shapes.items() if name not in words}
    linear = [n for n, s in dense.items() if len(s) == 2 and n.endswith("weight")]
    trained = bool(words) and model.get_parameter(words[0]).requires_grad
    word = (words[0], shapes[words[0]], trained) if words else None
    return blocks_of(dense, settings, word, linear, dense_words)


def data_unit(cell: str, keys: Keys) -> Unit:
    """The unit that makes a cell's rows."""
    return Unit(DATA, keys[DATA], job={"cell": cell})


def units_of_cells(
    outline: Outline,
    units: Callable[[StageSettings, Cell], Sequence[Unit]],
    cost: Callable[[Outline, Cell, Unit], Cost],
) -> list[tuple[Unit, Cost]]:
    """Every cell's units, each with what it takes."""
    return [
        (unit, cost(outline, cell, unit))
        for cell in outline.cells.values()
        for unit in units(outline.settings, cell)
    ]


def pool_phases(
    session: Session,
    runtime: Runtime,
    stage: str,
    phases: Iterable[str],
    units: Callable[[StageSettings, Cell, str], Sequence[Unit]],
) -> None:
    """Every cell's units of a phase, then of the next, which needs all of it."""
    work, ledger = session.work(f"distinf.gram.{stage}:body"), session.ledger(stage)
    for phase in phases:
        cells = session.outline.cells.values()
        wanted = [unit for cell in cells for unit in units(session.settings, cell, phase)]
        if wanted:
            runtime.pool(work, wanted, ledger)
