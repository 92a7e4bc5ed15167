"""What a run will take, stage by stage, before it runs; and the refusal of what cannot fit."""

import heapq
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

import torch

from distinf.config import RunConfig
from distinf.errors import InputError
from distinf.planning import calibration, devices, passes
from distinf.planning.speeds import (
    REPORT_S,
    STAGE_S,
    Speeds,
    batches,
    cached_bytes,
    precisions,
    reading,
    scaled,
    split_bytes,
)
from distinf.runtime import Cost, RuntimeSettings, Unit
from distinf.stages import route
from distinf.stages.basis.session import Outline, Session
from distinf.stages.basis.settings import StageSettings
from distinf.store import Blobs, open_root

SPARE_BYTES = 64 << 20  # beside what the plan stores: metadata, the report, a margin
NOTED = 0.05  # of the whole time, from which on a remedy is named
GPU_SHARE = 0.9  # of a GPU's memory; the rest is the CUDA context and fragmentation
# How many ranks can share a unit of a gang's stage. Other stages spread whole units.
GANGS: Mapping[str, Callable[[StageSettings], int]] = {
    "train": lambda settings: settings.train.shards,
    "curvature": lambda settings: settings.curvature.shards,
    "queries": lambda settings: settings.curvature.shards,
}
RANK_ZERO = ("checkpoint", "model", "gradient")  # work of a gang that is not shared

