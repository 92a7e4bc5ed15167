"""How fast work goes: seconds of one worker for a cost, and what that depends on in a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from distinf.errors import InputError
from distinf.runtime import Cost
from distinf.spectral import curvature
from distinf.spectral.session import Outline
from distinf.spectral.settings import StageSettings

# Measured where these runs were made: 2 cores, a local disk (tests/benchmarks/RESULTS.md).
UNIT_S = 0.05  # a unit's way to its worker and back, its files, its commit record
STORED_BYTES_S = 5e8  # written, synchronised, read back and hashed
CLUSTER_S = 4.0  # Ray, before the first worker starts
WORKER_S = 6.0  # a worker: Python, Ray and torch
STAGE_S = 0.5  # a stage's start and end: the ledger is listed, a gang is formed
NO_GPU = "runtime.num_gpus: {:g}, but there is no GPU here to measure; name one, as in --gpu h100"
OTHER_FLOPS = 5e9  # per second: the scores' float64 products, and what nothing measures
REPORT_S = 3.0  # the page and its tables


@dataclass(frozen=True)
class Rate:
    """Seconds of one worker: `call` for each batch and `sample` for each sample in it.

    batch  samples of a batch where a cost does not say how many batches there are
    first  once per worker, before it does this for the first time
    """

    call: float
    sample: float
    batch: float = 1.0
    first: float = 0.0

    def seconds(self, samples: float, calls: float | None = None) -> float:
        made = samples / self.batch if calls is None else calls
        return self.call * made + self.sample * samples

    def times(self, factor: float) -> "Rate":
        """Slower by this factor."""
        return Rate(self.call * factor, self.sample * factor, self.batch, self.first * factor)


@dataclass(frozen=True)
class Speeds:
    """Rates by primitive (see Cost.work), and `flops` a second for what no rate covers.

    unit_s    for each unit, beside its work and the bytes that it stores
    start_s   until the first worker is ready
    base      bytes of a worker that holds nothing yet
    share     of a core, that a worker is taken to have
    notes     what all this rests on, a line each
    """

    flops: float
    rates: Mapping[str, Rate] = field(default_factory=dict)
    unit_s: float = UNIT_S
    start_s: float = CLUSTER_S + WORKER_S
    base: float = 0.4e9
    share: float = 1.0
    notes: tuple[str, ...] = ()

    def undisturbed(self) -> "Speeds":
        """With a core for each worker."""
        rates = {name: rate.times(self.share) for name, rate in self.rates.items()}
        unit_s, start_s = self.unit_s * self.share, self.start_s * self.share
        return replace(self, rates=rates, unit_s=unit_s, start_s=start_s, share=1.0)

    def __post_init__(self) -> None:
        if "forward" in self.rates and "screen" not in self.rates:
            object.__setattr__(self, "rates", {**self.rates, "screen": self.rates["forward"]})

    def knows(self, cost: Cost) -> bool:
        """Whether any of its work has a rate."""
        return bool(cost.work.keys() & self.rates.keys())

    def seconds(self, cost: Cost) -> float:
        """A unit's work on one worker, its commit aside."""
        return self.work_s(cost, cost.work) if self.knows(cost) else cost.flops / self.flops

    def work_s(self, cost: Cost, work: Mapping[str, float]) -> float:
        """A part of its work."""
        return sum(
            self.rates[name].seconds(samples, cost.calls.get(name))
            for name, samples in work.items()
            if name in self.rates
        )

    def commit_s(self, cost: Cost) -> float:
        """Storing a unit's result."""
        return self.unit_s + cost.bytes / STORED_BYTES_S


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
        product = min(in_shard, curvature.microbatch(outline))
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
        name: replace(rate, sample=rate.sample * ratio) if name in MODEL_WORK else rate
        for name, rate in speeds.rates.items()
    }
    return replace(speeds, rates=rates)


def reading(speeds: Speeds, outline: Outline) -> Speeds:
    """The same, with the reading of rows that are too many to be kept in memory.

    Rates "random row" and "row in order" say what one stored row takes.
    """
    at_random = _sample_s(speeds, "random row")
    in_order = _sample_s(speeds, "row in order")
    read = {split: size > _limit(outline) for split, size in split_bytes(outline).items()}
    added = {
        "train": at_random * read["train"],
        "screen": at_random * read["train"],
        "product": at_random * read["train"],
        "gradient": in_order * read["train"],
        "forward": in_order * read["evaluation"],
    }
    rates = {
        name: replace(rate, sample=rate.sample + added.get(name, 0.0))
        for name, rate in speeds.rates.items()
    }
    return replace(speeds, rates=rates)


def _sample_s(speeds: Speeds, name: str) -> float:
    return speeds.rates[name].sample if name in speeds.rates else 0.0


def split_bytes(outline: Outline) -> dict[str, float]:
    """Stored bytes of each split."""
    per_row = outline.shapes.row_bytes
    return {split: rows * per_row.get(split, 0.0) for split, rows in outline.rows.items()}


def _limit(outline: Outline) -> float:
    return outline.settings.data.cache_mb * 2**20
