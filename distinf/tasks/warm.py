"""What a process keeps between units, cells and runs because it takes long to make: weights."""

from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")
_KEPT: dict[Any, Any] = {}


def kept(key: Any, make: Callable[[], Made]) -> Made:
    """What was made for `key`; the last alone is kept, and let go before the next is made."""
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = make()
    found: Made = _KEPT[key]
    return found


def let_go() -> None:
    """For a process that computes nothing more itself."""
    _KEPT.clear()
