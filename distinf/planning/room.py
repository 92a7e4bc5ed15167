"""Whether workers fit the machines they will run on, and which setting makes them fit."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distinf.errors import InputError
from distinf.runtime import Cost, Lever, Node, Resources, RuntimeSettings
from distinf.runtime.units import by_part

CPUS = "runtime.num_cpus"
ROUNDS = 100  # of fewer workers: each makes one more stage fit one more machine
GPU_SHARE = 0.9  # of a GPU's memory; the rest is the CUDA context and fragmentation


class Overfull(InputError):
    """More than a machine or a GPU holds. ways: settings by dotted key, each of which makes this
    stage fit; none where no setting does."""

    def __init__(self, message: str, ways: Sequence[str], otherwise: str):
        super().__init__(f"{message}; {' or '.join(ways[:3]) or otherwise}")
        found = (re.findall(r"set ([\w.]+)=([\d.]+)", way) for way in ways)
        self.ways = [{key: float(v) if "." in v else int(v) for key, v in way} for way in found]


@dataclass(frozen=True)
class Demand:
    """Peak bytes of one worker on one kind of unit: of its host, and of its GPU if it has one."""

    host: float
    gpu: float = 0.0
    host_levers: tuple[Lever, ...] = ()
    gpu_levers: tuple[Lever, ...] = ()
    host_parts: tuple[tuple[str, float], ...] = ()  # name and bytes of each
    gpu_parts: tuple[tuple[str, float], ...] = ()


def demand(cost: Cost, base: float, cached: Sequence[Lever], on_gpu: bool) -> Demand:
    """`base` and `cached` are what a worker holds on the host beside its unit."""
    kept = {"process": base, "kept rows": sum(lever.bytes for lever in cached)}
    cached = sorted(cached, key=lambda lever: -lever.bytes)[:1]  # it is the first to go
    where = {"host", "staged"} if on_gpu else {"host", "device"}
    host_levers = (*(lever for lever in cost.levers if lever.where in where), *cached)
    staged = {"weights": cost.staged}
    if not on_gpu:
        whole = by_part(cost.memory, cost.device)
        host = by_part(kept, staged if cost.staged > sum(whole.values()) else whole)
        return Demand(sum(host.values()), 0.0, host_levers, (), (*host.items(),))
    on_device = tuple(lever for lever in cost.levers if lever.where in ("device", "gpu"))
    host, device = by_part(kept, cost.memory, staged), by_part(cost.device)
    sizes = sum(host.values()), sum(device.values())
    return Demand(*sizes, host_levers, on_device, (*host.items(),), (*device.items(),))


@dataclass(frozen=True)
class Asked:
    """A stage as machines see it.

    most       how many workers can share it, at most
    resources  of each of them, and the setting that its part of a GPU comes from
    demands    of its units, each kind once
    least      how many workers have to share it
    sharing    the setting that says so
    """

    stage: str
    most: int
    resources: Resources
    gpu_setting: str
    demands: tuple[Demand, ...]
    least: int = 1
    sharing: str = ""

    @property
    def host(self) -> float:
        return max((d.host for d in self.demands), default=0.0)

    @property
    def gpu(self) -> float:
        return max((d.gpu for d in self.demands), default=0.0)

    @property
    def host_parts(self) -> dict[str, float]:
        """Of the kind of unit that takes most of the host."""
        return dict(max(self.demands, key=lambda d: d.host).host_parts) if self.demands else {}

    @property
    def gpu_parts(self) -> dict[str, float]:
        return dict(max(self.demands, key=lambda d: d.gpu).gpu_parts) if self.demands else {}


def room(node: Node, resources: Resources) -> int:
    """How many such workers a machine has CPUs and GPUs for; none has parts of two GPUs."""
    counts = []
    if resources.num_cpus:
        counts.append(int(node.cpus / resources.num_cpus + 1e-9))
    if 0 < resources.num_gpus < 1:
        counts.append(len(node.gpus) * int(1 / resources.num_gpus + 1e-9))
    elif resources.num_gpus:
        counts.append(int(len(node.gpus) / resources.num_gpus + 1e-9))
    return min(counts) if counts else 1


def refuse_roomless(
    stages: Sequence[Asked], runtime: RuntimeSettings, nodes: Sequence[Node]
) -> None:
    """InputError for a stage whose workers no machine has the CPUs and GPUs for."""
    for stage in stages if runtime.kind == "ray" else ():
        if not any(room(node, stage.resources) for node in nodes):
            wanted = stage.resources
            way = f"set {stage.gpu_setting}=0" if wanted.num_gpus else "lower runtime.num_cpus"
            raise InputError(
                f"{stage.stage}: no node has {wanted.num_cpus:g} CPUs and {wanted.num_gpus:g} "
                f"GPUs for one worker; {way} or name another cluster (runtime.address)"
            )


def refuse_few(stages: Sequence[Asked], runtime: RuntimeSettings, nodes: Sequence[Node]) -> None:
    """InputError for a stage that more workers have to share than there is room for."""
    for stage in (stage for stage in stages if stage.least > 1):
        found = sum(room(node, stage.resources) for node in nodes)
        found = 1 if runtime.kind == "local" else min(found, runtime.workers or found)
        if found < stage.least:
            raise InputError(
                f"{stage.stage}: {stage.sharing}={stage.least} workers share a unit, and there is "
                f"room for {found} (runtime.workers={runtime.workers}, of "
                f"{stage.resources.num_cpus:g} CPUs and {stage.resources.num_gpus:g} GPUs each); "
                f"lower {stage.sharing} or name a larger cluster (runtime.address)"
            )


def refuse_overfull(
    stages: Sequence[Asked], runtime: RuntimeSettings, nodes: Sequence[Node]
) -> list[str]:
    """InputError for workers that a machine or a GPU does not hold -> what could not be checked.

    Each machine is taken to get as many workers as it has room for.
    """
    notes = []
    for stage in stages:
        for node in nodes:
            if _workers(stage, runtime, node):
                notes += _refuse_gpu(stage, node)
    for node in nodes:
        _refuse_host(stages, runtime, node, alone=len(nodes) == 1)
    return list(dict.fromkeys(notes))


def with_fewer_workers(
    stages: Sequence[Asked], runtime: RuntimeSettings, nodes: Sequence[Node]
) -> RuntimeSettings:
    """With as many workers as the machines' memory holds, where their number is left open: fewer of
    them, or, on several machines, more CPUs for each. What does not fit so is left to be refused.
    """
    if runtime.kind != "ray" or runtime.workers:
        return runtime
    fitting = runtime
    for _ in range(ROUNDS):
        try:
            refuse_overfull(stages, fitting, nodes)
            return fitting
        except Overfull as error:
            ways = (way for way in error.ways if way.keys() <= {"runtime.workers", CPUS})
            way = next(ways, None)
        if way is None:
            break
        before = fitting.resources
        changes: dict[str, Any] = {key.partition(".")[2]: value for key, value in way.items()}
        fitting = replace(fitting, **changes)
        stages = [
            replace(stage, resources=fitting.resources) if stage.resources == before else stage
            for stage in stages
        ]
    return runtime


def _workers(stage: Asked, runtime: RuntimeSettings, node: Node) -> int:
    if runtime.kind == "local":
        return 1
    found = min(room(node, stage.resources), stage.most)
    return min(found, runtime.workers) if runtime.workers else found


def _refuse_gpu(stage: Asked, node: Node) -> list[str]:
    if not stage.gpu:
        return []
    known = [size for size in node.gpus if size is not None]
    if len(known) < len(node.gpus):
        return [f"the memory of {node.name}'s GPUs is not known, and {stage.stage} not checked"]
    share = min(stage.resources.num_gpus or 1.0, 1.0)
    least = GPU_SHARE * min(known, default=math.inf)
    if stage.gpu <= least * share:
        return []
    ways = lowered(stage.demands, _gpu_part, least * share)
    wanted = math.ceil(stage.gpu / least * 100) / 100
    if share < wanted <= 1:
        ways = [f"set {stage.gpu_setting}={wanted:g}", *ways]
    of = f"its {share:g} of a GPU" if share < 1 else "a GPU"
    raise Overfull(
        f"{stage.stage}: a worker needs about {stage.gpu / 1e9:.1f} GB of GPU memory but {of} "
        f"({node.name}) has {least * share / 1e9:.1f} GB",
        ways,
        "take a larger GPU or a smaller model",
    )


def _refuse_host(
    stages: Sequence[Asked], runtime: RuntimeSettings, node: Node, alone: bool
) -> None:
    over = [s for s in stages if _workers(s, runtime, node) * s.host > node.memory]
    if not over:
        return
    worst = max(over, key=lambda s: _workers(s, runtime, node) * s.host)
    count = _workers(worst, runtime, node)
    fitting = min(int(node.memory / stage.host) for stage in over)
    ways = lowered(worst.demands, _host_part, node.memory / count) if len(over) == 1 else []
    if fitting and alone:
        ways = [f"set runtime.workers={fitting}", *ways]
    elif fitting:  # of a cluster's machines each takes fewer, if a worker asks for more of its CPUs
        more = math.ceil(node.cpus / fitting * 100) / 100
        ways = [f"set {CPUS}={more:g} (so that {fitting} fit a machine)", *ways]
    else:
        worst = max(over, key=lambda s: s.host)
        single = lowered(worst.demands, _host_part, node.memory)
        fewer = "set runtime.workers=1 and " if count > 1 else ""
        ways = [f"{fewer}{way}" for way in single]
    needed = f"{count} workers need about {count * worst.host / 1e9:.1f} GB"
    if count == 1:
        needed = f"a worker needs about {worst.host / 1e9:.1f} GB"
    raise Overfull(
        f"{worst.stage}: {needed} of memory but {node.name} has {node.memory / 1e9:.1f} GB",
        ways,
        "take a machine with more memory or a smaller model",
    )


Part = Callable[[Demand], tuple[float, tuple[Lever, ...]]]


def _host_part(demand: Demand) -> tuple[float, tuple[Lever, ...]]:
    return demand.host, demand.host_levers


def _gpu_part(demand: Demand) -> tuple[float, tuple[Lever, ...]]:
    return demand.gpu, demand.gpu_levers


def lowered(demands: Sequence[Demand], part: Part, limit: float) -> list[str]:
    """Ways to bring every demand below `limit`: each one setting, or else all together, or none."""
    names = {lever.setting: lever for d in demands for lever in part(d)[1]}
    ways = [way for name in names if (way := _alone(name, demands, part, limit))]
    if ways or not names:
        return ways
    together = _together(demands, part, limit)
    return [together] if together else []


def _alone(name: str, demands: Sequence[Demand], part: Part, limit: float) -> str:
    """The value nearest to that of one setting at which every demand fits; "" where none is."""
    best, shown = math.inf, None
    for demand in demands:
        needed, levers = part(demand)
        if needed <= limit:
            continue
        own = [lever for lever in levers if lever.setting == name]
        saved = sum(lever.bytes for lever in own)
        over = needed - limit + sum(lever.raised or 0.0 for lever in own)
        if not own or saved < over:
            return ""
        if own[0].advice:
            return own[0].advice
        shown = own[0]
        best = min(best, shown.value * (1 - over / saved))
    if shown is None or not best:
        return ""
    if shown.raised is not None:
        return f"set {name}={math.ceil(shown.value**2 / best)}"
    value = _rounded(best, shown)
    return f"set {name}={value}" if value >= shown.least else ""


def _together(demands: Sequence[Demand], part: Part, limit: float) -> str:
    """Every setting at its least, if that is enough."""
    changes: dict[str, str] = {}
    for demand in demands:
        needed, levers = part(demand)
        falling = (lever for lever in levers if lever.raised is None)
        for lever in sorted(falling, key=lambda lever: -lever.bytes):
            if needed <= limit:
                break
            least = math.ceil(lever.least / lever.step) * lever.step
            changes[lever.setting] = lever.advice or f"set {lever.setting}={least}"
            needed -= lever.bytes * (1.0 if lever.advice else 1 - least / lever.value)
        if needed > limit:
            return ""
    return " and ".join(changes.values())


def _rounded(value: float, lever: Lever) -> int:
    """Down to two digits, and to a multiple of the step."""
    digits = 10 ** max(0, int(math.log10(max(value, 1))) - 1)
    rounded = int(value / digits) * digits
    if rounded < lever.least:
        rounded = int(value)
    return rounded // lever.step * lever.step
