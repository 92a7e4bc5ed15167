"""What a run will take: one stage's plan."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from distinf.planning.staging import StagePlan, most


@dataclass(frozen=True)
class Plan:
    """The stages in order, on how many workers of what kind, and what the times rest on; `driver`
    is what the driver holds on its own host, by part."""

    stages: tuple[StagePlan, ...]
    workers: int
    where: str
    notes: tuple[str, ...]
    share: float = 1.0  # of a core, that a worker is taken to have
    gpus: int = 0
    idle_seconds: float | None = None  # if nothing else were at work here
    driver: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def bytes(self) -> float:
        return sum(stage.bytes for stage in self.stages)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by what they go into, all stages together."""
        names = dict.fromkeys(name for stage in self.stages for name in stage.parts)
        return {n: sum(stage.parts.get(n, 0.0) for stage in self.stages) for n in names}

    def as_json(self) -> dict[str, Any]:
        """Plain numbers: bytes, seconds, FLOPs."""
        stages = [
            {**{k: v for k, v in asdict(p).items() if k != "asked"}, "bound": p.bound}
            for p in self.stages
        ]
        whole = {"seconds": self.seconds, "bytes": self.bytes, "parts": self.parts}
        return {**asdict(self), "stages": stages, **whole, "bound": most(self.parts)}
