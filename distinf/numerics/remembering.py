"""What was found out about a model and a loss, for as long as the model lives."""

import weakref
from typing import Any

from torch import nn

from distinf.numerics.losses import Loss

_FOUND: "weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[Any, Any]]]" = (
    weakref.WeakKeyDictionary()
)


def remembered(model: nn.Module, loss: Loss) -> dict[Any, Any]:
    """A dictionary to keep what holds for this model and loss.

    A function made anew from the same code over the same objects (a lambda in a loop) is the same.
    """
    losses: dict[Any, dict[Any, Any]] = _FOUND.setdefault(model, {})
    return losses.setdefault(_identity(loss), {})


def _identity(loss: Any) -> Any:
    function = getattr(loss, "__func__", loss)
    code = getattr(function, "__code__", None)
    if code is None:
        return _itself(loss)
    cells = getattr(function, "__closure__", None) or ()
    inside = tuple(_itself(cell.cell_contents) for cell in cells if _filled(cell))
    defaults = _itself((function.__defaults__, function.__kwdefaults__))
    return code, _itself(getattr(loss, "__self__", None)), inside, defaults


class _Itself:
    """Stands for an object while it lives; nothing that takes its place in memory is equal."""

    def __init__(self, it: Any) -> None:
        self._it, self._number = weakref.ref(it), id(it)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        alive = self._it()
        return isinstance(other, _Itself) and alive is not None and alive is other._it()


def _itself(value: Any) -> Any:
    if isinstance(value, int | float | str | None):
        return type(value), value
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_itself, value))
    if isinstance(value, dict):
        return type(value), _itself([*value.items()])
    try:
        return _Itself(value)
    except TypeError:  # it has no weak references, and its number may be another's tomorrow
        return object()


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def makeup(model: nn.Module) -> tuple[Any, ...]:
    """What may change about a model so that it must be looked at again: hooks, forwards of its
    own modules' instances, types and devices."""
    own = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        + len(module._backward_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )  # fmt: skip
    return own, frozenset((p.dtype, p.device) for p in model.parameters())
