"""A model's own parameters in autograd's graph: gradients by them, and who reaches them how.

What puts other tensors in a parameter's place (torch.func's functional_call) misses every use that
does not look it up in its module: one from a list, a closure, or something made of it before.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.utils._pytree import tree_leaves

from distinf.errors import InputError

Parameters = dict[str, Tensor]


def gradients_by(own: Parameters, total: Tensor) -> dict[str, Tensor | None]:
    """Dense gradients of `total`; None for a parameter that it does not depend on."""
    there = {name: p for name, p in own.items() if total.requires_grad and p.requires_grad}
    found = torch.autograd.grad(total, [*there.values()], allow_unused=True) if there else ()
    dense = (g if g is None else g.detach().to_dense() for g in found)
    return dict.fromkeys(own) | dict(zip(there, dense, strict=True))


@contextmanager
def requiring_grad(model: nn.Module, names: Iterable[str]) -> Iterator[Parameters]:
    """The model's own parameters of these names, which all require grad meanwhile."""
    own: Parameters = {name: model.get_parameter(name) for name in names}
    flags = [(p, p.requires_grad) for p in own.values()]
    try:
        for p in own.values():
            p.requires_grad_()
        yield own
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def refuse_reached_otherwise(model: nn.Module, names: Iterable[str], found: Any) -> None:
    """InputError where something depends on a parameter in whose place another tensor was."""
    own = {id(model.get_parameter(name)): name for name in names}
    for out in tree_leaves(found):
        while isinstance(out, Tensor) and is_functorch_wrapped_tensor(out):
            out = get_unwrapped(out)
        for leaf in graph_leaves(out) if isinstance(out, Tensor) else ():
            if id(leaf) in own:
                raise InputError(
                    f"parameter {own[id(leaf)]!r} is reached otherwise than as its layer's own (it "
                    "is kept in a list, a closure, or as something made of it before), where no "
                    "other value can take its place: look it up in the model at each call"
                )


def graph_leaves(total: Tensor) -> list[Tensor]:
    """All that the graph of `total` begins at, whoever made it require grad."""
    found, waiting, seen = [], [total.grad_fn], {total.grad_fn}
    while waiting:
        node = waiting.pop()
        if type(node).__name__ == "AccumulateGrad":
            found.append(node.variable)  # type: ignore[union-attr]
        for after, _ in node.next_functions if node else ():
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)
    return found
