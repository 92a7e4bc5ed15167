"""Imports point down, from the command line to the errors: LEVELS says how."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

import distinf

REPOSITORY = Path(__file__).resolve().parents[1]

# A module may import its own part and lower levels. Parts of one level never import each other.
LEVELS = {
    "__main__": 15,
    "cli": 14,
    "progress": 13,
    "engine/query": 11,
    "engine/evaluation_plan": 13,
    "engine/evaluating": 12,
    "engine/several": 11,
    "engine/run": 10,
    "engine/fingerprint": 9,
    "engine/refusals": 9,
    "planning": 9,
    "keys": 9,
    "config": 8,
    "studies": 7,
    "recipes": 7,
    "stages": 7,
    "report": 6,
    "spectral": 4,
    "gram": 4,
    "empirical": 4,
    "engine": 3,
    "config_file": 2,
    "config_mistakes": 1,
    "tasks": 2,
    "runtime": 1,
    "store": 1,
    "numerics": 1,
    "saying": 1,
    "terminal": 1,
    "printable": 0,
    "naming": 1,
    "masking": 1,
    "blobs": 0,
    "collective": 0,
    "digest": 0,
    "errors": 0,
    "lazily": 0,
    "microbatch": 0,
}
FACADE = 10  # distinf/__init__.py: the Python surface, which no module inside may use,
VERSION = "distinf.__version__"  # but for this constant
RAY_FOLDER = "distinf/runtime/ray/"
NUMERICS_MAY_IMPORT = {"torch", "numpy", "scipy"} | set(sys.stdlib_module_names)


def violations(sources: Mapping[str, str]) -> list[str]:
    """The rules that these sources, by path such as distinf/store/rows.py, break: one line each."""
    found = []
    for path, source in sources.items():
        tree = ast.parse(source)
        for line, target in imports(path, tree):
            found += [f"{path}:{line}: {why}" for why in _broken(path, target)]
        if _part(_module(path)) == "numerics":
            lines = [node.lineno for node in ast.walk(tree) if _is_torch_distributed(node)]
            found += [f"{path}:{line}: numerics uses torch.distributed" for line in lines]
    return found


def imports(path: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of all that is imported, anywhere in the file."""
    module = _module(path)
    package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _broken(path: str, target: str) -> Iterator[str]:
    own, root = _part(_module(path)), target.split(".")[0]
    if root == "distinf" and target != VERSION:
        other = _part(target)
        if other != own and _level(other) >= _level(own):
            yield f"{own or 'distinf'} imports {target}"
    elif root == "ray" and not path.startswith(RAY_FOLDER):
        yield f"imports ray outside {RAY_FOLDER}"
    elif own == "numerics":
        if root not in NUMERICS_MAY_IMPORT:
            yield f"numerics imports {target}"
        if target.startswith("torch.distributed"):
            yield "numerics uses torch.distributed"


def _is_torch_distributed(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "distributed"
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
    )


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _part(module: str) -> str:
    """'store' for distinf.store.rows; '' for distinf itself and the names it offers."""
    first, _, rest = module.partition(".")[2].partition(".")
    within = f"{first}/{rest.partition('.')[0]}"
    part = within if within in LEVELS else first
    return part if part in LEVELS else ""


def _level(part: str) -> int:
    return LEVELS.get(part, FACADE)


# -- the package ---------------------------------------------------------------------------


def package() -> dict[str, str]:
    files = sorted((REPOSITORY / "distinf").rglob("*.py"))
    return {str(file.relative_to(REPOSITORY)): file.read_text() for file in files}


def test_imports_point_down():
    assert violations(package()) == []


def test_every_part_of_the_package_has_a_level():
    parts = {path.split("/")[1].removesuffix(".py") for path in package()} - {"__init__"}
    assert parts - set(LEVELS) == set()  # something new at the top needs its level above
    assert {"tasks", "engine", "runtime", "store", "numerics"} <= parts


def test_the_readmes_table_is_in_this_order():
    table = (REPOSITORY / "README.md").read_text().split("| where | what |")[1].split("\n\n")[0]
    named = [re.findall(r"`distinf/(\w+)", line.split("|")[1]) for line in table.splitlines()[2:]]
    levels = [{_level(part) for part in parts} for parts in named]
    assert all(max(below) <= min(above) for above, below in pairwise(levels))
    folders = {path.split("/")[1] for path in package() if path.count("/") > 1}
    files, former = {"config", "keys"}, {"stages"}  # names that tasks of 0.1 import
    assert folders - former == {part for parts in named for part in parts} - files


