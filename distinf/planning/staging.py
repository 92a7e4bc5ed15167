"""What each stage of a run takes: its units' costs, shared out among workers."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distinf.engine import running
from distinf.engine.recipe import REPORT
from distinf.engine.session import Session
from distinf.engine.stage import Stage
from distinf.planning.room import Asked, demand
from distinf.planning.speeds import REPORT_S, STAGE_S, Speeds
from distinf.runtime import Cost, RuntimeSettings, Unit

RANK_ZERO = ("checkpoint", "model", "gradient")  # work of a gang that is not shared

SpeedsOf = Callable[[Any], Speeds]  # of an outline


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take. `bytes` are stored; `memory` is the peak of one worker in its
    host's memory, of which `cached` are rows that it keeps, and `gpu_memory` that on its GPU, if it
    has one; `workers` is how many have work at once; `asked` is what machines are checked for."""

    stage: str
    units: int
    flops: float
    bytes: float
    memory: float
    gpu_memory: float
    cached: float
    workers: int
    seconds: float
    asked: Asked


def stage_plans(
    session: Session,
    workers: int,
    speeds_of: SpeedsOf,
    runtime: RuntimeSettings = RuntimeSettings(),  # noqa: B008 (frozen)
) -> list[StagePlan]:
    """The run's stages, then those of its variations: each unit once, where it comes first."""
    seen: set[str] = set()
    found: list[StagePlan] = []
    for each, stage in running.parts(session):
        new = [(unit, cost) for unit, cost in stage.units(each.outline) if unit.id not in seen]
        seen |= {unit.id for unit, _ in new}
        if new or each is session:
            speeds = speeds_of(each.outline)
            start_s = speeds.start_s if new and not any(p.units for p in found) else 0.0
            of = _asked(each, stage, [cost for _, cost in new], speeds.base, runtime)
            found.append(_stage_plan(each, stage, new, workers, speeds, start_s, of))
    return found


def _asked(
    session: Session, stage: Stage, costs: Sequence[Cost], base: float, runtime: RuntimeSettings
) -> Asked:
    """What the stage's workers hold, and how many there can be."""
    own = stage.resources
    jobs = own(session.settings) if own and runtime.kind == "ray" else None
    resources = jobs or runtime.resources
    on_gpu = on_gpus(runtime) or (resources.num_gpus > 0 and runtime.kind == "ray")
    demands = dict.fromkeys(demand(cost, base, session.kept_rows(), on_gpu) for cost in costs)
    ranks = stage.ranks(session.settings) if stage.ranks else None
    return Asked(
        stage=running.part_of(session, stage).title,
        most=ranks or (stage.shards(session.settings) if stage.shards else len(costs)),
        resources=resources,
        gpu_setting="actions.resources_gpus" if jobs else "runtime.num_gpus",
        demands=tuple(demands),
        least=ranks or 1,
    )


def _stage_plan(
    session: Session,
    stage: Stage,
    units: Sequence[tuple[Unit, Cost]],
    workers: int,
    speeds: Speeds,
    start_s: float,
    asked: Asked,
) -> StagePlan:
    costs = [cost for _, cost in units]
    shards = stage.shards(session.settings) if stage.shards else None
    shards = stage.ranks(session.settings) if stage.ranks else shards
    useful = max(1, min(workers, len(costs) if shards is None else shards))
    if stage.name == REPORT:
        seconds = REPORT_S
    elif shards is None:
        times = [speeds.seconds(cost) + speeds.commit_s(cost) for cost in costs]
        seconds = makespan(times, useful) + _first_s(costs, speeds)
    else:
        seconds = sum(_gang_s(cost, speeds, shards, useful) for cost in costs)
    cached = session.kept_rows() if costs else ()
    return StagePlan(
        stage=running.part_of(session, stage).title,
        units=len(costs),
        flops=sum(cost.flops for cost in costs),
        bytes=sum(cost.bytes for cost in costs),
        memory=asked.host,
        gpu_memory=asked.gpu,
        cached=sum(lever.bytes for lever in cached),
        workers=useful,
        seconds=seconds + STAGE_S + start_s if costs else 0.0,
        asked=asked,
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


def on_gpus(runtime: RuntimeSettings) -> bool:
    """Whether workers compute on GPUs; in this process only if there is one here."""
    return runtime.num_gpus > 0 and (runtime.kind == "ray" or torch.cuda.is_available())
