"""EK-FAC of a trained model over its training rows, in pieces that the units of a run store.

sums    over a range of rows, the Kronecker factors of every layer
bases   the eigenbases of all ranges' sums, added in their order, and the layers' forms
values  over a range of rows, squares of whole gradients in the eigenbases

What is to be predicted is sampled from the model itself, each row's from (seed, its number) alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.microbatch import from_the_start
from distinf.numerics.ekfac import EkFac, sampled_labels
from distinf.numerics.kronecker import (
    Form,
    Sums,
    eigenbases,
    eigenvalue_sums,
    factor_sums,
    no_eigenvalues,
    no_factors,
)
from distinf.numerics.losses import Loss
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import Precision, precision
from distinf.tasks.methods import in_a_run
from distinf.tasks.task import Batch

PHASES = ("sums", "bases", "values")
SHARDS = 8  # of the rows: each stores sums of all layers
Batches = Iterable[tuple[np.ndarray, Batch]]  # the rows' numbers, and the rows
Stored = Mapping[str, np.ndarray]


@runtime_checkable
class Classifying(Protocol):
    """A task whose model tells classes apart."""

    def classes(self) -> Sequence[str] | None:
        """Their names, in the order of the probabilities; None where there are none after all."""

    def probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n, classes]: of each row, summing to 1."""


@runtime_checkable
class Sampling(Protocol):
    """A task whose model predicts something else that can be drawn from what it says."""

    def sampled_loss(self, model: nn.Module, batch: Batch, rows: np.ndarray, seed: int) -> Tensor:
        """[n]: the training loss of targets drawn from the model's own outputs, each row's from
        (seed, its number in `rows`) alone."""


def check_sampling(task: Any) -> None:
    """InputError where targets cannot be sampled."""
    if isinstance(task, Sampling) or (isinstance(task, Classifying) and task.classes() is not None):
        return
    raise InputError(
        "EK-FAC samples labels from the model, and this task does not tell its classes' "
        "probabilities(), nor has it a sampled_loss() (distinf/tasks/factors.py); leave ekfac out"
    )


def sampled_loss(task: Any, rows: np.ndarray, seed: int) -> Loss:
    """Of the rows of these numbers: the task's own, or cross-entropy of a sampled class."""
    return partial(_sampled_loss, task, rows, seed)


def _sampled_loss(task: Any, rows: np.ndarray, seed: int, model: nn.Module, batch: Batch) -> Tensor:
    if isinstance(task, Sampling):
        losses = task.sampled_loss(model, batch, rows, seed)
    else:
        chances = task.probabilities(model, batch)
        logs = chances.clamp_min(torch.finfo(chances.dtype).tiny).log()
        labels = sampled_labels(logs, torch.from_numpy(rows), seed)
        losses = -logs.gather(1, labels[:, None])[:, 0]
    if not losses.requires_grad:
        raise InputError(
            "EK-FAC: probabilities() or sampled_loss() has no gradient; compute it from the "
            "model's outputs without torch.no_grad or detach"
        )
    return losses


@dataclass(frozen=True)
class Passes:
    """What a unit's arrays are made of.

    model    the trained model and its layers
    batches  the unit's rows, anew each time; `setting`: that their size goes by
    sums     key -> that array of each unit of the first phase, in order
    bases    what the second phase has stored
    """

    task: Any
    seed: int
    kind: Precision
    device: torch.device
    forms: Mapping[str, Form]
    model: Callable[[], tuple[nn.Module, Layout]]
    batches: Callable[[], Batches]
    setting: str
    sums: Callable[[str], Iterable[np.ndarray]]
    bases: Callable[[], Stored]

    def arrays(self, phase: str) -> dict[str, np.ndarray]:
        """What a unit of that phase stores."""
        if phase == "bases":
            return self._bases()
        model, layout = self.model()
        device = model.get_parameter(layout.names[0]).device
        begin, add = partial(no_factors, model, layout), partial(factor_sums)
        if phase == "values":
            turned = {k: torch.from_numpy(array).to(device) for k, array in self.bases().items()}
            begin = partial(no_eigenvalues, model, layout)
            add = partial(eigenvalue_sums, bases=turned)

        def summed() -> Mapping[str, Tensor]:
            total = begin()
            for rows, batch in self.batches():
                loss = sampled_loss(self.task, rows, self.seed)
                with in_a_run(), precision(self.kind, device):
                    total = add(model, loss, batch, layout, onto=total)
            return total.arrays

        return _on_the_host(from_the_start(summed, self.setting))

    def _bases(self) -> dict[str, np.ndarray]:
        """From an array of all units of the first phase at a time."""
        found: dict[str, Tensor] = {}
        for name in self.forms:
            for key in (f"inputs.{name}", f"outputs.{name}"):
                total = torch.from_numpy(reduce(np.add, self.sums(key))).to(self.device)
                found |= eigenbases(Sums(0, {key: total}))
        return _on_the_host(EkFac(self.forms, found, {}).arrays())


def ekfac_of(bases: Stored, parts: Iterable[Stored], rows: int) -> EkFac:
    """What the phases have stored of `rows` rows, on the CPU."""
    arrays = {key: torch.from_numpy(array) for key, array in bases.items()}
    for part in parts:
        for key, array in part.items():
            mean = torch.from_numpy(array) / rows
            arrays[key] = arrays[key] + mean if key in arrays else mean
    return EkFac.from_arrays(arrays)


def _on_the_host(arrays: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {key: array.cpu().numpy() for key, array in arrays.items()}


def squares(forms: Mapping[str, Form], power: int = 2) -> float:
    """Entries of all factors; with power 3, what decomposing them goes by."""
    sides = [(form.groups, side) for form in forms.values() for side in (form.inputs, form.outputs)]
    return float(sum(groups * side**power for groups, side in sides))


def rotations(forms: Mapping[str, Form]) -> float:
    """FLOPs of one row's gradient in the eigenbases."""
    return float(
        sum(2 * f.groups * f.outputs * f.inputs * (f.outputs + f.inputs) for f in forms.values())
    )
