"""Where a run's numbers come from, and what they took: for the last part of any report."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from distinf.stages.session import Session


@dataclass(frozen=True)
class StageCost:
    """What one stage took, over all its runs."""

    stage: str
    units: int
    seconds: float  # wall
    worker_seconds: float
    bytes: int


@dataclass(frozen=True)
class Provenance:
    """Enough to carry the run out again."""

    config_yaml: str = ""
    command: str = ""  # replays the run
    fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)


def provenance_of(session: Session) -> Provenance:
    """From the run's own config.yaml."""
    text = session.blobs.get("config.yaml").decode()
    stored: dict[str, Any] = yaml.safe_load(text) or {}
    record = stored.get("provenance") or {}
    machine = {key: str(value) for key, value in record.get("machine", {}).items()}
    return Provenance(
        config_yaml=text,
        command="distinf run config.yaml",
        fingerprint=session.basis["report"],
        versions=record.get("versions", {}),
        machine={**machine, "processor": platform.machine()},
        seeds={"run": session.seed},
    )
