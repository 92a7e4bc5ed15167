"""A hook for `ray start` (RAY_START_HOOK): a node whose servers listen on 127.0.0.1 alone.

Ray replaces a node address of 127.0.0.1 by the machine's outward one, and with any other address
its gRPC servers listen on every interface. The hook runs after that replacement.
"""

import os
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"

# Makes Ray take 127.0.0.1 literally. With it `ray start` refuses to add a node, so it is set here,
# for the node's daemons and workers, and in the driver's environment, but not for `ray start`.
LITERAL_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def apply(parameters: Any, head: bool) -> None:
    """Called by `ray start` with its parameters before it starts anything."""
    parameters.node_ip_address = LOOPBACK
    os.environ[LITERAL_LOOPBACK] = "0"
    os.environ.pop("RAY_START_HOOK", None)
    # This folder was only put on the path for `ray start` to find the hook; tasks must not see it.
    here = str(Path(__file__).resolve().parent)
    paths = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    if rest := [path for path in paths if path and path != here]:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
