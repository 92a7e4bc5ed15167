"""Units of work: what a piece computes, named by the hash of it. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from distinf.digest import digest


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {"a.b": leaf}."""
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: value}


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted keys on which two flattened mappings differ; a tuple is a list."""
    missing = object()
    return sorted(
        key
        for key in stored.keys() | now.keys()
        if _same(stored.get(key, missing)) != _same(now.get(key, missing))
    )


def _same(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Unit:
    """A row range, one Krylov step, or one training job.

    `key` is the digest of everything else that the result depends on (settings, inputs, seed);
    `start:stop` are rows or steps; `job` holds what tells one job from the next.
    The id depends on nothing else: not on the workers, not on the order.
    """

    stage: str
    key: str
    start: int = 0
    stop: int = 0
    job: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        return unit_id(self.stage, self.key, self.start, self.stop, self.job)

    def describe(self) -> str:
        if self.job:
            plain = {k: v for k, v in self.job.items() if v != "" and not isinstance(v, Mapping)}
            rows = [f"rows {self.start}:{self.stop}"] if "split" in self.job else []
            return " ".join([self.stage, *(f"{k}={v}" for k, v in plain.items()), *rows])
        return f"{self.stage} rows {self.start}:{self.stop}"

    def as_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "key": self.key,
            "start": self.start,
            "stop": self.stop,
            "job": dict(self.job),
        }


def unit_id(stage: str, key: str, start: int, stop: int, job: Mapping[str, Any]) -> str:
    """A unit's id, by all that it depends on."""
    return digest([stage, key, start, stop, dict(job)])


def ending_together(units: Sequence[Unit], cost_of: Callable[[Unit], float]) -> list[Unit]:
    """In their order, but the last quarter of them longest first: a long one that begins last keeps
    one worker while all others wait (Graham, Bounds on multiprocessing timing anomalies, 1969)."""
    cut = len(units) - len(units) // 4
    return [*units[:cut], *sorted(units[cut:], key=cost_of, reverse=True)]


@dataclass(frozen=True)
class Lever:
    """A setting that memory goes by.

    bytes  what lowering it can save in proportion: at `value` all of them are taken, at half half
    least  how low it can be set; it is set to multiples of `step`
    where  memory of the host, of the device, of a device that is a GPU ("gpu"), or of the host on
           the way to a device ("staged")
    raised  of a setting that is raised instead, at twice `value` half the bytes: what raising it
           takes beside
    advice where it is not one number, such as "leave fisher-joint out of scores.estimators"
    """

    setting: str
    value: float
    bytes: float
    least: float = 1.0
    step: int = 1
    where: str = "device"
    advice: str = ""
    raised: float | None = None


Parts = Mapping[str, float]  # bytes by what they are


@dataclass(frozen=True)
class Cost:
    """What a unit will take: floating-point operations, bytes stored, peak bytes of its worker.

    memory  in the host's memory, on whatever device it computes: in all, or by part (weights,
            activations, optimizer, gradients, directions, tiles, results)
    device  on the device, likewise. Without a GPU that is the host too
    staged  in the host's memory on the way to a GPU; without one there is no such way
    levers  the settings that these go by
    work   samples by what is done with them: "generate train", "generate evaluation", "forward",
           "screen" (of training rows drawn at random, whether their loss is finite), "train"
           (forward, backward, and the optimizer once a call), "product" (a curvature product),
           "gradient" (a sample's own gradient and its projections). And how often: "model" (the
           trained one is rebuilt), "checkpoint" (model and optimizer are stored). Of the empirical
           recipe: "step" (a row tuned on), "derivative", "prompted" (rows so evaluated), "base"
    calls  how many batches those samples come in; where it says nothing, of the usual size
    read   bytes that it reads of what other units stored, rows of the data aside
    loaded by name, what its worker reads once in a run: weights, directions, rows that it keeps
    summed of a gang's unit, bytes that each rank beyond the first adds to what the ranks send: a
           vector summed by all-reduce counts twice, one summed in order as often as it has shards
    """

    flops: float = 0.0
    bytes: float = 0.0
    memory: float | Parts = 0.0
    device: float | Parts = 0.0
    staged: float = 0.0
    levers: tuple[Lever, ...] = ()
    work: Mapping[str, float] = field(default_factory=dict)
    calls: Mapping[str, float] = field(default_factory=dict)
    read: float = 0.0
    loaded: Mapping[str, float] = field(default_factory=dict)
    summed: float = 0.0

    @property
    def host_bytes(self) -> float:
        return sum(by_part(self.memory).values())

    @property
    def device_bytes(self) -> float:
        return sum(by_part(self.device).values())


def by_part(*held: float | Parts) -> dict[str, float]:
    """All together; what is not said by part is "other"."""
    found: dict[str, float] = {}
    for each in held:
        for name, size in (each if isinstance(each, Mapping) else {"other": each}).items():
            if size:
                found[name] = found.get(name, 0.0) + size
    return found


IN_GRADIENTS = {"forward": 1 / 3, "screen": 1 / 3, "train": 1.0, "gradient": 1.0, "product": 3.0}


def in_gradients(costs: Iterable[Cost]) -> float:
    """The passes of these units in gradients of one row each, a forward and a backward pass."""
    return sum(IN_GRADIENTS.get(name, 0.0) * rows for c in costs for name, rows in c.work.items())
