"""What a process keeps between units, cells and runs because it takes long to make: weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Made = TypeVar("Made")
_KEPT: dict[Any, Any] = {}
_LOOKING: list[None] = []


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


@contextmanager
def looking() -> Iterator[None]:
    """Models that are made meanwhile are tried out and not trained: see `is_looking`."""
    _LOOKING.append(None)
    try:
        yield
    finally:
        _LOOKING.pop()


def is_looking() -> bool:
    """Whether a model that is made now may share all of its weights with what is kept."""
    return bool(_LOOKING)
