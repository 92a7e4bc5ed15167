"""The code that results come from: digests of every source file that a task imports.

Modules of installed distributions count by version, all others by their source: the task's module
and whatever it imports, anywhere in a file, as the files say it; and what a running process turns
out to have imported beyond that (by a computed name, a plugin). What a task reads otherwise
belongs in its digests().
"""

import ast
import site
import sys
import sysconfig
from collections.abc import Collection
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from distinf import __version__
from distinf.digest import sha256

OURS = "distinf"
ABSENT = "absent"
BEFORE = frozenset(sys.modules)  # what this process had before any task


def sources(task: str) -> dict[str, str]:
    """Module -> digest of its file, for "module:function" and all that it imports.

    "distinf" stands for all of ours; a module that is not found is "absent".
    """
    found: dict[str, str] = {}
    waiting = [task.partition(":")[0]]
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] == OURS:
            continue
        spec = _spec(name)
        if spec is None or not _is_own(spec.origin):
            continue
        found[name] = _digest(str(spec.origin))
        if str(spec.origin).endswith(".py"):
            waiting += _imports(name, spec)
    return {OURS: _ours(), **found}


def loaded_beyond(known: Collection[str]) -> dict[str, str]:
    """The same of what this process has imported and the files did not name: `known` are those.

    Only what would be imported from there again: a module by a path of its own cannot be found.
    """
    found = {}
    for name in sorted(sys.modules.keys() - BEFORE - set(known)):
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if name.partition(".")[0] != OURS and spec is not None and _is_own(spec.origin):
            again = _spec(name)
            if again is not None and again.origin == spec.origin:
                found[name] = _digest(str(spec.origin))
    return found


def digest_of(name: str) -> str:
    """Of the file that a module would be imported from now."""
    spec = _spec(name)
    return _digest(str(spec.origin)) if spec is not None and spec.origin else ABSENT


def _imports(name: str, spec: ModuleSpec) -> tuple[str, ...]:
    """The modules that a module's file names, and the packages that they are in."""
    package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
    return _named_in(Path(str(spec.origin)).read_bytes(), package)


@lru_cache(4096)
def _named_in(source: bytes, package: str) -> tuple[str, ...]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return ()  # told when it is imported
    found: list[str] = []
    for node in ast.walk(tree):
        named: list[str] = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above * bool(node.level), *filter(None, [node.module])])
            named = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and node.args and _is_import(node.func):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                named = [first.value]
        for full in filter(None, named):
            parts = full.split(".")
            found += (".".join(parts[:k]) for k in range(1, len(parts) + 1))
    return tuple(dict.fromkeys(found))


def _is_import(function: ast.expr) -> bool:
    """Of importlib.import_module or __import__."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def _spec(name: str) -> ModuleSpec | None:
    """Where a module lies, found without importing it or the packages that it is in."""
    path, spec = None, None
    parts = name.split(".")
    for k in range(1, len(parts) + 1):
        spec = _found(".".join(parts[:k]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if k < len(parts) and path is None:
            return None
    return spec


def _found(name: str, path: Collection[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, list(path) if path is not None else None)
        except (ImportError, AttributeError, ValueError, KeyError):  # in a namespace not imported
            continue
        if spec is not None:
            return spec
    return None


def _is_own(origin: str | None) -> bool:
    """Whether a file is of no installed distribution, nor of Python itself."""
    if origin is None or not Path(origin).is_file():
        return False
    return not _lies_installed(origin)


@cache
def _lies_installed(origin: str) -> bool:
    lies = Path(origin).resolve()
    return any(lies.is_relative_to(folder) for folder in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(Path(folder).resolve() for folder in folders)


@cache
def _ours() -> str:
    """Our version and, where it is not an installed one, the digest of our sources."""
    here = Path(__file__).resolve().parents[1]
    if not _is_own(__file__):
        return __version__
    files = sorted(here.rglob("*.py"))
    named = (f.relative_to(here).as_posix().encode() + b"\0" + f.read_bytes() for f in files)
    return f"{__version__}+{sha256(*named)[:20]}"


def _digest(file: str) -> str:
    return sha256(Path(file).read_bytes())[:20]
