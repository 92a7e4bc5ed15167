"""How work is spread: units, the ledger, and two runtimes with the same three verbs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distinf.runtime.agenda import Agenda, Part
    from distinf.runtime.handed import hand_out
    from distinf.runtime.ledger import Ledger
    from distinf.runtime.machine import Node, this_machine
    from distinf.runtime.opening import open_runtime
    from distinf.runtime.protocol import Resources, Runtime, RuntimeSettings, Work
    from distinf.runtime.units import Cost, Lever, Unit, digest

_HOMES = {
    "Agenda": "agenda",
    "Cost": "units",
    "Ledger": "ledger",
    "Lever": "units",
    "Node": "machine",
    "Part": "agenda",
    "Resources": "protocol",
    "Runtime": "protocol",
    "RuntimeSettings": "protocol",
    "Unit": "units",
    "Work": "protocol",
    "digest": "units",
    "hand_out": "handed",
    "open_runtime": "opening",
    "this_machine": "machine",
}

__all__ = [
    "Agenda",
    "Cost",
    "Ledger",
    "Lever",
    "Node",
    "Part",
    "Resources",
    "Runtime",
    "RuntimeSettings",
    "Unit",
    "Work",
    "digest",
    "hand_out",
    "open_runtime",
    "this_machine",
]


def __getattr__(name: str) -> Any:
    """Import what is used: who only looks at a run needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'distinf.runtime' has no attribute {name!r}")
    value = getattr(import_module(f"distinf.runtime.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