SpeedsOf = Callable[[Outline], Speeds]


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take. `bytes` are stored; `memory` is the peak of one worker, of which
    `cached` are rows kept in the host's memory; `workers` is how many have work at once."""

    stage: str
    units: int
    flops: float
    bytes: float
    memory: float
    cached: float
    workers: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The stages in order, on how many workers of what kind, and what the times rest on."""

    stages: tuple[StagePlan, ...]
    workers: int
    where: str
    notes: tuple[str, ...]
    share: float = 1.0  # of a core, that a worker is taken to have
    gpus: int = 0
    idle_seconds: float | None = None  # if nothing else were at work here

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def bytes(self) -> float:
        return sum(stage.bytes for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """Plain numbers: bytes, seconds, FLOPs."""
        return {**asdict(self), "seconds": self.seconds, "bytes": self.bytes}


def plan(
    config: RunConfig, *, gflops: float | None = None, gpu: str | None = None, gpus: int = 1
) -> Plan:
    """What the run will take.

    On `gpus` GPUs of a named kind, by a roofline; or at an assumed `gflops` a worker; or, without
    either, at speeds measured here for some seconds on as many processes as there will be workers.
    Raises InputError if the run cannot fit the disk or the memory.
    """
    blobs = open_root(str(config.out))
    session: Any = config.session(blobs.root, torch.device("cpu"))
    if session.ROUTE == "gram":
        return _of_passes(session, config, gflops, gpu, gpus, blobs)
    if gpu is not None:
        return _on_gpus(session, config, devices.device(gpu), gpus, blobs)
    workers = workers_of(config.runtime)
    if gflops is not None:
        if not gflops > 0:
            raise InputError(f"--gflops {gflops:g}: give a number above 0")
        note = f"times at an assumed {gflops:g} GFLOP/s a worker; not measured"
        speeds = assumed(config.runtime, gflops * 1e9, note)
    else:
        # A run that cannot fit is refused before anything of its size is measured.
        refuse_what_cannot_fit(quick_plans(session, config.runtime), config.runtime, blobs)
        speeds = calibration.measured(session, config.runtime, workers)

    def speeds_of(outline: Outline) -> Speeds:
        return scaled(speeds, session.outline, outline)

    found, notes = _with_reading(session, workers, speeds_of)
    refuse_what_cannot_fit(found, config.runtime, blobs)
    each = "this machine" if config.runtime.address is None else "a cluster like this machine"
    plural = "s" if workers > 1 else ""
    where = f"{workers} worker{plural} of {config.runtime.threads} thread(s) on {each}"
    idle, _ = _with_reading(session, workers, lambda outline: speeds_of(outline).undisturbed())
    return Plan(
        tuple(found), workers, where, (*speeds.notes, *notes), speeds.share,
        idle_seconds=sum(stage.seconds for stage in idle),
    )  # fmt: skip


def _of_passes(
    session: Any,
    config: RunConfig,
    gflops: float | None,
    gpu: str | None,
    gpus: int,
    blobs: Blobs,
) -> Plan:
    """A run of the Gram route."""
    workers, where = workers_of(config.runtime), "this machine"
    if gpu is not None:
        if gpus < 1:
            raise InputError(f"--gpus {gpus}: give at least 1")
        device = devices.device(gpu)
        speeds = passes.roofline_passes(session, device)
        workers, where = max(1, int(gpus / (config.runtime.num_gpus or 1.0))), f"{gpus} x {gpu}"
    elif gflops is not None:
        if not gflops > 0:
            raise InputError(f"--gflops {gflops:g}: give a number above 0")
        note = f"times at an assumed {gflops:g} GFLOP/s a worker; not measured"
        speeds = assumed(config.runtime, gflops * 1e9, note)
    else:
        refuse_what_cannot_fit(quick_plans(session, config.runtime), config.runtime, blobs)
        speeds = passes.measured_passes(session, config.runtime)
    found = stage_plans(session, workers, lambda _: speeds)
    if gpu is None:
        refuse_what_cannot_fit(found, config.runtime, blobs)
    else:
        _refuse_what_no_gpu_holds(found, device, min(config.runtime.num_gpus or 1.0, 1.0))
    where = where if gpu else f"{workers} workers of {config.runtime.threads} thread(s) on {where}"
    return Plan(tuple(found), workers, where, speeds.notes, gpus=gpus if gpu else 0)


def _on_gpus(
    session: Session, config: RunConfig, gpu: devices.Device, gpus: int, blobs: Blobs
) -> Plan:
    if gpus < 1:
        raise InputError(f"--gpus {gpus}: give at least 1")
    share = min(config.runtime.num_gpus or 1.0, 1.0)
    room = max(1, int(gpus / (config.runtime.num_gpus or 1.0)))
    workers = min(config.runtime.workers or room, room)
    host = calibration.host_speeds(session)

    def speeds_of(outline: Outline) -> Speeds:
        settings = outline.settings
        rates = devices.roofline(
            gpu,
            outline.shapes.flops_per_sample,
            outline.shapes.activation_bytes_per_sample,
            precisions(settings),
            batches(outline),
            settings.gradients.chosen,
        )
        # Workers that share a GPU share its speed; rows are made into batches by the CPU.
        slower = {n: replace(rate, sample=rate.sample / share) for n, rate in rates.items()}
        rows = host.rates["batch"].sample if "batch" in host.rates else 0.0
        fed = {n: replace(rate, sample=rate.sample + rows) for n, rate in slower.items()}
        return replace(host, rates={**host.rates, **fed})

    found, notes = _with_reading(session, workers, speeds_of)
    _refuse_what_no_gpu_holds(found, gpu, share)
    idling = devices.too_small(speeds_of(session.outline).rates)
    notes = [devices.assumptions(gpu), *host.notes, *idling, *notes]
    if workers < room:
        notes.append(f"runtime.workers is {workers}: {gpus - workers * share:g} GPUs have no work")
    free = blobs.free_bytes()
    if free is not None and sum(p.bytes for p in found) > free:
        notes.append(f"{blobs.root} has {free / 1e9:.1f} GB free here, less than what is stored")
    return Plan(tuple(found), workers, f"{gpus} x {gpu.name}", tuple(notes), gpus=gpus)


def _with_reading(
    session: Session, workers: int, speeds_of: SpeedsOf
) -> tuple[list[StagePlan], list[str]]:
    """The stages, and what could make them faster: rows kept in memory, more shards."""
    found = stage_plans(session, workers, lambda outline: reading(speeds_of(outline), outline))
    whole = sum(p.seconds for p in found)
    read_s = whole - sum(p.seconds for p in stage_plans(session, workers, speeds_of))
    notes = []
    if read_s > NOTED * whole:
        size = max(split_bytes(session.outline).values())
        notes.append(
            f"{read_s / 3600:.2g} h of it read stored rows again and again; data.cache_mb "
            f"{size / 2**20:.0f} would keep them in each worker's memory"
        )
    for p in found:
        name = p.stage.rpartition(": ")[2]
        if name in GANGS and p.workers < workers and p.seconds > NOTED * whole:
            knob = "train.shards" if name == "train" else "curvature.shards"
            notes.append(f"{p.stage} can use {p.workers} of {workers} workers: raise {knob}")
    return found, notes


def workers_of(runtime: RuntimeSettings) -> int:
    """How many workers this machine (or one like it) would have."""
    return 1 if runtime.kind == "local" else runtime.workers or os.cpu_count() or 1


def assumed(runtime: RuntimeSettings, flops: float, note: str = "") -> Speeds:
    """Everything at this rate of arithmetic."""
    start_s = 0.0 if runtime.kind == "local" else Speeds.start_s
    return Speeds(flops=flops, start_s=start_s, notes=(note,) if note else ())


def quick_plans(session: Any, runtime: RuntimeSettings) -> list[StagePlan]:
    """Units, bytes and memory; the times are not to be looked at."""
    speeds = assumed(runtime, 1e10)
    return stage_plans(session, workers_of(runtime), lambda _: speeds)


# -- stages --------------------------------------------------------------------------------


def stage_plans(session: Any, workers: int, speeds_of: SpeedsOf) -> list[StagePlan]:
    """The run's stages, then those of its variations: each unit once, where it comes first."""
    seen: set[str] = set()
    found: list[StagePlan] = []
    *stages, last = route.stages_of(session)
    parts = [(each, stage) for each in route.together(session) for stage in stages]
    for each, stage in [*parts, (session, last)]:
        new = [(unit, cost) for unit, cost in stage.units(each.outline) if unit.id not in seen]
        seen |= {unit.id for unit, _ in new}
        if new or each is session:
            speeds = speeds_of(each.outline)
            start_s = speeds.start_s if new and not any(p.units for p in found) else 0.0
            found.append(_stage_plan(each, stage, new, workers, speeds, start_s))
    return found


