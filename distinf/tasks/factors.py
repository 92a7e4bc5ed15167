"""EK-FAC of a trained model over its training rows, in pieces that the units of a run store.

sums    over a range of rows, the Kronecker factors of every layer
bases   the eigenbases of all ranges' sums, added in their order, and the layers' forms
values  over a range of rows, squares of whole gradients in the eigenbases

What is to be predicted is sampled from the model itself, each row's from (seed, its number) alone.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.numerics.curvature import Loss
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


def stored_sums(
    model: nn.Module, layout: Layout, task: Any, seed: int, batches: Batches, kind: Precision
) -> dict[str, np.ndarray]:
    """The first phase, over some rows."""
    total, device = no_factors(model, layout), model.get_parameter(layout.names[0]).device
    for rows, batch in batches:
        with in_a_run(), precision(kind, device):
            total = factor_sums(model, sampled_loss(task, rows, seed), batch, layout, total)
    return _on_the_host(total.arrays)


def stored_bases(
    forms: Mapping[str, Form],
    read: Callable[[str], Iterable[np.ndarray]],
    device: torch.device,
) -> dict[str, np.ndarray]:
    """The second phase, from an array of all units of the first at a time."""
    found: dict[str, Tensor] = {}
    for name in forms:
        for key in (f"inputs.{name}", f"outputs.{name}"):
            total = reduce(np.add, read(key))
            found |= eigenbases(Sums(0, {key: torch.from_numpy(total).to(device)}))
    return _on_the_host(EkFac(forms, found, {}).arrays())


def stored_values(
    model: nn.Module,
    layout: Layout,
    task: Any,
    seed: int,
    batches: Batches,
    kind: Precision,
    bases: Stored,
) -> dict[str, np.ndarray]:
    """The third phase, over some rows."""
    total, device = no_eigenvalues(model, layout), model.get_parameter(layout.names[0]).device
    turned = {key: torch.from_numpy(array).to(device) for key, array in bases.items()}
    for rows, batch in batches:
        loss = sampled_loss(task, rows, seed)
        with in_a_run(), precision(kind, device):
            total = eigenvalue_sums(model, loss, batch, layout, turned, total)
    return _on_the_host(total.arrays)


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
