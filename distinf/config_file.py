"""A configuration as it is given: files, overrides and the run's folder, nothing validated.

Imports nothing heavy, so that a command can say within a moment what it is about to do.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from distinf.errors import CorruptionError, InputError
from distinf.naming import CONFIG
from distinf.runtime import Agenda
from distinf.store import open_root
from distinf.store.regular import read_given

MOST_NESTED, MOST_VALUES = 50, 1_000_000
MOST_BYTES = 64 << 20  # of a YAML file
RENAMED = {"beside": "variations"}  # keys of 0.1, and what they are called now
TUNED_ON = {  # a file of rows alone is fine-tuned on as by configs/sft/smollm.yaml
    "train": {
        "epochs": 3, "lr": 1e-3, "batch_size": 8, "evaluation_batch": 8, "selected_epoch": "last"
    },
    "gradients": {"tokens_per_batch": 1024},
}  # fmt: skip
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]*[0-7]|[0-9_]+(:[0-9._]+)+)")  # of YAML 1.1
TASK_NAME = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


def read(
    path: str, overrides: Sequence[str] = (), verb: str = "run", out: str | None = None
) -> dict[str, Any]:
    """The keys of a configuration, `out` among them, overridden (`a.b=value`, the value as YAML).

    path   a YAML file; or the folder or URL of a run, or the config.yaml in it, to replay that
           run: its `out` is where it lies; or a task's module:function, with every default; or JSON
           lines to fine-tune a language model on (the task sft)
    verb   run, or score: each command has folders of its own, and `score` takes the Gram recipe
           where none is named
    out    in place of what is said anywhere else

    `extends: other.yaml` starts from that file's keys.
    Raises InputError with one line for whatever is wrong.
    """
    raw, place = _given(path)
    if raw.get("provenance") is not None:
        raw = {**raw, "out": place, "provenance": None}
    for override in overrides:
        assign(raw, *override_of(override), f"--set {override}")
    if out:
        raw["out"] = out
    elif not raw.get("out"):
        raw["out"] = default_folder(path, verb)
    if isinstance(raw["out"], str):
        raw["out"] = os.path.expanduser(raw["out"])  # as a shell does, where it sees a path
        _refuse_unnamable(raw["out"])
    route = raw.pop("route", None)  # so it was called in 0.1
    if route is not None and not raw.get("recipe"):
        raw["recipe"] = "spectral" if route == "basis" else route
    if verb == "score" and not raw.get("recipe"):
        raw["recipe"] = "gram"
    return raw


def _refuse_unnamable(out: str) -> None:
    """InputError for what no file can be called in this locale, or what it made no text of."""
    try:
        out.encode()
        os.fsencode(out)
    except UnicodeEncodeError:
        kind = sys.getfilesystemencoding()
        way = "" if kind == "utf-8" else "set PYTHONUTF8=1, or "
        raise InputError(
            f"out: {out!a}: in this locale names of files are {kind}; {way}give another --out"
        ) from None


def default_folder(path: str, verb: str) -> str:
    """Where a run lies that names no folder: by its file or task, and by the command."""
    named = _task_of(path)
    if named is None:
        stem = Path(path).stem
    else:
        module, function = named
        stem = module if function == "task" else f"{module}-{function}"
    return f"runs/{stem}" if verb == "run" else f"runs/{stem}-{verb}"


def _task_of(path: str) -> tuple[str, str] | None:
    """(module, function) where `path` names a task and no file."""
    found = TASK_NAME.fullmatch(path)
    return None if found is None or Path(path).exists() else (found[1], found[2])


def _given(path: str) -> tuple[dict[str, Any], str]:
    """The keys, and the folder or URL that they lie in."""
    if "://" in path:
        root = path.removesuffix(f"/{CONFIG}")
        try:
            data = open_root(root).get(CONFIG)
        except KeyError:
            raise InputError(f"{path}: no {CONFIG} there; give the URL of a run") from None
        return _of_run(root, lambda: _parsed(path, data.decode(errors="replace"))), root
    if _task_of(path) is not None:
        return {"task": path}, "."
    file = Path(path)
    if path.removesuffix(".gz").endswith(".jsonl"):
        return {"task": "sft", "settings": {"data": {"path": path}}, **deepcopy(TUNED_ON)}, "."
    if not file.suffix and not file.exists():
        raise InputError(
            f"{path}: No such file or directory; give the path of a YAML file, a run's folder, or "
            "a task, as in mine:task"
        )
    if not file.is_dir():
        return _extended(path, file), str(file.parent)
    return _of_run(path, lambda: _extended(path, file / CONFIG)), path


def _of_run(root: str, reading: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A run's configuration; where it is torn, as it was when it was written."""
    blobs = open_root(root)
    try:
        kept = Agenda(blobs).config()
    except (KeyError, OSError, CorruptionError):
        return reading()
    with contextlib.suppress(InputError, KeyError, OSError, CorruptionError):
        blobs.size(CONFIG)  # a pipe would never be read to its end
        found = reading()
        if found.get("provenance") is not None:
            return found
    return _parsed(root, kept)


