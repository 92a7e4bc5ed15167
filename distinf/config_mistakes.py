"""A mistake in a configuration, in one line."""

import dataclasses
import difflib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError


def explain(error: ValidationError, root: Any, own: Iterable[str] = ()) -> str:
    """The first problem in one line, with the nearest valid name for an unknown key; `own` are
    settings of the task, which may stand at the top.
    """
    problems = error.errors()
    first = problems[0]
    path = [str(part) for part in first["loc"]]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = sorted([*_field_names(root, path[:-1]), *(own if len(path) == 1 else ())])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"unknown key '{'.'.join(path)}'; {hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("dataclass_type", "dict_type"):
        inner = next(_field_names(root, path), "key")
        message = f"holds keys and is no value; set one of them, as in {'.'.join(path)}.{inner}"
    return ": ".join(filter(None, [".".join(path), f"{message}{more}"]))


def _field_names(root: Any, path: Sequence[str]) -> Iterator[str]:
    """Names of the fields of the model or dataclass at `path`."""
    for part in path:
        fields = root.model_fields if hasattr(root, "model_fields") else {}
        if part in fields:
            root = fields[part].annotation
        elif dataclasses.is_dataclass(root):
            hints = inspect.get_annotations(root, eval_str=True)  # type: ignore[arg-type]
            root = hints.get(part)
    if hasattr(root, "model_fields"):
        yield from root.model_fields
    elif dataclasses.is_dataclass(root):
        yield from (field.name for field in dataclasses.fields(root))
