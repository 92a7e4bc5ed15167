"""How fast work goes: seconds of one worker for a cost, and what that depends on in a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distinf.errors import InputError
from distinf.runtime import Cost
from distinf.spectral import mean_product
from distinf.spectral.session import Outline
from distinf.spectral.settings import StageSettings

# Measured where these runs were made: 2 cores, a local disk (tests/benchmarks/RESULTS.md).
UNIT_S = 0.05  # a unit's way to its worker and back, its files, its commit record
STORED_BYTES_S = 5e8  # written, synchronised, read back and hashed
READ_BYTES_S = 1e9  # of one of two readers, from the page cache
DRIVER_S = 1e-3  # of the driver's processor, a unit
NETWORK_BYTES_S = 1.25e9  # of each worker: 10 Gbit/s, assumed
NETWORK_NOTE = (
    "network: at most, each worker and the store on a host of its own, at an assumed "
    f"{8 * NETWORK_BYTES_S / 1e9:.0f} Gbit/s a worker"
)
PROCESS_BYTES = 0.4e9  # Python, torch, Ray and the packages of a task
CLUSTER_S = 4.0  # Ray, before the first worker starts
WORKER_S = 6.0  # a worker: Python, Ray and torch
STAGE_S = 0.5  # a stage's start and end: the ledger is listed, a gang is formed
BUSY = 0.85  # with less of its cores than this, the machine is called busy
BUSY_NOTE = "the machine is busy, and taken to stay so: a process had {:.0%} of a core"
NO_GPU = "runtime.num_gpus: {:g}, but there is no GPU here to measure; name one, as in --gpu h100"
OTHER_FLOPS = 5e9  # per second: the scores' float64 products, and what nothing measures
REPORT_S = 3.0  # the page and its tables
# What the time of a stage goes into. The network's is that of the store's bytes too.
COMPUTE, BANDWIDTH, BATCHES = "compute", "memory bandwidth", "batches"
READS, WRITES, NETWORK = "store reads", "store writes", "network"
DRIVER, LOADING, FIXED = "driver", "loading", "fixed start"
PARTS = (COMPUTE, BANDWIDTH, BATCHES, READS, WRITES, LOADING)  # of units
OF_WORK = {"model": LOADING, "checkpoint": WRITES}  # else COMPUTE


@dataclass(frozen=True)
class Rate:
    """Seconds of one worker: `call` for each batch and `sample` for each sample in it.

    batch  samples of a batch where a cost does not say how many batches there are
    first  once per worker, before it does this for the first time
    parts  what of `sample` is not arithmetic, in seconds
    """

    call: float
    sample: float
    batch: float = 1.0
    first: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def arithmetic(self) -> float:
        """Of a sample."""
        return self.sample - sum(self.parts.values())

    def seconds(self, samples: float, calls: float | None = None) -> float:
        made = samples / self.batch if calls is None else calls
        return self.call * made + self.sample * samples

    def times(self, factor: float, calls: float | None = None) -> "Rate":
        """Slower by this factor; its calls by another, if that is given."""
        other = factor if calls is None else calls
        parts = {name: seconds * factor for name, seconds in self.parts.items()}
        return Rate(self.call * other, self.sample * factor, self.batch, self.first * other, parts)

    def plus(self, part: str, seconds: float) -> "Rate":
        """With a part more to each sample."""
        return replace(self, sample=self.sample + seconds, parts={**self.parts, part: seconds})


@dataclass(frozen=True)
class Speeds:
    """Rates by primitive (see Cost.work), and `flops` a second for what no rate covers.

    unit_s    for each unit, beside its work and the bytes that it stores
    start_s   until the first worker is ready
    worker_s  until one is that starts in a later stage
    base      bytes of a worker that holds nothing yet
    share     of a core, that a worker is taken to have
    notes     what all this rests on, a line each
    network   bytes a second of a worker; infinite where all of the run is on this machine
    """

    flops: float
    rates: Mapping[str, Rate] = field(default_factory=dict)
    unit_s: float = UNIT_S
    start_s: float = CLUSTER_S + WORKER_S
    worker_s: float = WORKER_S
    base: float = PROCESS_BYTES
    share: float = 1.0
    notes: tuple[str, ...] = ()
    network: float = math.inf

    def undisturbed(self) -> "Speeds":
        """With a core for each worker."""
        rates = {name: rate.times(self.share) for name, rate in self.rates.items()}
        names = ("unit_s", "start_s", "worker_s")
        seconds = {name: getattr(self, name) * self.share for name in names}
        return replace(self, rates=rates, share=1.0, **seconds)

    def __post_init__(self) -> None:
        if "forward" in self.rates and "screen" not in self.rates:
            object.__setattr__(self, "rates", {**self.rates, "screen": self.rates["forward"]})

    def knows(self, cost: Cost) -> bool:
        """Whether any of its work has a rate."""
        return bool(cost.work.keys() & self.rates.keys())

    def seconds(self, cost: Cost) -> float:
        """A unit's work on one worker, its commit and reads aside."""
        return sum(self.parts(cost).values())

    def parts(self, cost: Cost, share: float = 1.0) -> dict[str, float]:
        """The same by what it goes into; of a gang's shared work, one rank's share."""
        found = dict.fromkeys(PARTS, 0.0)
        if not self.knows(cost):
            found[COMPUTE] = share * cost.flops / self.flops
        for name, samples in cost.work.items():
            if name in self.rates:
                rate, of = self.rates[name], 1.0 if name in RANK_ZERO else share
                calls = rate.seconds(samples, cost.calls.get(name)) - rate.sample * samples
                found[BATCHES] += of * calls
                found[OF_WORK.get(name, COMPUTE)] += of * samples * rate.arithmetic
                for part, seconds in rate.parts.items():
                    found[part] += of * samples * seconds
        return found

    def unit_parts(self, cost: Cost, share: float = 1.0) -> dict[str, float]:
        """With what it reads, and its commit."""
        found = self.parts(cost, share)
        found[READS] += share * cost.read / READ_BYTES_S
        found[WRITES] += self.commit_s(cost)
        return found

    def commit_s(self, cost: Cost) -> float:
        """Storing a unit's result."""
        return self.unit_s + cost.bytes / STORED_BYTES_S


