"""Where a run's numbers come from, and what they took: for the last part of any report."""

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from distinf.config_file import parsed
from distinf.engine.session import Session
from distinf.errors import SEE, CorruptionError
from distinf.naming import CONFIG
from distinf.report.formats import count, duration, size
from distinf.report.schema import Bullets, Column, Facts, Row, Section, Table, Text, text
from distinf.runtime import Agenda
from distinf.runtime.records import lowered_in
from distinf.tasks.task import STUDIES

COSTS = ("stage", "units", "seconds", "worker_seconds", "bytes")  # wall time; what was stored


def stage_costs(session: Session) -> list[Row]:
    """COSTS of the stages that did anything, over all runs; a variation shares what it can."""
    times, found = session.times(), []
    for stage in session.recipe.working:
        records = session.done(stage.wanted_units(session)).values()
        spent = [t for t in times if t["stage"] == stage.name]
        if records and (spent or not session.name):
            took = [sum(t[k] for t in spent) for k in ("seconds", "busy_s")]
            stored = sum(r["manifest"]["bytes"] for r in records)
            found.append(dict(zip(COSTS, (stage.name, len(records), *took, stored), strict=True)))
    return found


def cost_rows(rows: Sequence[Row]) -> list[Row]:
    """Of costs.csv: per stage, then the total."""
    total: Row = {"stage": "total"} | {name: sum(r[name] for r in rows) for name in COSTS[1:]}
    return [*rows, total] if len(rows) > 1 else [*rows]


@dataclass(frozen=True)
class Provenance:
    """Enough to carry the run out again."""

    config_yaml: str = ""
    command: str = ""  # carries the run out again, in a folder beside it
    fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    memory: Sequence[str] = ()  # where it ran out, and what was lowered


def provenance_of(session: Session) -> Provenance:
    """From the run's configuration; CorruptionError if there is none that can be read."""
    try:
        text = Agenda(session.blobs).config()
    except (KeyError, CorruptionError):  # an earlier version began the run, or it is damaged too
        text = session.blobs.get(CONFIG).decode()
    try:
        stored: dict[str, Any] = parsed(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError):
        raise CorruptionError(f"{CONFIG} is not a run's configuration; {SEE}") from None
    record, root = stored.get("provenance") or {}, session.blobs.root
    machine = {key: str(value) for key, value in (record.get("machine") or {}).items()}
    # Only in another folder is it carried out anew: in its own, all is done. A task of one's own
    # is looked for in the folder that one is in.
    command = f"distinf run {shlex.quote(root)} --out {shlex.quote(f'{root}-again')}"
    if session.context["task"] not in STUDIES:
        command = f"cd {shlex.quote(os.getcwd())} && {command}"
    return Provenance(
        config_yaml=text,
        command=command,
        fingerprint=session.keys["report"],
        versions=record.get("versions") or {},
        machine={**machine, "processor": platform.machine()},
        seeds={"run": session.seed},
        memory=[
            f"{stage.name}: {each}"
            for stage in session.recipe.working
            for each in lowered_in(session.done(stage.wanted_units(session)).values())
        ],
    )


def origin(source: Provenance) -> Section:
    """The page's last section."""
    facts = [("fingerprint", source.fingerprint), *source.machine.items()]
    facts += [("out of memory", line) for line in source.memory]
    facts += [(f"{name} version", str(found)) for name, found in source.versions.items()]
    facts += [(f"{name} seed", str(found)) for name, found in source.seeds.items()]
    again = "Carry this run out again, in a folder beside it:" if source.command else ""
    whole = Text(source.config_yaml, "pre", folded="Resolved configuration")
    command = Text(source.command, "pre")
    return Section("provenance", "Provenance", [Text(again), command, Facts(facts), whole])


def remarks(deviations: Sequence[str], quarantined: Mapping[str, Sequence[int]]) -> Section:
    """What was left out, and what is not as published; `quarantined`: split -> row ids."""
    left_out = [
        (f"{split} ({len(ids)}):", ", ".join(map(str, ids))) for split, ids in quarantined.items()
    ]
    why = "Left out because their loss or gradient was not finite."
    apart = "Deviations from what was published, and reconstructions"
    parts = [Section("quarantined", "Quarantined samples", [Bullets(left_out)], why)]
    parts += [Section("deviations", apart, [Bullets([("", line) for line in deviations])])]
    return Section("remarks", "Deviations", parts)


def costs(rows: Sequence[Row]) -> Table:
    """From the rows of costs.csv."""
    columns = [text("stage", "stage"), Column("units", "units", count)]
    columns += [Column("wall time", "seconds", duration)]
    columns += [Column("worker time", "worker_seconds", duration), Column("stored", "bytes", size)]
    return Table("Cost by stage", rows, columns, "costs")