def _stage_plan(
    session: Any,
    stage: ModuleType,
    units: Sequence[tuple[Unit, Cost]],
    workers: int,
    speeds: Speeds,
    start_s: float,
) -> StagePlan:
    costs = [cost for _, cost in units]
    gang = session.ROUTE == "basis" and stage.NAME in GANGS
    shards = GANGS[stage.NAME](session.settings) if gang else None
    useful = max(1, min(workers, len(costs) if shards is None else shards))
    if stage.NAME == "report":
        seconds = REPORT_S
    elif shards is None:
        times = [speeds.seconds(cost) + speeds.commit_s(cost) for cost in costs]
        seconds = makespan(times, useful) + _first_s(costs, speeds)
    else:
        seconds = sum(_gang_s(cost, speeds, shards, useful) for cost in costs)
    cached = cached_bytes(session.outline) if session.ROUTE == "basis" else 0.0
    peak = max((cost.memory for cost in costs), default=0.0)
    return StagePlan(
        stage=route.titled(session, stage),
        units=len(costs),
        flops=sum(cost.flops for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        memory=peak + cached + speeds.base if costs else 0.0,
        cached=cached if costs else 0.0,
        workers=useful,
        seconds=seconds + STAGE_S + start_s if costs else 0.0,
    )


def _gang_s(cost: Cost, speeds: Speeds, shards: int, ranks: int) -> float:
    """One unit of a gang: the rank that owns most shards is waited for, then rank 0 commits."""
    alone = {name: n for name, n in cost.work.items() if name in RANK_ZERO}
    shared = {name: n for name, n in cost.work.items() if name not in RANK_ZERO}
    most = -(-shards // ranks) / shards
    if not speeds.knows(cost):
        return most * speeds.seconds(cost) + speeds.commit_s(cost)
    waited = most * speeds.work_s(cost, shared)
    return waited + speeds.work_s(cost, alone) + speeds.commit_s(cost)


def makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last unit ends, each going to whichever worker is free first, in order."""
    free = [0.0] * min(workers, max(len(seconds), 1))
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def _first_s(costs: Sequence[Cost], speeds: Speeds) -> float:
    names = {name for cost in costs for name in cost.work}
    return max((speeds.rates[name].first for name in names if name in speeds.rates), default=0.0)


# -- refusals ------------------------------------------------------------------------------


def refuse_what_cannot_fit(
    plans: Sequence[StagePlan], runtime: RuntimeSettings, blobs: Blobs
) -> None:
    """InputError, naming the settings to change, for more than this disk or memory holds."""
    free = blobs.free_bytes()
    needed = sum(plan.bytes for plan in plans) + SPARE_BYTES
    if free is not None and needed > free:
        largest = max(plans, key=lambda p: p.bytes)
        raise InputError(
            f"out: the run stores about {needed / 1e9:.1f} GB (most in '{largest.stage}') but "
            f"{blobs.root} has {free / 1e9:.1f} GB free; choose another --out or a smaller run"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    here = workers_of(runtime) if runtime.address is None else 1  # a cluster's lie elsewhere
    worst = max(plans, key=lambda p: p.memory)
    if here * worst.memory > memory:
        raise InputError(
            f"{worst.stage}: the workers need about {here * worst.memory / 1e9:.1f} GB but this "
            f"machine has {memory / 1e9:.1f} GB; lower runtime.workers, {_largest(worst)}"
        )


def _refuse_what_no_gpu_holds(
    plans: Sequence[StagePlan], gpu: devices.Device, share: float
) -> None:
    room = gpu.memory * GPU_SHARE * share
    worst = max(plans, key=lambda p: p.memory - p.cached)
    needed = worst.memory - worst.cached
    if needed > room:
        raised = "raise runtime.num_gpus, or " if share < 1 else ""
        raise InputError(
            f"{worst.stage}: a worker needs about {needed / 1e9:.1f} GB but its part of a "
            f"{gpu.name} has {room / 1e9:.1f} GB; {raised}lower {_largest(worst)}"
        )


def _largest(worst: StagePlan) -> str:
    """The settings that the memory of a stage goes by."""
    name = worst.stage.rpartition(": ")[2]
    own = {
        "train": "train.batch_size (or raise train.shards)",
        "evaluate": "evaluate.batch_size",
        "curvature": "curvature.memory_mb, curvature.steps or curvature.keep",
        "queries": "curvature.memory_mb or curvature.refine_steps",
        "gradients": "gradients.chunk, curvature.keep or targets.count",
        "trajectory": "gradients.chunk or targets.count",
        "scores": "targets.count",
        "attribution": "curvature.keep or gradients.chunk",
        "actions": "actions.batch_size",
        "gram": "gram.rows_per_tile or gradients.slab",
    }
    cache = "data.cache_mb" if worst.cached > worst.memory / 4 else ""
    return ", ".join(filter(None, [cache, own.get(name, "the batch size")]))
