"""Which settings make a run fit: those that refusals name, followed until nothing is refused."""

from collections.abc import Callable, Mapping
from typing import Any

from distinf.errors import InputError
from distinf.planning.expected import Plan
from distinf.planning.room import Overfull

ROUNDS = 20  # settings changed one after another


def fitted(plan_with: Callable[[Mapping[str, Any]], Plan]) -> tuple[Plan, dict[str, Any]]:
    """The plan of the first run that fits, and the settings changed for it, by dotted key.

    `plan_with` plans with such changes. Raises InputError where nothing that can be lowered is
    enough.
    """
    changes: dict[str, Any] = {}
    for _ in range(ROUNDS):
        try:
            return plan_with(changes), changes
        except Overfull as error:
            ways = [way for way in error.ways if way.items() - changes.items()]
            if not ways:
                raise InputError(f"--fit: nothing fits: {error}") from None
            changes |= ways[0]
    raise InputError(f"--fit: nothing fits after {ROUNDS} changes: {changes}")
