"""Every key of a configuration, with its default and its meaning.

Meanings are lines of the settings' own docstrings, `name   meaning` or `name: meaning`. From them
come the configuration that `distinf init` writes and docs/configuration.md, which is made anew by

    python -m distinf.keys > docs/configuration.md
"""

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from distinf.config import RunConfig, config_class
from distinf.engine.recipe import RECIPES
from distinf.tasks.task import STUDIES, build_task, recipe_of, settings_type

NEEDED = object()  # in place of a default
SHOWN_WIDTH = 100
NOT_GIVEN = ("task", "recipe", "out", "provenance")  # said elsewhere, or none of a user's business
VALUE_TYPES = {
    bool: "true or false", int: "whole number", float: "number", str: "text",
    types.NoneType: "null",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Key:
    """One key. `inner` are those below it, of settings within settings; it has no value then."""

    name: str
    values: str
    default: Any
    meaning: str
    about: str = ""  # the settings below it, in a sentence or two
    inner: tuple["Key", ...] = ()


# -- from the classes --------------------------------------------------------------------------


def keys_of(kind: type) -> tuple[Key, ...]:
    """The keys of a settings dataclass or of a kind of run, in their order."""
    said, hints = meanings(kind), typing.get_type_hints(kind)
    return tuple(
        _key(name, hints.get(name, Any), default, said.get(name, ""))
        for name, default in _defaults(kind)
    )


def _defaults(kind: type) -> Iterator[tuple[str, Any]]:
    if not dataclasses.is_dataclass(kind):
        for name, model_field in kind.model_fields.items():  # type: ignore[attr-defined]
            yield name, model_field.get_default(call_default_factory=True)
        return
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        if field.default is not dataclasses.MISSING:
            yield field.name, field.default
        elif field.default_factory is not dataclasses.MISSING and not _settings_in(field.type):
            yield field.name, field.default_factory()
        else:
            yield field.name, NEEDED


def _settings_in(hint: Any) -> type | None:
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _key(name: str, hint: Any, default: Any, meaning: str) -> Key:
    nested = _settings_in(hint)
    if nested is not None:
        return Key(name, "", None, meaning, about(nested), keys_of(nested))
    if default is not NEEDED:
        default = _plain(hint, default)
    return Key(name, _values(hint), default, meaning)


def _plain(hint: Any, value: Any) -> Any:
    """The value as YAML can say it."""
    try:
        return TypeAdapter(hint).dump_python(value, mode="json", warnings=False)
    except PydanticSerializationError:
        return str(value)


def _values(hint: Any) -> str:
    """What may be given, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(str(value) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_values(each) for each in inner)
    if origin is typing.Annotated:
        return _values(inner[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {_values(inner[0])}" if inner else "list"
    return VALUE_TYPES.get(hint, getattr(hint, "__name__", "any"))


# -- from their docstrings ---------------------------------------------------------------------


def meanings(kind: type) -> dict[str, str]:
    """What the docstring says of each field that it names."""
    names = {name for name, _ in _defaults(kind)}
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        paragraphs = _entries(_doc(each), names)
        found |= {name: text for named, text in paragraphs for name in named}
    return found


def _entries(doc: str, names: set[str]) -> Iterator[tuple[list[str], str]]:
    """([names], text) of each entry; a line that hangs in, or follows `name:`, goes on with it."""
    entry: tuple[list[str], str] = ([], "")
    hangs = False
    for line in doc.splitlines():
        begun = _beginning(line, names)
        goes_on = line.strip() and (line[0] == " " or not hangs)
        if begun is None and goes_on and entry[0]:
            entry = (entry[0], f"{entry[1]} {line.strip()}")
            continue
        yield from _pieces(*entry, names)
        entry = begun or ([], "")
        hangs = not re.match(r"[\w, ]+:", line)
    yield from _pieces(*entry, names)


def about(kind: type) -> str:
    """What the docstring says before the first field, as one line."""
    names = {name for name, _ in _defaults(kind)}
    lines = []
    for line in _doc(kind).splitlines():
        if not line.strip() or _beginning(line, names) is not None:
            break
        lines.append(line.strip())
    return " ".join(lines)


def _doc(kind: type) -> str:
    doc = vars(kind).get("__doc__") or ""
    made = dataclasses.is_dataclass(kind) and doc.startswith(f"{kind.__name__}(")  # by Python
    return "" if made else inspect.cleandoc(doc)


def _beginning(line: str, names: set[str]) -> tuple[list[str], str] | None:
    """([names], text) of a line that begins with fields, then two spaces or a colon."""
    match = re.match(r"(\w+(?:, \w+)*)(?::| {2,})\s*(.*)", line)
    if match is None or not set(named := match[1].split(", ")) <= names:
        return None
    return named, match[2]


def _pieces(first: list[str], text: str, names: set[str]) -> Iterator[tuple[list[str], str]]:
    """A text may go on to another field: "rows: at once. columns: shown"."""
    current, start = first, 0
    for match in re.finditer(r"(?:^|(?<=[.;]) )(\w+(?:, \w+)*): ", text):
        named = match[1].split(", ")
        if set(named) <= names:
            yield current, text[start : match.start()].strip(" .;")
            current, start = named, match.end()
    if current:
        yield current, text[start:].strip().removesuffix(".")


# -- a configuration to begin with -------------------------------------------------------------


def starting_config(task: str, recipe: str = "") -> str:
    """YAML of a run of the task with every key at its default, each with its meaning."""
    typed = settings_type(task)
    name = recipe or recipe_of(task)
    kind = config_class(name)
    lines = [f"task: {task}", f"recipe: {name}"]
    for key in keys_of(kind):
        if key.name in NOT_GIVEN:
            continue
        if key.name == "curvature" and task not in STUDIES:
            key = _fitting(key, task)
        if key.name == "settings" and dataclasses.is_dataclass(typed):
            own = keys_of(typed)  # type: ignore[arg-type]
            key = Key("settings", "", None, key.meaning, about(typed), own)  # type: ignore[arg-type]
        lines += ["", *_yaml_lines(key, "")] if key.inner else _yaml_lines(key, "")
    return "\n".join(lines) + "\n"


def _fitting(curvature: Key, task: str) -> Key:
    """With no more Ritz pairs than the task's model has parameters."""
    try:
        parameters = build_task(task, {}, 0).shapes().parameters
    except ValidationError:  # the task's settings have no defaults
        return curvature

    def fitted(key: Key) -> Key:
        if key.name not in ("steps", "keep") or key.default <= parameters:
            return key
        said = f"{key.meaning} (the model has {parameters} parameters)"
        return dataclasses.replace(key, default=parameters, meaning=said)

    return dataclasses.replace(curvature, inner=tuple(map(fitted, curvature.inner)))


def _yaml_lines(key: Key, indent: str) -> Iterator[str]:
    if key.inner:
        yield f"{indent}{key.name}:"
        yield from _comment(key.about or key.meaning, f"{indent}  ")
        for each in key.inner:
            yield from _yaml_lines(each, f"{indent}  ")
        return
    meaning = key.meaning
    choices = key.values.split(", ")
    if len(choices) > 1 and " " not in choices[0] and not all(c in meaning for c in choices):
        meaning = f"{meaning} ({key.values})" if meaning else key.values
    if key.default is NEEDED:
        yield from _comment(f"{key.name}: needed; {meaning or key.values}", indent)
        return
    line = f"{indent}{key.name}: {_flow(key.default)}"
    if meaning and len(line) + len(meaning) + 4 <= SHOWN_WIDTH:
        yield f"{line}  # {meaning}"
    else:
        yield from _comment(meaning, indent)
        yield line


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()), SHOWN_WIDTH, initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ", break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _flow(value: Any) -> str:
    """YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


# -- the reference -----------------------------------------------------------------------------

INTRODUCTION = """\
# Every key of a configuration

