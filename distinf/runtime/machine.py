"""What a machine has: CPUs, GPUs and memory, within the limits of its container."""

import math
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
BOOT = Path("/proc/sys/kernel/random/boot_id")
LISTED = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Node:
    """A machine that workers can run on.

    cpus    as the runtime counts them
    memory  bytes that its workers can hold together
    gpus    bytes of each of its GPUs; None for one whose size nobody knows
    """

    name: str
    cpus: float
    memory: float
    gpus: tuple[float | None, ...] = ()


def this_machine() -> Node:
    """What a runtime that is started here can give to workers."""
    gpus: tuple[float, ...] = ()
    if torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        gpus = tuple(float(torch.cuda.get_device_properties(k).total_memory) for k in cards)
    return Node("this machine", cpus_here(), memory_here(), gpus)


def processes_killed_for_memory(counts: str = "/proc/vmstat") -> int | None:
    """How many the kernel of this machine has killed so far; None where it does not say."""
    try:
        with open(counts) as file:
            found = dict(line.split() for line in file)
        return int(found["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None


def cpus_here() -> int:
    """CPUs that this process may use: of the machine, of its affinity, of its container's quota."""
    found = [float(os.cpu_count() or 1)]
    if hasattr(os, "sched_getaffinity"):
        found.append(len(os.sched_getaffinity(0)))
    for file in _limits("cpu", "cpu.max"):
        quota, _, period = file.read_text().strip().partition(" ")
        found += [float(quota) / float(period)] if quota != "max" else []
    for file in _limits("cpu", "cpu.cfs_quota_us"):
        quota = file.read_text().strip()
        period = file.with_name("cpu.cfs_period_us").read_text().strip()
        found += [float(quota) / float(period)] if float(quota) > 0 else []
    return max(1, math.ceil(min(found)))


def memory_here() -> float:
    """Bytes: of the machine, or fewer where a container is limited."""
    found = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for name in ("memory.max", "memory.limit_in_bytes"):
        limits = [file.read_text().strip() for file in _limits("memory", name)]
        found += [float(limit) for limit in limits if limit != "max"]
    return min(found)


def _limits(controller: str, name: str) -> Iterator[Path]:
    """The files `name` of this process's control group and of those above it (versions 1 and 2)."""
    lines = OWN_CGROUP.read_text().splitlines() if OWN_CGROUP.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = CGROUPS / controller if controllers else CGROUPS
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            file = base / folder / name
            if file.is_file():
                yield file


def seen_on_node() -> tuple[str, float, tuple[float, ...]]:
    """Of the machine that this runs on: what tells it from others, its memory, its GPUs' bytes.

    A task without a GPU of its own sees none by CUDA, so the driver's list is asked.
    """
    boot = BOOT.read_text().strip() if BOOT.exists() else ""
    try:
        listed = subprocess.run(LISTED, capture_output=True, text=True, timeout=30, check=False)
        sizes = tuple(float(line) * 2**20 for line in listed.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        sizes = ()
    return f"{socket.gethostname()} {boot}", memory_here(), sizes