@pytest.mark.parametrize(
    ("imported", "heavy"),
    [
        ("distinf", ["ray", "zarr", "sionna", "matplotlib", "transformers", "tensorflow"]),
        # what every worker's start waits for
        (
            "distinf.recipes.spectral, distinf.recipes.gram, distinf.recipes.empirical",
            ["ray", "sionna", "matplotlib", "scipy", "transformers", "torch._dynamo"],
        ),
    ],
)
def test_importing_is_light(imported, heavy):
    code = f"import sys, {imported}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.smoke
def test_every_module_can_be_imported():
    for module in pkgutil.walk_packages(distinf.__path__, "distinf."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


# -- the rules -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "source", "why"),
    [
        ("distinf/tasks/task.py", "import distinf.studies.receiver", "tasks imports"),
        ("distinf/tasks/task.py", "from ..studies import receiver", "tasks imports"),
        ("distinf/tasks/task.py", "from distinf.config import RunConfig", "tasks imports"),
        ("distinf/spectral/scores.py", "from distinf.report import page", "spectral imports"),
        ("distinf/gram/scores.py", "import distinf.report.gram.page", "gram imports"),
        ("distinf/gram/scores.py", "from distinf.spectral import scores", "gram imports"),
        ("distinf/engine/running.py", "from distinf.gram import scores", "engine imports"),
        ("distinf/engine/running.py", "from distinf.engine.run import execute", "engine imports"),
        ("distinf/report/svg.py", "from distinf.recipes import gram", "report imports"),
        ("distinf/store/rows.py", "from distinf.runtime.units import Unit", "store imports"),
        ("distinf/store/rows.py", "from .. import numerics", "store imports"),
        ("distinf/runtime/__init__.py", "from ..store import rows", "runtime imports"),
        ("distinf/numerics/krylov.py", "from ..runtime import collective", "numerics imports"),
        ("distinf/numerics/estimators/fisher.py", "from ...store import rows", "numerics imports"),
        ("distinf/errors.py", "from .numerics import krylov", "errors imports"),
        ("distinf/config.py", "def f():\n    from distinf.cli import main", "config imports"),
        ("distinf/tasks/task.py", "import distinf", "tasks imports distinf"),
        ("distinf/tasks/task.py", "from distinf import influence", "tasks imports distinf"),
        ("distinf/runtime/worker.py", "import ray", "imports ray outside"),
        ("distinf/runtime/local.py", "from ray.util import placement_group", "ray outside"),
        ("distinf/cli/runs.py", "import ray", "imports ray outside"),
        ("distinf/numerics/krylov.py", "import zarr", "numerics imports zarr"),
        ("distinf/numerics/krylov.py", "from pydantic import BaseModel", "numerics imports"),
        ("distinf/numerics/krylov.py", "import yaml", "numerics imports yaml"),
        ("distinf/numerics/krylov.py", "import torch.distributed as dist", "torch.distributed"),
        ("distinf/numerics/krylov.py", "from torch import distributed", "torch.distributed"),
        ("distinf/numerics/krylov.py", "import torch\ntorch.distributed.barrier()", "distributed"),
    ],
)
def test_a_violation_is_caught(path, source, why):
    found = violations({path: source})
    assert len(found) == 1
    assert why in found[0]
    assert found[0].startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("distinf/numerics/krylov.py", "import math\nimport torch\nfrom .solve import Solution"),
        ("distinf/numerics/estimators/__init__.py", "from ..variants import apply"),
        ("distinf/store/rows.py", "import zarr\nfrom distinf.errors import InputError"),
        ("distinf/store/rows.py", "from distinf import errors"),
        ("distinf/runtime/ray/pool.py", "import ray\nfrom ray.exceptions import RayError"),
        ("distinf/spectral/data.py", "from ..store import rows\nfrom . import train"),
        ("distinf/studies/receiver/task.py", "from ...tasks import task"),
        ("distinf/cli/runs.py", "from distinf.config import RunConfig"),
        ("distinf/config.py", "from distinf import __version__"),
        ("distinf/__init__.py", "from distinf.numerics.krylov import arnoldi"),
    ],
)
def test_an_import_that_points_down_is_allowed(path, source):
    assert violations({path: source}) == []
