"""What each stage of a run takes: its units' costs, shared out among workers."""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from distinf.engine import running
from distinf.engine.recipe import REPORT
from distinf.engine.session import Session
from distinf.engine.stage import Stage
from distinf.planning.room import Asked, demand
from distinf.planning.speeds import (
    DRIVER,
    DRIVER_S,
    FIXED,
    LOADING,
    NETWORK,
    PARTS,
    READ_BYTES_S,
    READS,
    REPORT_S,
    STAGE_S,
    WRITES,
    Speeds,
    row_bytes,
)  # fmt: skip
from distinf.runtime import Cost, RuntimeSettings

SpeedsOf = Callable[[Any], Speeds]  # of an outline


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take. `bytes` are stored and `read` read, by all workers together;
    `network` are bytes that cross hosts, each worker and the store on one of its own, and 0 where
    all is on this machine. `memory` is the peak of one worker in its host's memory, of which
    `cached` are rows that it keeps, and `gpu_memory` that on its GPU, if it has one; both also by
    part. `workers` is how many have work at once; `parts` are the seconds of a worker by what they
    go into (the network's overlap with the store's); `asked` is what machines are checked for."""

    stage: str
    units: int
    flops: float
    bytes: float
    memory: float
    gpu_memory: float
    cached: float
    workers: int
    seconds: float
    read: float
    network: float
    parts: Mapping[str, float]
    memory_parts: Mapping[str, float]
    gpu_parts: Mapping[str, float]
    asked: Asked

    def later(self, seconds: float) -> "StagePlan":
        """The same with so much more of a fixed start."""
        parts = {**self.parts, FIXED: self.parts.get(FIXED, 0.0) + seconds}
        return replace(self, seconds=self.seconds + seconds, parts=parts)

    @property
    def bound(self) -> str:
        """What most of its time goes into."""
        return most(self.parts)


def most(parts: Mapping[str, float]) -> str:
    """The largest of them."""
    return max(parts, key=lambda name: parts[name], default="")


def stage_plans(
    session: Session,
    workers: int,
    speeds_of: SpeedsOf,
    runtime: RuntimeSettings = RuntimeSettings(),  # noqa: B008 (frozen)
) -> list[StagePlan]:
    """The run's stages, then those of its variations: each unit once, where it comes first."""
    seen: set[str] = set()
    loaded: dict[str, Counter[str]] = {}  # by run or variation, what its workers have in memory
    found: list[StagePlan] = []
    started = 0  # workers
    for each, stage in running.parts(session):
        new = [(unit, cost) for unit, cost in stage.units(each.outline) if unit.id not in seen]
        seen |= {unit.id for unit, _ in new}
        if new or each is session:
            speeds = speeds_of(each.outline)
            start_s = speeds.start_s if new and not any(p.units for p in found) else 0.0
            costs = [cost for _, cost in new]
            of = _asked(each, stage, costs, speeds.base, runtime)
            had = loaded.setdefault(each.name, Counter())
            made = _stage_plan(each, stage, costs, workers, speeds, start_s, of, had)
            if costs and 0 < started < made.workers:
                made = made.later(speeds.worker_s)
            started = max(started, made.workers if costs else 0)
            found.append(made)
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
    shards = stage.shards(session.settings) if stage.shards else None
    return Asked(
        stage=running.part_of(session, stage).title,
        most=ranks * len(costs) if ranks else shards or len(costs),
        resources=resources,
        gpu_setting="actions.resources_gpus" if jobs else "runtime.num_gpus",
        demands=tuple(demands),
        least=ranks or 1,
        sharing=stage.sharing,
    )


def _stage_plan(
    session: Session,
    stage: Stage,
    costs: Sequence[Cost],
    workers: int,
    speeds: Speeds,
    start_s: float,
    asked: Asked,
    had: Counter[str],
) -> StagePlan:
    """`had`: of what the run's workers have loaded, how many have it; this stage's is added."""
    of_gang, at_once, share = _side_by_side(session.settings, stage, workers, len(costs))
    useful = of_gang * at_once
    units = [speeds.unit_parts(cost, share) for cost in costs]
    times = [sum(unit.values()) for unit in units]
    parts = {name: sum(unit[name] for unit in units) / at_once for name in PARTS}
    seconds = makespan(times, at_once)
    rows, loaded = _reads(session.outline, costs, useful, of_gang, had)
    read, stored = sum(cost.read for cost in costs) + rows + loaded, sum(c.bytes for c in costs)
    moved = read + stored + (of_gang - 1) * sum(cost.summed for cost in costs)
    network = moved if speeds.network < math.inf else 0.0
    load_s = loaded / useful / READ_BYTES_S
    network_s = network / useful / speeds.network
    beside_s = max(0.0, network_s - load_s - parts[READS] - parts[WRITES])
    fixed_s = STAGE_S + start_s + _first_s(costs, speeds)
    if stage.name == REPORT:
        seconds, fixed_s = 0.0, REPORT_S + STAGE_S + start_s
    parts |= {DRIVER: DRIVER_S * len(costs), NETWORK: network_s, FIXED: fixed_s}
    parts[LOADING] += load_s
    return StagePlan(
        stage=running.part_of(session, stage).title,
        units=len(costs),
        flops=sum(cost.flops for cost in costs),
        bytes=stored,
        memory=asked.host,
        gpu_memory=asked.gpu,
        cached=sum(lever.bytes for lever in session.kept_rows()) if costs else 0.0,
        workers=useful,
        seconds=max(seconds, parts[DRIVER]) + load_s + beside_s + fixed_s if costs else 0.0,
        read=read,
        network=network,
        parts={name: s for name, s in parts.items() if s and costs},
        memory_parts=asked.host_parts,
        gpu_parts=asked.gpu_parts,
        asked=asked,
    )


def _side_by_side(settings: Any, stage: Stage, workers: int, units: int) -> tuple[int, int, float]:
    """(workers of a gang, gangs or workers at once, the largest share of a unit that a rank has).

    Of a gang the rank that owns most shards is waited for, then rank 0 commits.
    """
    shards = stage.shards(settings) if stage.shards else None
    ranks = stage.ranks(settings) if stage.ranks else None
    size = ranks or shards or 1
    of_gang = max(1, min(workers, size))
    at_once = 1 if shards and not ranks else max(1, min(workers // of_gang, units))
    return of_gang, at_once, -(-size // of_gang) / size


def _reads(
    outline: Any, costs: Sequence[Cost], workers: int, of_gang: int, had: Counter[str]
) -> tuple[float, float]:
    """Bytes of rows that units read, and of what their workers load, of which `of_gang` share each
    unit. `had` counts the workers that have it, and those that get it here."""
    read, loaded, sizes, units = 0.0, 0.0, dict[str, float](), Counter[str]()
    for cost in costs:
        rows, kept = row_bytes(outline, cost.work)
        read += rows
        sizes |= {**cost.loaded, **kept}
        units.update([*cost.loaded, *kept])
    for name, size in sizes.items():
        new = max(0, min(workers, of_gang * units[name]) - had[name])
        had[name] += new
        loaded += size * new
    return read, loaded


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
