"""Units of work: what a piece computes, named by the hash of it. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def digest(value: Any) -> str:
    """sha256 of the value's canonical JSON, 20 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Unit:
    """A row range, one Krylov step, or one training job.

    `basis` is the digest of everything else that the result depends on (settings, inputs, seed);
    `start:stop` are rows or steps; `job` holds what tells one job of a grid from the next.
    The id depends on nothing else: not on the workers, not on the order.
    """

    stage: str
    basis: str
    start: int = 0
    stop: int = 0
    job: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return digest([self.stage, self.basis, self.start, self.stop, dict(self.job)])

    def describe(self) -> str:
        if self.job:
            return f"{self.stage} " + " ".join(f"{k}={v}" for k, v in self.job.items())
        return f"{self.stage} rows {self.start}:{self.stop}"

    def as_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "basis": self.basis,
            "start": self.start,
            "stop": self.stop,
            "job": dict(self.job),
        }


@dataclass(frozen=True)
class Cost:
    """What a unit will take: floating-point operations, bytes stored, peak bytes of its worker."""

    flops: float = 0.0
    bytes: float = 0.0
    memory: float = 0.0
