"""Which runtime the settings name. Ray is imported only where it is asked for."""

import os
import sys
from collections.abc import Sequence

from distinf.errors import InputError
from distinf.runtime.address import close_to_others
from distinf.runtime.local import LocalRuntime
from distinf.runtime.protocol import Runtime, RuntimeSettings


def open_runtime(settings: RuntimeSettings, packages: Sequence[str] = ()) -> Runtime:
    """The runtime that the settings name; nothing starts before its first work.

    packages: that every node of a cluster must have as this process has them
    """
    if settings.kind == "local":
        return LocalRuntime(settings)
    if settings.starts_cluster:  # before Ray reads it, once, when it is imported
        close_to_others()
    elif "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        from distinf.runtime.ray import RayRuntime
    except ImportError:
        raise InputError(
            "runtime.kind: ray is not installed here; pip install 'ray[default]' or set "
            "runtime.kind=local"
        ) from None
    return RayRuntime(settings, packages)