*Made from the settings' own docstrings by `python -m distinf.keys > docs/configuration.md`.*

A configuration is a YAML file. Every key but `task` may be left out; `--set train.steps=100`
overrides one, and `extends: other.yaml` starts from another file's keys. `distinf init TASK FILE`
writes a file with every key of a task's run, its default and its meaning.
"""


def reference() -> str:
    """docs/configuration.md."""
    shared = {name for name, _ in _defaults(RunConfig)}
    parts = [INTRODUCTION, "## Every run\n", *_tables("", keys_of(RunConfig))]
    for name in RECIPES:
        kind = config_class(name)
        own = [key for key in keys_of(kind) if key.name not in shared]
        parts += [f"## The {name} recipe\n", f"{inspect.cleandoc(kind.__doc__ or '')}\n"]
        parts += _tables("", own)
    for study in STUDIES:
        typed = settings_type(study)
        parts += [f"## The study {study}\n", f"`task: {study}`. {about(typed)}\n"]
        parts += _tables("settings", keys_of(typed))
    return "\n".join(parts)


def _tables(path: str, keys: Sequence[Key]) -> Iterator[str]:
    """One table of the keys that have values, then those of settings within, one after another."""
    rows = [key for key in keys if not key.inner and key.name != "provenance"]
    if rows:
        cells = [_row(f"{path}.{key.name}".strip("."), key) for key in rows]
        yield (
            "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *cells]) + "\n"
        )
    for key in keys:
        if key.inner:
            name = f"{path}.{key.name}".strip(".")
            yield f"### `{name}`\n"
            if key.about or key.meaning:
                yield f"{key.about or key.meaning}\n"
            yield from _tables(name, key.inner)


def _row(name: str, key: Key) -> str:
    default = "needed" if key.default is NEEDED else f"`{_flow(key.default)}`"
    cells = (f"`{name}`", key.values, default, key.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(reference(), end="")
