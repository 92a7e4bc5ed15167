"""What is done with the uses of watched layers: a sink receives them, one by one.

The watcher (layer_uses.py) hands over the input of each use of a layer with the gradient of its
output, as soon as that is known. A sink makes of it what it is for and lets go of the rest, so that
a pass never holds more than the sink keeps. The sums that EK-FAC is made of are another sink's
(kronecker.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distinf.numerics.layer_gradients import Outer, layer_gradient, narrowed, rules_of
from distinf.numerics.sparse import SparseRows

Names = Mapping[str, str]  # a layer's own name of a wanted parameter -> the layout's
Receive = Callable[[str, Tensor | SparseRows], None]  # a parameter's name and [N, entries]


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a layer, N samples along dim 0 of both tensors.

    given: what the sink kept of the input. grad: of the summed losses with respect to the output.
    waiting: those of the layer's parameters that have further uses to come, here or elsewhere.
    """

    module: nn.Module
    names: Names
    given: Tensor
    grad: Tensor
    waiting: set[str]


class Sink(Protocol):
    """Receives the uses of one pass over a batch, in the order of the backward pass."""

    def keep(self, module: nn.Module, names: Names, given: Tensor) -> Tensor:
        """What to keep of a layer's input until the gradient of its output arrives."""
        ...

    def receive(self, use: Use) -> None:
        """A use whose output's gradient has arrived."""
        ...

    def finish(self) -> None:
        """No further use comes, also none of those waited for: the loss does not depend on them."""
        ...


class RowGradients:
    """Hands each parameter's per-sample gradients on, once, when all its uses are added up.

    They are Tensors [N, entries], SparseRows of an embedding, in float32 at least.
    """

    def __init__(self, receive: Receive) -> None:
        self._hand_on = receive
        self._partial: dict[str, Any] = {}

    def keep(self, module: nn.Module, names: Names, given: Tensor) -> Tensor:
        """All of it."""
        return given

    def receive(self, use: Use) -> None:
        """Hand on what has no further use."""
        for local, name in use.names.items():
            grads = self._gradient(use, local, name)
            kind = torch.promote_types(use.module.get_parameter(local).dtype, torch.float32)
            grads = grads.to(kind)
            if name in self._partial:
                grads = self._partial.pop(name) + grads
            if name in use.waiting:
                self._partial[name] = grads
            else:
                self._hand_on(name, grads)

    def finish(self) -> None:
        """Hand on what still waits."""
        for name, grads in self._partial.items():
            self._hand_on(name, grads)

    def _gradient(self, use: Use, local: str, name: str) -> Tensor | SparseRows:
        return layer_gradient(rules_of(use.module)[local], use.module, use.given, use.grad)


class ProjectedRowGradients(RowGradients):
    """The same, but of the weights in `factors` left G right, [N, p * p]; G is never formed.

    factors: of a weight's rows [O, p] and columns [I, p], by its name; its rule must be Outer.
    """

    def __init__(self, receive: Receive, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(receive)
        self._factors = factors

    def keep(self, module: nn.Module, names: Names, given: Tensor) -> Tensor:
        """The input's projection where that is all that is needed."""
        for local, name in names.items():
            if name in self._factors:
                return narrowed(given, self._sides(module, local, name)[0])
        return given

    def _gradient(self, use: Use, local: str, name: str) -> Tensor | SparseRows:
        if name in self._factors:
            rule, module = rules_of(use.module)[local], use.module
            grad = narrowed(use.grad, self._sides(module, local, name)[1])
            return layer_gradient(rule, module, use.given, grad)
        return super()._gradient(use, local, name)

    def _sides(self, module: nn.Module, local: str, name: str) -> tuple[Tensor, Tensor]:
        rule = rules_of(module)[local]
        assert isinstance(rule, Outer)
        return rule.sides(*self._factors[name])
