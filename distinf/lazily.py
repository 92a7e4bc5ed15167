"""What is imported when it is first used, so that what names it stays cheap."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def from_homes(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`; homes: by name, the module below the package that has it."""

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return found


def later(path: str) -> Callable[..., Any]:
    """The function at "module:name", imported when it is called."""
    module, _, name = path.partition(":")
    return lambda *arguments: getattr(import_module(module), name)(*arguments)
