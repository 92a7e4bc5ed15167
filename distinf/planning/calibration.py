"""Speeds measured here: for some seconds, on as many processes as there will be workers.

Each process does what a worker does, on rows that it makes for itself, all of them the same thing
at the same time: two busy cores are slower than twice one. They speak JSON lines over pipes.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import torch

from distinf.errors import InputError
from distinf.planning.speeds import (
    BUSY,
    BUSY_NOTE,
    CLUSTER_S,
    NO_GPU,
    OTHER_FLOPS,
    UNIT_S,
    Rate,
    Speeds,
    batches,
)  # fmt: skip
from distinf.runtime import RuntimeSettings
from distinf.runtime.machine import cpus_here
from distinf.spectral.session import Session
from distinf.tasks.task import GeneratingTask

CHILD = "from distinf.planning.measuring import main; main()"
SECONDS = 0.8  # to measure each primitive for
ROWS = ("generate", "rows")
STORED = ("model", "commit", "checkpoint")
MODEL = ("forward", "train", "product", "gradient")

Found = dict[str, Any]


def measured(session: Session, runtime: RuntimeSettings, workers: int) -> Speeds:
    """Speeds of one of `workers` workers that are all at work.

    Raises InputError if the task cannot be measured: data that cannot be made here, say.
    """
    if runtime.num_gpus and not torch.cuda.is_available():
        raise InputError(NO_GPU.format(runtime.num_gpus))
    phases = [
        *(ROWS if isinstance(session.task, GeneratingTask) else ()),
        *MODEL,
        *STORED,
    ]
    processes = min(workers, cpus_here())
    began = time.monotonic()
    found = _run(session, runtime, phases, processes)
    took = time.monotonic() - began
    plural = "es" if processes > 1 else ""
    notes = [f"speeds measured here in {took:.0f} s, on {processes} process{plural} at once"]
    share = _share(found) if runtime.threads == 1 and not runtime.num_gpus else 1.0
    if share < BUSY:
        notes.append(BUSY_NOTE.format(share))
    if workers > processes:
        notes.append(f"{workers} workers share {processes} cores")
    slower = workers / processes / share
    rates = {name: rate.times(slower) for name, rate in _rates(found).items()}
    start_s = CLUSTER_S + max(one["start"]["cpu"] for one in found)
    return Speeds(
        flops=OTHER_FLOPS,
        rates=rates,
        unit_s=rates["commit"].sample,
        start_s=0.0 if runtime.kind == "local" else start_s * slower,
        worker_s=(start_s - CLUSTER_S) * slower,
        share=share,
        # With the simulator, which a worker that has made rows still holds.
        base=max(one["generate" if "generate" in one else "start"]["bytes"] for one in found),
        notes=tuple(notes),
    )


def host_speeds(session: Session) -> Speeds:
    """What the CPU beside a GPU does, as this one does it: rows are made, read and batched."""
    if not isinstance(session.task, GeneratingTask):
        return Speeds(flops=OTHER_FLOPS, unit_s=UNIT_S)
    try:
        found = _run(session, RuntimeSettings(kind="local"), [*ROWS, "batch"], 1)
    except InputError as error:
        return Speeds(flops=OTHER_FLOPS, notes=(f"making and reading rows is left out: {error}",))
    note = "rows are made, read and batched as fast as one core here does it (measured)"
    return Speeds(flops=OTHER_FLOPS, rates=_rates(found), notes=(note,))


def _rates(found: Sequence[Found]) -> dict[str, Rate]:
    """The processes' mean, by primitive; the largest of what comes first."""
    rates: dict[str, list[Mapping[str, float]]] = {}
    for one in found:
        for phase in one.values():
            for name, rate in phase.items():
                if isinstance(rate, dict):
                    rates.setdefault(name, []).append(rate)
    return {
        name: Rate(
            call=mean(r["call"] for r in each),
            sample=mean(r["sample"] for r in each),
            batch=each[0]["batch"],
            first=max(r["first"] for r in each),
        )
        for name, each in rates.items()
    }


def _share(found: Sequence[Found]) -> float:
    """Of a core, that a process had while it worked on a model."""
    phases = [one[phase] for one in found for phase in MODEL]
    share: float = sum(p["cpu"] for p in phases) / sum(p["wall"] for p in phases)
    return min(1.0, share)


def _run(
    session: Session, runtime: RuntimeSettings, phases: Sequence[str], processes: int
) -> list[Found]:
    """Per process {phase: what it found}; of "start", its processor seconds and bytes till then."""
    context = {**session.context, "variations": {}}
    job = {
        "threads": runtime.threads,
        "gpus": runtime.num_gpus,
        "seconds": SECONDS,
        "batches": batches(session.outline),
    }
    found: list[Found] = [{} for _ in range(processes)]
    with (
        tempfile.TemporaryDirectory(prefix="distinf-plan-") as folder,
        _children(processes, runtime.num_gpus) as children,
    ):
        for place, child in enumerate(children):
            _tell(child, {**job, "context": {**context, "root": f"{folder}/{place}"}})
        for phase in ("start", *phases):
            for child in children if phase != "start" else ():
                _tell(child, {"phase": phase})
            for one, child in zip(found, children, strict=True):
                one[phase] = _told(child)
    return found


@contextlib.contextmanager
def _children(count: int, gpus: float) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes with this one's import path, each with its GPU if any; all are gone afterwards."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    children: list[subprocess.Popen[str]] = []
    try:
        for place in range(count):
            if gpus:
                device = int(place * gpus) % torch.cuda.device_count()
                environment["CUDA_VISIBLE_DEVICES"] = str(device)
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD],
                env=environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            children.append(child)
        yield children
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.communicate()


def _tell(child: subprocess.Popen[str], message: Mapping[str, Any]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its last words, or its silence, say why
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()


def _told(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    answer = json.loads(line) if line else {"error": "the measuring process died"}
    if "error" in answer:
        raise InputError(f"{answer['error']}; or plan without measuring, as in --gflops 10")
    return dict(answer)
