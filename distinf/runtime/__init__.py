"""How work is spread: units, the ledger, and two runtimes with the same three verbs."""

from typing import TYPE_CHECKING

from distinf.digest import digest
from distinf.lazily import from_homes

if TYPE_CHECKING:
    from distinf.runtime.agenda import Agenda, Part
    from distinf.runtime.handed import hand_out
    from distinf.runtime.ledger import Ledger
    from distinf.runtime.machine import Node, this_machine
    from distinf.runtime.opening import open_runtime
    from distinf.runtime.protocol import Resources, Runtime, RuntimeSettings, Work
    from distinf.runtime.units import Cost, Lever, Unit, in_gradients

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
    "hand_out": "handed",
    "in_gradients": "units",
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
    "in_gradients",
    "open_runtime",
    "this_machine",
]


__getattr__ = from_homes(__name__, _HOMES)  # who only looks at a run needs no torch
