"""What a run will take, stage by stage, before it runs; and the refusal of what cannot fit."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from distinf.config import RunConfig
from distinf.empirical.session import Session as EmpiricalSession
from distinf.errors import InputError
from distinf.gram.session import Session as GramSession
from distinf.planning import calibration, devices, passes, steps
from distinf.planning.driver import driver_bytes
from distinf.planning.expected import Plan
from distinf.planning.room import (
    refuse_few,
    refuse_overfull,
    refuse_roomless,
    room,
    with_fewer_workers,
)
from distinf.planning.speeds import (
    BATCHES,
    NETWORK_BYTES_S,
    NETWORK_NOTE,
    Speeds,
    batches,
    precisions,
    reading,
    scaled,
    split_bytes,
)
from distinf.planning.staging import SpeedsOf, StagePlan, stage_plans
from distinf.runtime import Node, RuntimeSettings, this_machine
from distinf.spectral.session import Outline, Session
from distinf.store import Blobs, open_root
from distinf.tasks.task import Task

SPARE_BYTES = 64 << 20  # beside what the plan stores: metadata, the report, a margin
UNSEEN = "the cluster's machines are asked when the run starts; memory is not checked here"
SHARDS = {  # what to raise where a stage cannot use all workers
    "train": "train.shards", "curvature": "curvature.shards", "queries": "curvature.shards",
}  # fmt: skip
ASSUMED_GFLOPS = 10.0  # where times are not asked for
KNOWN: Mapping[type, tuple[Callable[..., SpeedsOf], Callable[..., SpeedsOf]]] = {
    GramSession: (passes.measured_passes, passes.roofline_passes),
    EmpiricalSession: (steps.measured_steps, steps.roofline_steps),
}
NOTED = 0.05  # of the whole time, from which on a remedy is named


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
    if not isinstance(session, Session):
        return _of_passes(session, config, gflops, gpu, gpus, blobs)
    if gpu is not None:
        return _on_gpus(session, config, devices.device(gpu), gpus, blobs)
    config = _fitting(session, config)
    workers = workers_of(config.runtime)
    if gflops is not None:
        speeds = assumed(config.runtime, gflops)
    else:
        # A run that cannot fit is refused before anything of its size is measured.
        refuse_what_cannot_fit(quick_plans(session, config.runtime), config.runtime, blobs)
        speeds = calibration.measured(session, config.runtime, workers)

    def of_model(outline: Outline) -> Speeds:
        return scaled(speeds, session.outline, outline)

    speeds_of = _with_network(of_model, config.runtime)
    found, notes = _with_reading(session, workers, speeds_of, config.runtime)
    notes += refuse_what_cannot_fit(found, config.runtime, blobs)
    notes += [UNSEEN] if joins(config.runtime) else []
    each = "this machine" if config.runtime.address is None else "a cluster like this machine"
    plural = "s" if workers > 1 else ""
    where = f"{workers} worker{plural} of {config.runtime.threads} thread(s) on {each}"
    undisturbed = partial(_undisturbed, speeds_of)
    idle, _ = _with_reading(session, workers, undisturbed, config.runtime)
    return Plan(
        tuple(found), workers, where, (*speeds_of(session.outline).notes, *notes), speeds.share,
        idle_seconds=sum(stage.seconds for stage in idle), driver=driver_bytes(session),
    )  # fmt: skip


def _of_passes(
    session: Any,
    config: RunConfig,
    gflops: float | None,
    gpu: str | None,
    gpus: int,
    blobs: Blobs,
) -> Plan:
    """A run of any other recipe; the work of some is known, to be measured."""
    config = config if gpu is not None else _fitting(session, config)
    runtime = config.runtime
    known = next((ways for kind, ways in KNOWN.items() if isinstance(session, kind)), None)
    if gpu is not None and known is None:
        told = "nothing of this run is computed on a GPU; leave it out"
        if config.RECIPE.task is Task:
            told = f"recipe {config.recipe} does not say what it does there; give --gflops instead"
        raise InputError(f"--gpu {gpu}: {told}")
    workers, where = workers_of(runtime), "this machine"
    if gpu is not None:
        if gpus < 1:
            raise InputError(f"--gpus {gpus}: give at least 1")
        device = devices.device(gpu)
        assert known is not None
        speeds_of = known[1](session, device)
        runtime = _with_gpus(runtime)
        workers, where = max(1, int(gpus / runtime.num_gpus)), f"{gpus} x {gpu}"
    elif gflops is not None or known is None:
        flat = assumed(config.runtime, ASSUMED_GFLOPS if gflops is None else gflops)

        def speeds_of(outline: Any) -> Speeds:
            return flat

    else:
        refuse_what_cannot_fit(quick_plans(session, config.runtime), config.runtime, blobs)
        speeds_of = known[0](session, config.runtime)
    speeds_of = _with_network(speeds_of, runtime, gpu)
    found = stage_plans(session, workers, speeds_of, runtime)
    notes = [*speeds_of(session.outline).notes]
    if gpu is None:
        notes += refuse_what_cannot_fit(found, runtime, blobs)
        notes += [UNSEEN] if joins(runtime) else []
    else:
        _refuse_what_no_gpu_holds(found, runtime, device)
    where = where if gpu else f"{workers} workers of {runtime.threads} thread(s) on {where}"
    idle = stage_plans(session, workers, partial(_undisturbed, speeds_of), runtime)
    return Plan(
        tuple(found), workers, where, tuple(notes), speeds_of(session.outline).share,
        gpus if gpu else 0, sum(stage.seconds for stage in idle), driver_bytes(session),
    )  # fmt: skip


def _with_gpus(runtime: RuntimeSettings) -> RuntimeSettings:
    """The same with a GPU for each worker, unless it says how much of one."""
    return replace(runtime, kind="ray", num_gpus=runtime.num_gpus or 1.0)


def _on_gpus(
    session: Session, config: RunConfig, gpu: devices.Device, gpus: int, blobs: Blobs
) -> Plan:
    if gpus < 1:
        raise InputError(f"--gpus {gpus}: give at least 1")
    runtime = _with_gpus(config.runtime)
    share, most = min(runtime.num_gpus, 1.0), max(1, int(gpus / runtime.num_gpus))
    _refuse_what_no_gpu_holds(quick_plans(session, runtime), runtime, gpu)
    workers = min(runtime.workers or most, most)
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
            outline.shapes.forwards,
        )
        # Workers that share a GPU share its speed; rows are made into batches by the CPU.
        rows = host.rates["batch"].sample if "batch" in host.rates else 0.0
        fed = {n: r.times(1 / share, calls=1.0).plus(BATCHES, rows) for n, r in rates.items()}
        return replace(host, rates={**host.rates, **fed}, network=NETWORK_BYTES_S)

    found, notes = _with_reading(session, workers, speeds_of, runtime)
    idling = devices.too_small(speeds_of(session.outline).rates)
    assumed = filter(None, [session.outline.shapes.assumption])
    notes = [devices.assumptions(gpu), *assumed, NETWORK_NOTE, *host.notes, *idling, *notes]
    if workers < most:
        notes.append(f"runtime.workers is {workers}: {gpus - workers * share:g} GPUs have no work")
    free = blobs.free_bytes()
    if free is not None and sum(p.bytes for p in found) > free:
        notes.append(f"{blobs.root} has {free / 1e9:.1f} GB free here, less than what is stored")
    return Plan(
        tuple(found), workers, f"{gpus} x {gpu.name}", tuple(notes), gpus=gpus,
        driver=driver_bytes(session),
    )  # fmt: skip


def _with_reading(
    session: Session, workers: int, speeds_of: SpeedsOf, runtime: RuntimeSettings
) -> tuple[list[StagePlan], list[str]]:
    """The stages, and what could make them faster: rows kept in memory, more shards."""

    def with_reading(outline: Outline) -> Speeds:
        return reading(speeds_of(outline), outline)

    found = stage_plans(session, workers, with_reading, runtime)
    whole = sum(p.seconds for p in found)
    read_s = whole - sum(p.seconds for p in stage_plans(session, workers, speeds_of, runtime))
    notes = []
    if read_s > NOTED * whole:
        size = max(split_bytes(session.outline).values())
        notes.append(
            f"{read_s / 3600:.2g} h of it read stored rows again and again; data.cache_mb "
            f"{size / 2**20:.0f} would keep them in each worker's memory"
        )
    for p in found:
        name = p.stage.rpartition(": ")[2]
        if name in SHARDS and p.workers < workers and p.seconds > NOTED * whole:
            knob = SHARDS[name]
            notes.append(f"{p.stage} can use {p.workers} of {workers} workers: raise {knob}")
    return found, notes


def _with_network(
    speeds_of: SpeedsOf, runtime: RuntimeSettings, gpu: str | None = None
) -> SpeedsOf:
    """With a network between workers and the store, unless all of them are on this machine."""
    if gpu is None and not joins(runtime):
        return speeds_of

    def over_network(outline: Any) -> Speeds:
        found = speeds_of(outline)
        return replace(found, network=NETWORK_BYTES_S, notes=(*found.notes, NETWORK_NOTE))

    return over_network


def _undisturbed(speeds_of: SpeedsOf, outline: Outline) -> Speeds:
    return speeds_of(outline).undisturbed()


def workers_of(runtime: RuntimeSettings) -> int:
    """How many workers this machine (or one like it) would have; 1 where it has no GPU for one."""
    if runtime.kind == "local":
        return 1
    return runtime.workers or max(1, room(this_machine(), runtime.resources))


def assumed(runtime: RuntimeSettings, gflops: float) -> Speeds:
    """Everything at this rate of arithmetic."""
    if not gflops > 0:
        raise InputError(f"--gflops {gflops:g}: give a number above 0")
    start_s = 0.0 if runtime.kind == "local" else Speeds.start_s
    note = f"times at an assumed {gflops:g} GFLOP/s a worker; not measured"
    return Speeds(flops=gflops * 1e9, start_s=start_s, notes=(note,))


def quick_plans(session: Any, runtime: RuntimeSettings) -> list[StagePlan]:
    """Units, bytes and memory; the times are not to be looked at."""
    speeds = assumed(runtime, ASSUMED_GFLOPS)
    return stage_plans(session, workers_of(runtime), lambda _: speeds, runtime)


# -- refusals ------------------------------------------------------------------------------


def refuse_what_cannot_fit(
    plans: Sequence[StagePlan],
    runtime: RuntimeSettings,
    blobs: Blobs,
    nodes: Sequence[Node] | None = None,
) -> list[str]:
    """InputError, naming settings to change, for more than the disk or the workers' machines hold.

    nodes: the machines; without them this one, or none where a cluster is still to be joined.
    Returns what could not be checked, a line each.
    """
    free = blobs.free_bytes()
    needed = sum(plan.bytes for plan in plans) + SPARE_BYTES
    if free is not None and needed > free:
        largest = max(plans, key=lambda p: p.bytes)
        raise InputError(
            f"out: the run stores about {needed / 1e9:.1f} GB (most in '{largest.stage}') but "
            f"{blobs.root} has {free / 1e9:.1f} GB free; choose another --out or a smaller run"
        )
    stages = [plan.asked for plan in plans if plan.units]
    if nodes is not None:
        refuse_roomless(stages, runtime, nodes)
    elif not joins(runtime) and not runtime.num_gpus:
        with_gpus = [s for s in stages if s.resources.num_gpus]
        refuse_roomless(with_gpus, runtime, _machines(runtime))
    nodes = _machines(runtime) if nodes is None else nodes
    if nodes:
        refuse_few(stages, runtime, nodes)
    return refuse_overfull(stages, runtime, nodes)


def _machines(runtime: RuntimeSettings) -> list[Node]:
    """This one; none where a cluster is still to be joined."""
    if joins(runtime):
        return []
    here = this_machine()  # Ray is told of as many CPUs as the workers that are asked for take
    return [replace(here, cpus=max(here.cpus, runtime.workers * runtime.num_cpus))]


def fitting_runtime(
    session: Any, runtime: RuntimeSettings, nodes: Sequence[Node] | None = None
) -> RuntimeSettings:
    """With no more workers than the machines' memory holds, where their number is left open."""
    stages = [plan.asked for plan in quick_plans(session, runtime) if plan.units]
    return with_fewer_workers(stages, runtime, _machines(runtime) if nodes is None else nodes)


def _fitting(session: Any, config: RunConfig) -> RunConfig:
    return config.model_copy(update={"runtime": fitting_runtime(session, config.runtime)})


def joins(runtime: RuntimeSettings) -> bool:
    """Whether the run's workers are on a cluster that is there already."""
    return runtime.kind == "ray" and runtime.address not in (None, "local")


def _refuse_what_no_gpu_holds(
    plans: Sequence[StagePlan], runtime: RuntimeSettings, gpu: devices.Device
) -> None:
    """Hosts are not known here, and not looked at."""
    node = Node(gpu.name, 1.0, math.inf, (gpu.memory,))
    alone = replace(runtime, num_cpus=1.0)
    refuse_overfull([plan.asked for plan in plans if plan.units], alone, [node])
