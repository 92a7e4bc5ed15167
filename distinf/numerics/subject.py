"""What per-sample gradients are taken of, one row at a time and together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distinf.numerics.batches import Batch, copied, rows, take
from distinf.numerics.batches import leaves as leaves_of
from distinf.numerics.losses import Loss, evaluating, sample_losses
from distinf.numerics.own_parameters import gradients_by, requiring_grad
from distinf.numerics.parameters import Layout
from distinf.numerics.projection import TwoSided
from distinf.numerics.rounding import Gradients, Rounding, rounding_of
from distinf.numerics.sparse import SparseRows

ROWS = 3
Taken = Mapping[str, Tensor | SparseRows]  # by parameter, [n, entries]


class Alone(NamedTuple):
    """What a row has by itself: its place in the batch, loss and gradient."""

    place: int
    value: float
    grads: Gradients

    @property
    def finite(self) -> bool:
        return isfinite(self.value) and all(bool(g.isfinite().all()) for g in self.grads.values())


@dataclass(frozen=True)
class Subject:
    """What is differentiated, on a few of a batch's rows. gradients(method, batch): those to be
    checked.

    numbers: which rows of the whole batch these are. chunk: rows that one pass will have.
    project: what makes the gradients of `projected` smaller.
    """

    model: nn.Module
    loss: Loss
    batch: Batch
    numbers: Sequence[int]
    layout: Layout
    gradients: Callable[[str, Batch], Taken]
    chunk: int = 32
    project: TwoSided | None = None
    projected: frozenset[str] = frozenset()

    @cached_property
    def rounding(self) -> Rounding:
        return rounding_of(self.model, lambda: self.whole)

    @property
    def together(self) -> int:
        """How many rows a pass has."""
        return min(rows(self.batch), self.chunk)

    @property
    def told(self) -> int:
        """How many rows at once the check has told of: one where none differs, or is finite."""
        alike = all(_alike(leaf, self.together) for _, leaf in leaves_of(self.batch))
        finite = sum(map(isfinite, self.whole)) if self.whole else self.together
        return min(finite, 1) if alike or finite < 2 else self.together

    @cached_property
    def whole(self) -> list[float]:
        """The rows' losses; none where they cannot be had together."""
        with suppress(Exception):  # it is told where one row, or the method, fails as well
            return self.values(range(rows(self.batch)))
        return []

    def group(self, places: Sequence[int]) -> Batch:
        """These rows, as copies: a loss may change them in place."""
        return copied(take(self.batch, list(places)))

    def values(self, places: Sequence[int]) -> list[float]:
        """Their losses, together; not under no_grad, as a loss may differentiate by its inputs."""
        batch = self.group(places)
        with evaluating(self.model), torch.enable_grad():
            values = sample_losses(self.model, self.loss, batch)
        return values.detach().tolist()

    def differentiated(
        self, places: Sequence[int], weights: Sequence[float], changed: Gradients | None = None
    ) -> tuple[list[float], Gradients]:
        """Their losses and the gradient of these, weighted and summed, by autograd alone."""
        batch = self.group(places)
        with (
            evaluating(self.model), self._holding(changed or {}), torch.enable_grad(),
            requiring_grad(self.model, self.layout.names) as own,
        ):  # fmt: skip
            values = sample_losses(self.model, self.loss, batch)
            grads = gradients_by(own, (values * values.new_tensor(weights)).sum())
        found = {
            name: self._as_taken(name, torch.zeros_like(own[name]) if g is None else g)
            for name, g in grads.items()
        }
        return values.detach().tolist(), found

    @contextmanager
    def _holding(self, changed: Gradients) -> Iterator[None]:
        """The model's parameters with other values meanwhile, wherever they are reached from."""
        held = {name: self.model.get_parameter(name) for name in changed}
        before = {name: p.data for name, p in held.items()}
        try:
            for name, p in held.items():
                p.data = changed[name]
            yield
        finally:
            for name, p in held.items():
                p.data = before[name]

    def _as_taken(self, name: str, grad: Tensor) -> Tensor:
        if name in self.projected and self.project is not None:
            left, right = self.project.factors(name, tuple(grad.shape), grad.device)
            grad = left @ grad.float() @ right
        return grad.reshape(-1)


def _alike(leaf: Any, count: int) -> bool:
    """Whether the first `count` rows of a tensor, or list of texts, are all the same."""
    if isinstance(leaf, Tensor):
        return bool((leaf[:count] == leaf[:1]).all())
    return len(set(leaf[:count])) < 2
