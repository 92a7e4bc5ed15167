"""Which runtime the settings name. Ray is imported only where it is asked for."""

import os
import sys

from distinf.errors import InputError
from distinf.runtime.local import LocalRuntime
from distinf.runtime.protocol import Runtime, RuntimeSettings


def open_runtime(settings: RuntimeSettings) -> Runtime:
    """The runtime that the settings name; nothing starts before its first work."""
    if settings.kind == "local":
        return LocalRuntime(settings)
    if "ray" not in sys.modules:  # ray reads its mode once, when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        from distinf.runtime.ray import RayRuntime
    except ImportError:
        raise InputError(
            "runtime.kind: ray is not installed here; pip install 'ray[default]' or set "
            "runtime.kind=local"
        ) from None
    return RayRuntime(settings)
