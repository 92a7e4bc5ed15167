"""Where a run's numbers come from, and what they took: for the last part of any report."""

import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from distinf.engine.session import Session
from distinf.errors import SEE, CorruptionError
from distinf.naming import CONFIG
from distinf.runtime import Agenda
from distinf.tasks.task import STUDIES


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
    """From the run's configuration; CorruptionError if there is none that can be read."""
    text = _configuration(session)
    try:
        stored: dict[str, Any] = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        raise CorruptionError(f"{CONFIG} is not a run's configuration; {SEE}") from None
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


def _configuration(session: Session) -> str:
    """config.yaml as it was written, whatever became of it."""
    try:
        return Agenda(session.blobs).config()
    except (KeyError, CorruptionError):  # an earlier version began the run, or it is damaged too
        return session.blobs.get(CONFIG).decode()


def _replay(session: Session) -> str:
    """For a shell, wherever it is. A task of one's own is looked for in the folder that one is in.

    Only in another folder is it carried out anew: in its own, all is done.
    """
    root = session.blobs.root
    command = f"distinf run {shlex.quote(root)} --out {shlex.quote(f'{root}-again')}"
    if session.context["task"] in STUDIES:
        return command
    return f"cd {shlex.quote(os.getcwd())} && {command}"
