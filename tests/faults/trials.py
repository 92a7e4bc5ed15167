"""One fault in one run: what the driver said, how soon, and whether the results are the same bits.

A trial starts the run as a user does, disturbs it at a random moment, waits until the command has
ended, and gives the same command again until it finishes. Seconds are those of this machine.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distinf.engine.verifying import verify
from distinf.runtime import Ledger
from distinf.store import open_root
from tests.support.runs import POINTS, ROOT, command, merged, workers_of

PATIENCE_S = 300.0
RUNTIMES: Mapping[str, dict[str, Any]] = {
    "in process": {"kind": "local"},
    "Ray": {"kind": "ray", "workers": 2, "dashboard": False},
}
LONGER = {
    "train": {"steps": 600, "checkpoint_every": 50, "shards": 4},
    "gradients": {"rows_per_unit": 6},
    "actions": {"steps": 200, "seeds": 4},
}
TABLES = ("trials", "summary", "targets", "paired")  # of the report: without times and paths


@dataclass
class Trial:
    """How one went: notice_s until the driver said something or ended, recover_s until the run was
    whole (of a driver that died: from the next command on)."""

    same: bool
    notice_s: float | None
    recover_s: float
    codes: tuple[int, ...]
    message: str
    seed: int


class TooLate(Exception):
    """There was nothing left to disturb: no trial."""


@dataclass
class Run:
    """A driver at work, and what it has said so far."""

    folder: Path
    route: str
    process: subprocess.Popen[str] = field(init=False)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")

    def begin(self) -> None:
        """The command, anew; a process group of its own, so that what it leaves can be ended."""
        (self.folder / "points.yaml").write_text(
            yaml.safe_dump(merged(merged(POINTS, LONGER), {"runtime": RUNTIMES[self.route]}))
        )
        with open(self.folder / "said", "a") as said:
            self.process = subprocess.Popen(
                command("run", str(self.folder / "points.yaml"), "--out", str(self.out)),
                cwd=ROOT, stdout=said, stderr=said, stdin=subprocess.DEVNULL, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
            )  # fmt: skip

    def wait(self, until: Callable[[], Any], limit_s: float = PATIENCE_S) -> Any:
        """What `until` gives once it gives something, or None once the driver has ended."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if found := until():
                return found
            if self.process.poll() is not None:
                return None
            time.sleep(0.02)
        raise TimeoutError(f"{self.folder}: nothing came of it in {limit_s:.0f} s: {self.said}")

    def count(self, stage: str) -> int:
        with suppress(OSError):
            return len(os.listdir(self.out / "ledger" / stage))
        return 0

    def at(self, stage: str, units: int = 1) -> None:
        """Waits until that many units of a stage are committed; TooLate if the run ended before."""
        self.wait(lambda: self.count(stage) >= units)
        self.refuse_ended()

    def refuse_ended(self) -> None:
        if self.process.poll() is not None:
            raise TooLate(f"{self.folder} ended before it was disturbed")

    def workers(self) -> list[int]:
        return workers_of(self.process.pid)

    def ended(self, limit_s: float = PATIENCE_S) -> int:
        """The exit code, once there is one."""
        return self.process.wait(limit_s)


Fault = Callable[[Run, random.Random], float | None]
"""Disturbs a run that has begun -> seconds from then until the driver noticed, if it has to."""


def trial(fault: Fault, route: str, seed: int, folder: Path, golden: Mapping[Any, Any]) -> Trial:
    """One run, disturbed once, then left to finish."""
    run, notice_s = _disturbed(fault, route, seed, folder)
    began = time.monotonic()
    codes = [run.ended()]
    message = _told(run.said)
    while codes[-1] != 0 and len(codes) < 5:
        run.begin()
        codes.append(run.ended())
    same = codes[-1] == 0 and results(run.out) == golden and not verify(blobs_of(run)).problems
    for pid in run.workers():
        os.kill(pid, signal.SIGKILL)
    return Trial(same, notice_s, time.monotonic() - began, tuple(codes), message, seed)


def _disturbed(fault: Fault, route: str, seed: int, folder: Path) -> tuple[Run, float | None]:
    """A run that was disturbed before it ended, at the second or third try if need be."""
    for again in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run = Run(folder, route)
        run.begin()
        try:
            return run, fault(run, random.Random(f"{seed} {again}"))
        except TooLate:
            run.ended()
    raise TooLate(f"{route}, seed {seed}: three runs ended before they were disturbed")


def blobs_of(run: Run) -> Any:
    return open_root(str(run.out))


def results(out: Path) -> dict[Any, Any]:
    """sha256 of every file of every unit, and the report's tables.

    Krylov steps are left out: they are there to resume from, and once the Ritz pairs are known none
    that was lost is made again.
    """
    blobs = open_root(str(out))
    found: dict[Any, Any] = {}
    for stage in sorted(os.listdir(out / "ledger")):
        for unit, record in Ledger(blobs, stage).read().items():
            if "krylov_step" not in record["job"]:
                found[stage, unit] = record["manifest"]["files"]
    return found | {name: blobs.get(f"report/{name}.json") for name in TABLES}


def _told(said: str) -> str:
    lines = said.strip().splitlines()
    telling = [line for line in lines if line.startswith(("error", "stopped", "warning"))]
    return (telling or [""])[-1]
