"""Small whole runs for tests: the points task, its config, and what it left behind."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from distinf.config import resolve
from distinf.engine.run import execute
from distinf.spectral import scores
from distinf.spectral.session import Session

REPOSITORY = ROOT = Path(__file__).parents[2]

POINTS: dict[str, Any] = {
    "task": "tests.support.blobs_task:task",
    "runtime": {"kind": "local", "dashboard": False},
    "train": {"steps": 12, "batch_size": 24, "lr": 0.02, "checkpoint_every": 3},
    "targets": {"count": 2},
    "curvature": {"steps": 8, "keep": 4, "samples": 40, "probes": 2, "shards": 4},
    "gradients": {"rows_per_unit": 60, "chunk": 20},
    "scores": {"damping": 0.05, "negative": "absolute"},
    "actions": {"pool": 30, "batch_size": 10, "steps": 2, "seeds": 2, "non_targets": 20},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with nested changes."""
    found = dict(base)
    for key, value in changes.items():
        inner = found.get(key)
        both = isinstance(value, dict) and isinstance(inner, dict)
        found[key] = merged(inner, value) if both else value
    return found


def silent(stage: str, units: Sequence[Any], done: Any) -> Any:
    """A watcher that shows nothing."""
    return nullcontext()


def run_points(out: Path | str, accept: Sequence[str] = (), **changes: Any) -> Session:
    """Carry the points run out in this process."""
    config = resolve({**merged(POINTS, changes), "out": str(out)})
    return execute(config, silent, accept)


def copied(session: Session, out: Path) -> Session:
    """The same run in another folder."""
    shutil.copytree(session.blobs.root, out)
    return type(session)({**session.context, "root": str(out)}, session.device)


def all_scores(session: Session) -> dict[str, np.ndarray]:
    """Every stored score array, fp64 [targets, rows], by "<loss>.<variant>"."""
    units = [unit for unit, _ in scores.units(session.outline)]
    return {name: values.T for name, values in session.rows(units).columns().items()}


def same_bits(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    """Equal to the last bit, NaN included."""
    return one.keys() == two.keys() and all(
        one[name].tobytes() == two[name].tobytes() for name in one
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "distinf", *arguments]


def distinf(*arguments: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, from the repository's root."""
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{ROOT}"}, check=False,
    )  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, to be killed or waited for."""
    return subprocess.Popen(
        command(*arguments), cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{ROOT}"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def workers_of(driver: int, title: bytes = b"ray::NodeWorker") -> list[int]:
    """Workers (or what else has this in its command line) among the descendants of the driver,
    which started the cluster."""
    parents, found = {}, []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        if title in words.partition(b"\0")[0]:
            found.append(int(folder.name))
    return [pid for pid in found if driver in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while pid in parents and pid not in found:
        found.add(pid)
        pid = parents[pid]
    return found
