"""From a configuration's task to the task: its path, its settings' type, the object itself."""

import difflib
import inspect
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from distinf.errors import DistinfError, InputError
from distinf.naming import refuse_names
from distinf.runtime import faults
from distinf.runtime.worker import resolve
from distinf.tasks.task import Task

HOME = Path(__file__).parents[1] / "studies"
STUDIES = tuple(  # each a folder of distinf/studies, or "folder.inner"; imported on demand
    sorted(".".join(file.parent.relative_to(HOME).parts) for file in HOME.rglob("task.py"))
)


def task_path(name: str) -> str:
    """A study's short name, or "module:function" as it stands."""
    if name in STUDIES:
        return f"distinf.studies.{name}.task:task"
    faults.note_task(name)
    if not all(name.partition(":")):
        known = ", ".join(sorted(STUDIES))
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "write it as in mine:task"
        raise InputError(f"task: '{name}' is neither a study ({known}) nor module:function; {hint}")
    return name


def settings_type(name: str) -> Any:
    """What the factory says its settings are: a dataclass, or dict where it says nothing."""
    with error_context(f"importing {name}"):
        factory = resolve(task_path(name))
    try:
        names = list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        names = []
    if len(names) != 2:
        raise InputError(f"task: {name} is no task factory; write it as task(settings, seed)")
    hinted = typing.get_type_hints(factory).get(names[0], dict)
    return hinted if is_dataclass(hinted) else dict[str, Any]


def recipe_of(name: str) -> str:
    """The recipe that a task is for, as its module's RECIPE says; "spectral" where it has none."""
    with error_context(f"importing {name}"):
        factory = resolve(task_path(name))
        module = sys.modules.get(getattr(factory, "__module__", ""))
    return str(getattr(module, "RECIPE", "spectral"))


def setting_of_file(name: str, rows: str) -> str:
    """The dotted name of the task's setting that takes a file of queries or of candidates, "" if it
    has none: its module's QUERIES, or CANDIDATES."""
    factory = resolve(task_path(name))
    module = sys.modules.get(getattr(factory, "__module__", ""))
    found = getattr(module, rows.upper(), "")
    return found if isinstance(found, str) else ""


@contextmanager
def error_context(what: str) -> Iterator[None]:
    """Whatever the user's code raises becomes one line that says where; its cause rides along.

    What may pass (memory, a connection) is raised as it is, and so is Ctrl-C.
    """
    try:
        yield
    except (DistinfError, KeyboardInterrupt):
        raise
    except BaseException as error:
        if faults.whose(error) == "passing":
            raise
        raise InputError(f"task: {what} failed {faults.told(error)}") from error


def build_task(name: str, settings: Mapping[str, Any], seed: int, kind: Any = Task) -> Task:
    """Call the factory with its validated settings -> the task, of this protocol."""
    typed = TypeAdapter(settings_type(name)).validate_python(dict(settings))
    with error_context(f"{name}(settings, seed)"):
        task: Any = resolve(task_path(name))(typed, seed)
    if task is None:
        raise InputError(f"task: {name} returned None; did you forget its return?")
    if not isinstance(task, kind):
        missing = [m for m in _members(kind) if not hasattr(task, m)]
        raise InputError(f"task: {name} returned an object without {', '.join(missing)}")
    if kind is Task:
        check_losses(task)
    return task


def check_losses(task: Task) -> None:
    """InputError for losses that are none, or whose names cannot be arrays' names."""
    losses = task.losses
    if not isinstance(losses, Mapping) or not losses:
        raise InputError(f"task: losses is {kind_of(losses)}; make it a mapping of names to losses")
    refuse_names("task: losses", losses)
    for name, loss in losses.items():
        if not callable(loss):
            raise InputError(
                f"task: losses[{name!r}] is {kind_of(loss)}; a loss is a function of (model, batch)"
            )


def kind_of(value: Any) -> str:
    """What a value is, in words: "a list of 3"."""
    if value is None:
        return "None"
    many = f" of {len(value)}" if isinstance(value, Sequence | Mapping) else ""
    return f"a {type(value).__name__}{many}"


def _members(protocol: type) -> list[str]:
    return (
        sorted(typing.get_protocol_members(protocol))
        if hasattr(typing, "get_protocol_members")
        else sorted(set(protocol.__annotations__) | {n for n in vars(protocol) if n[0] != "_"})
    )
