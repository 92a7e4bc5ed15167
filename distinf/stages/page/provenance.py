"""Where a run's numbers come from, and what they took: for the last part of any report."""

import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from distinf.naming import CONFIG
from distinf.stages.session import Session
from distinf.stages.task import STUDIES


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
    command: str = ""  # carries the run out again, in a folder beside it
    fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)


def provenance_of(session: Session) -> Provenance:
    """From the run's own config.yaml."""
    text = session.blobs.get(CONFIG).decode()
    stored: dict[str, Any] = yaml.safe_load(text) or {}
    record = stored.get("provenance") or {}
    machine = {key: str(value) for key, value in (record.get("machine") or {}).items()}
    return Provenance(
        config_yaml=text,
        command=_replay(session),
        fingerprint=session.basis["report"],
        versions=record.get("versions") or {},
        machine={**machine, "processor": platform.machine()},
        seeds={"run": session.seed},
    )


def _replay(session: Session) -> str:
    """For a shell, wherever it is. A task of one's own is looked for in the folder that one is in.

    Only in another folder is it carried out anew: in its own, all is done.
    """
    root = session.blobs.root
    command = f"distinf run {shlex.quote(root)} --out {shlex.quote(f'{root}-again')}"
    if session.context["task"] in STUDIES:
        return command
    return f"cd {shlex.quote(os.getcwd())} && {command}"