RANK_ZERO = ("checkpoint", "model", "gradient")  # work of a gang that is not shared
MODEL_WORK = ("forward", "screen", "train", "product", "gradient")  # goes by the model's size


def precisions(settings: StageSettings) -> dict[str, str]:
    """Primitive -> the precision it runs at."""
    return {
        "train": settings.train.precision,
        "product": settings.curvature.precision,
        "gradient": settings.gradients.precision,
    }


def batches(outline: Outline) -> dict[str, int]:
    """Primitive -> samples of one call."""
    settings = outline.settings
    samples = min(settings.curvature.samples, outline.training_rows)
    in_shard = -(-samples // settings.curvature.shards)
    try:
        product = min(in_shard, mean_product.microbatch(outline))
    except InputError:  # refused, and explained, when the run starts
        product = 1
    loop = settings.gradients.method == "loop"
    return {
        "forward": settings.evaluate.batch_size,
        "train": settings.train.batch_size // settings.train.shards,
        "product": product,
        "gradient": 1 if loop else settings.gradients.chunk,
    }


def scaled(speeds: Speeds, measured: Outline, outline: Outline) -> Speeds:
    """Speeds measured on one variation's model, for another's."""
    ratio = outline.shapes.flops_per_sample / max(measured.shapes.flops_per_sample, 1.0)
    if ratio == 1.0:
        return speeds
    rates = {
        name: rate.times(ratio, calls=1.0) if name in MODEL_WORK else rate
        for name, rate in speeds.rates.items()
    }
    return replace(speeds, rates=rates)


IN_ORDER = ("gradient", "forward")
SPLIT_OF = {
    **dict.fromkeys(("train", "screen", "product", "gradient"), "train"), "forward": "evaluation",
}  # fmt: skip


def reading(speeds: Speeds, outline: Outline) -> Speeds:
    """The same, with the reading of rows that are too many to be kept in memory.

    Rates "random row" and "row in order" say what one stored row takes.
    """
    at_random = _sample_s(speeds, "random row")
    in_order = _sample_s(speeds, "row in order")
    read = {split: size > _limit(outline) for split, size in split_bytes(outline).items()}
    rates = {
        name: rate.plus(READS, in_order if name in IN_ORDER else at_random)
        if read.get(SPLIT_OF.get(name, ""))
        else rate
        for name, rate in speeds.rates.items()
    }
    return replace(speeds, rates=rates)


def row_bytes(outline: Any, work: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Stored bytes of the rows that are worked on, and as in Cost.loaded those of splits that a
    worker keeps in memory instead."""
    if not isinstance(outline, Outline):
        return 0.0, {}
    read, kept = 0.0, dict[str, float]()
    for split, size in split_bytes(outline).items():
        used = sum(n for name, n in work.items() if SPLIT_OF.get(name) == split)
        if used and size > _limit(outline):
            read += used * outline.shapes.row_bytes.get(split, 0.0)
        elif used:
            kept[f"rows of {split}"] = size
    return read, kept


def _sample_s(speeds: Speeds, name: str) -> float:
    return speeds.rates[name].sample if name in speeds.rates else 0.0


def split_bytes(outline: Outline) -> dict[str, float]:
    """Stored bytes of each split."""
    per_row = outline.shapes.row_bytes
    return {split: rows * per_row.get(split, 0.0) for split, rows in outline.rows.items()}


def _limit(outline: Outline) -> float:
    return outline.settings.data.cache_mb * 2**20