def _extended(path: str, file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's keys over those of the file that it extends, which is named relative to it."""
    raw = read_yaml(path, file)
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise InputError(f"{path}: extends names one file, such as 'paper-800k.yaml'")
    if file.resolve() in seen:
        raise InputError(f"{path}: extends itself through {base}")
    inner = file.parent / base
    return merged(_extended(str(inner), inner, (*seen, file.resolve())), raw)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`, mapping by mapping; an empty mapping replaces."""
    found = dict(base)
    for key, value in over.items():
        inner = found.get(key)
        nested = isinstance(inner, dict) and isinstance(value, dict) and value
        found[key] = merged(inner, value) if nested else value  # type: ignore[arg-type]
    return found


def read_yaml(path: str, file: Path) -> dict[str, Any]:
    """The keys of a YAML file, which the user calls `path`."""
    if file.suffix == ".py":
        raise InputError(f"{path}: is Python; name the function in it, as in {file.stem}:task")
    try:
        text = read_given(file, MOST_BYTES).decode("utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; give the path of a YAML file"
        ) from None
    except ValueError:  # not UTF-8, or a name with a NUL
        raise InputError(f"{path}: is not UTF-8 text; give the path of a YAML file") from None
    return _parsed(path, text)


def _parsed(path: str, text: str) -> dict[str, Any]:
    try:
        raw = _loaded(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise InputError(f"{path}:{line} {problem}") from None
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45; deep brackets
        raise InputError(f"{path}: not valid YAML: {reason(error)}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds no keys; begin with 'task: mine:task'")
    return {todays(key): value for key, value in raw.items()}


def todays(key: Any) -> Any:
    """A dotted key as it is called now; what is no text is left to be refused."""
    if not isinstance(key, str):
        return key
    first, dot, rest = key.partition(".")
    return f"{RENAMED.get(first, first)}{dot}{rest}"


def _loaded(text: str) -> Any:
    """The YAML's value; errors as those of `refuse_boundless`."""
    found = parsed(text)
    refuse_boundless(found)
    return found


def parsed(text: str | bytes) -> Any:
    """As yaml.safe_load, with its errors; by libyaml where it is there, in a tenth of the time,
    which takes tabs too. ValueError for what a tag cannot be of, as in !!bool maybe, and for a
    number that YAML 1.1 reads otherwise than it is written."""
    try:
        if yaml.__with_libyaml__:
            with contextlib.suppress(Exception):  # said again below
                return yaml.load(text, Loader=_plain_numbers(yaml.CSafeLoader))
        return yaml.load(text, Loader=_plain_numbers(yaml.SafeLoader))
    except (AttributeError, LookupError, TypeError):  # of PyYAML's constructors
        raise ValueError("a value does not fit its tag") from None


@cache
def _plain_numbers(loader: Any) -> Any:
    """The loader, without YAML 1.1's numbers to the base of 60, as 1:30 for 90, and of 8, as 010
    for 8: ValueError, as nobody means them, and YAML 1.2 has neither."""

    def number(kind: Any) -> Any:
        def construct(self: Any, node: Any) -> Any:
            text = self.construct_scalar(node)
            if OTHER_BASE.fullmatch(text):
                raise ValueError(
                    f"{text} is a number to another base in YAML; write it without ':' and leading "
                    f"zeros, or as text: '{text}'"
                )
            return kind(self, node)

        return construct

    made: Any = type("PlainNumbers", (loader,), {})
    made.add_constructor("tag:yaml.org,2002:int", number(loader.construct_yaml_int))
    made.add_constructor("tag:yaml.org,2002:float", number(loader.construct_yaml_float))
    return made


def refuse_boundless(found: Any) -> None:
    """RecursionError or ValueError for a value without an end, or nearly so: anchors can put one
    into itself, or make millions of a few lines. ValueError for text with half a character, which
    "\\ud800" makes, and which no file can hold or be called."""
    waiting, count = [(found, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MOST_NESTED:
            raise RecursionError
        if count > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, Mapping | list):
            inner = [*value, *value.values()] if isinstance(value, Mapping) else value
            waiting += [(each, depth + 1) for each in inner]


def refuse_truths(given: Any, found: Any, key: str = "") -> None:
    """InputError where `given` says true, false, yes or no and validation made a number of it."""
    if isinstance(given, bool) and type(found) in (int, float):
        told = "true (or yes, on)" if given else "false (or no, off)"
        raise InputError(f"{key}: {told} is no number; give one")
    if isinstance(given, Mapping) and isinstance(found, Mapping):
        for name in given.keys() & found.keys():
            refuse_truths(given[name], found[name], f"{key}.{name}" if key else name)
    elif isinstance(given, list) and isinstance(found, list) and len(given) == len(found):
        for one, made in zip(given, found, strict=True):
            refuse_truths(one, made, key)


def reason(error: ValueError | RecursionError) -> str:
    """What `refuse_boundless`, or YAML itself, has against a value."""
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object!a:.60} has half of a character (a surrogate), which is no text"
    return "nested too deep" if isinstance(error, RecursionError) else str(error)


def override_of(override: str) -> tuple[str, Any]:
    """(dotted key, value) of a key=value, the value as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: write it as key=value, as in --set seed=1")
    try:
        value = _loaded(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"--set {override}: the value is not valid YAML: {reason(error)}"
        ) from None
    return todays(key.strip()), value


def assign(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key in place; InputError where a part of it is a value, not a mapping."""
    *path, last = key.split(".")
    place = raw
    for name in path:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise InputError(f"{where}: '{name}' is a value, it has no keys below it")
    place[last] = value
