"""How far apart two gradients or losses are, and how far rounding alone can take them.

A computation on three rows takes other kernels than one on a single row, so equal things differ by
rounding. What is allowed follows from the coarsest arithmetic that takes part, and where that is
exceeded, from what changes of the parameters' last bits do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

Gradients = Mapping[str, Tensor]  # of one row or sum of rows, each parameter's as a vector

ROOTS = 3.0  # relative error that is allowed, in square roots of the epsilon: 1e-3 in float32
FLOOR = 1e-2  # of the whole gradient: a parameter's error is relative to no less
ABSOLUTE, MOST_ABSOLUTE = 100.0, 0.1  # epsilons of a loss that is the difference of larger numbers
AGAIN = 0.05  # of all that, between two calls that are the very same
JITTERS = 16  # a loss at its very minimum can be the same by chance after several
NOISE = 4.0  # a difference of so many times what the last bits do is still rounding


@dataclass(frozen=True)
class Rounding:
    """epsilon: of the coarsest arithmetic that a loss is computed in."""

    epsilon: float

    @property
    def tolerance(self) -> float:
        """Of a gradient, relative."""
        return ROOTS * sqrt(self.epsilon)

    def same(self, first: float, second: float, share: float = 1.0) -> bool:
        """Whether two losses are the same; two that are not finite are."""
        if not (isfinite(first) and isfinite(second)):
            return isfinite(first) == isfinite(second)
        absolute = min(ABSOLUTE * self.epsilon, MOST_ABSOLUTE)
        allowed = self.tolerance * max(abs(first), abs(second)) + absolute
        return abs(first - second) <= share * allowed

    def noise(self, model: nn.Module, wanted: Gradients, again: Callable[[Gradients], Gradients],
              name: str) -> float:  # fmt: skip
        """Relative change of the gradient `wanted[name]` by the parameters' last bits.

        `again(changed parameters)` is the gradient with these. All of it where a row is fitted so
        well that its gradient is rounding, and next to nothing elsewhere.
        """
        generator = torch.Generator().manual_seed(0)
        found = 0.0
        for _ in range(JITTERS):
            changed = {}
            for key, p in model.named_parameters():
                if p.is_floating_point() and (key in wanted or p.dim() < 2):
                    shift = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                    moved = p.detach().double() * (1 + self.epsilon * shift.to(p.device))
                    changed[key] = moved.to(p.dtype)
            found = max(found, difference(again(changed), wanted, [name])[0])
        return found


def rounding_of(model: nn.Module, call: Callable[[], object]) -> Rounding:
    """By the floating types of the parameters and of what modules return while `call` runs."""
    kinds = {
        p.dtype.to_real() for p in model.parameters() if p.is_floating_point() or p.is_complex()
    }

    if any(p.dtype == torch.int8 for p in model.parameters()):
        kinds.add(torch.bfloat16)  # products of 8-bit numbers: as few bits, shared by the batch

    def note(module: nn.Module, given: object, output: object) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        kinds.update(t.dtype for t in tensors if t.is_floating_point())

    handle = register_module_forward_hook(note)
    try:
        call()
    finally:
        handle.remove()
    if torch.float32 in kinds and any(p.is_cuda for p in model.parameters()):
        backends: Any = torch.backends
        switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        if any(switch.fp32_precision != "ieee" for switch in switches):
            kinds.add(torch.float16)  # TF32 has as many bits
    return Rounding(max((torch.finfo(kind).eps for kind in kinds), default=1.2e-7))


def difference(
    found: Gradients, wanted: Gradients, names: list[str] | None = None
) -> tuple[float, str]:
    """(largest relative error of a parameter's gradient, the parameter's name)."""
    least = FLOOR * norm(wanted)
    worst = (0.0, next(iter(wanted)))
    for name in names or wanted:
        kind = torch.promote_types(wanted[name].dtype, torch.float32)
        expected = wanted[name].to(kind)
        other = found[name].to(expected.device, kind)
        error = _length(other - expected)
        scale = max(_length(expected), _length(other), least)
        if not isfinite(error):
            return float("inf"), name
        worst = max(worst, (error / scale if scale else 0.0, name))
    return worst


def norm(grads: Gradients) -> float:
    """Of all parameters' gradients together."""
    return sqrt(sum(_length(g) ** 2 for g in grads.values()))


def _length(values: Tensor) -> float:
    return float(widened(values).norm())


def widened(values: Tensor) -> Tensor:
    """In float64, or complex128."""
    return values.to(torch.promote_types(values.dtype, torch.float64))
