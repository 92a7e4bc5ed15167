"""How work is spread: units, the ledger, and two runtimes with the same three verbs."""

from distinf.runtime.ledger import Ledger
from distinf.runtime.machine import Node, this_machine
from distinf.runtime.opening import open_runtime
from distinf.runtime.protocol import Resources, Runtime, RuntimeSettings, Work
from distinf.runtime.units import Cost, Lever, Unit, digest

__all__ = [
    "Cost",
    "Ledger",
    "Lever",
    "Node",
    "Resources",
    "Runtime",
    "RuntimeSettings",
    "Unit",
    "Work",
    "digest",
    "open_runtime",
    "this_machine",
]
