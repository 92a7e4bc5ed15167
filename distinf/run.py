"""A run as a whole: open or resume its folder, plan it, carry it out, look at it, verify it."""

import os
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import yaml

from distinf.config import RunConfig, differences, dump, fingerprint, load, provenance
from distinf.errors import CorruptionError, InputError, Interrupted
from distinf.runtime import Ledger, RuntimeSettings, open_runtime
from distinf.stages import report, route
from distinf.stages.session import Outline, Session
from distinf.store import Blobs, damage, open_root

CONFIG = "config.yaml"
SPARE_BYTES = 64 << 20  # beside what the plan stores: metadata, the report, a margin


@dataclass(frozen=True)
class StagePlan:
    """What one stage will take: `memory` of all workers on this machine, `seconds` at a rate."""

    stage: str
    units: int
    flops: float
    bytes: float
    memory: float
    seconds: float


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is; `left_s` is None until there is a rate to go by."""

    stage: str
    done: int
    total: int
    retries: int
    left_s: float | None


@dataclass
class Verification:
    """Files read and bytes checked, and one line for each thing that is wrong."""

    records: int = 0
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)


def plan(config: RunConfig, rate_flops: float = 1e10) -> list[StagePlan]:
    """Per stage: units, FLOPs, bytes, peak memory of a worker, seconds at `rate_flops` a worker.

    Raises InputError if the run cannot fit the disk or the memory of this machine.
    """
    blobs = open_root(str(config.out))
    plans = _plans(_session(config, blobs.root).outline, config.runtime, rate_flops)
    _refuse_what_cannot_fit(plans, blobs)
    return plans


def _plans(outline: Outline, runtime: RuntimeSettings, rate_flops: float) -> list[StagePlan]:
    cached = sum(
        min(outline.settings.data.cache_mb * 2**20, rows * outline.shapes.row_bytes.get(split, 0.0))
        for split, rows in outline.rows.items()
    )
    workers = 1 if runtime.kind == "local" else runtime.workers or os.cpu_count() or 1
    together = workers if runtime.address is None else 1  # those of a cluster lie elsewhere
    found = []
    for stage, units in route.all_units(outline).items():
        costs = [cost for _, cost in units]
        flops = sum(cost.flops for cost in costs)
        found.append(
            StagePlan(
                stage=stage,
                units=len(costs),
                flops=flops,
                bytes=sum(cost.bytes for cost in costs),
                memory=together * max((cost.memory + cached for cost in costs), default=0.0),
                seconds=flops / rate_flops / workers,
            )
        )
    return found


def _refuse_what_cannot_fit(plans: Sequence[StagePlan], blobs: Blobs) -> None:
    free = blobs.free_bytes()
    needed = sum(plan.bytes for plan in plans) + SPARE_BYTES
    if free is not None and needed > free:
        largest = max(plans, key=lambda p: p.bytes)
        raise InputError(
            f"out: the run stores about {needed / 1e9:.1f} GB (most in '{largest.stage}') but "
            f"{blobs.root} has {free / 1e9:.1f} GB free; choose another --out or a smaller run"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    worst = max(plans, key=lambda p: p.memory)
    if worst.memory > memory:
        raise InputError(
            f"{worst.stage}: the workers need about {worst.memory / 1e9:.1f} GB but this machine "
            f"has {memory / 1e9:.1f} GB; lower runtime.workers, curvature.memory_mb, "
            "curvature.keep, gradients.chunk, data.cache_mb or the batch size"
        )


def open_session(config: RunConfig, accept: Sequence[str] = ()) -> Session:
    """The run's folder, made or found -> its session.

    A folder of another config, data, model or code is refused with the differing keys named,
    unless each is accepted; what was accepted is recorded. Nothing is written before all checks.
    """
    session, text = checked_session(config, accept)
    _write_config(session, text)
    return session


def _write_config(session: Session, text: str | None) -> None:
    if text is None:
        return
    try:
        session.blobs.put(CONFIG, text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"out: cannot write {session.blobs.root}: {reason}") from None


def checked_session(config: RunConfig, accept: Sequence[str] = ()) -> tuple[Session, str | None]:
    """The session, and the config.yaml to write (None: it stands); nothing is written here."""
    blobs = open_root(str(config.out))
    session = _session(config, blobs.root)
    stored = _stored_provenance(blobs)
    if stored is None and blobs.names(""):
        raise InputError(
            f"out: {blobs.root} is not empty and holds no {CONFIG}; choose another --out"
        )
    route.check(session)
    if stored is None:
        _refuse_what_cannot_fit(_plans(session.outline, config.runtime, 1e10), blobs)
        return session, dump(config, provenance(config, accept))
    differing = differences(stored.get("fingerprint", {}), fingerprint(config))
    refused = [key for key in differing if not _accepted(key, accept)]
    if refused:
        names = ", ".join(refused[:6]) + (" …" if len(refused) > 6 else "")
        raise InputError(
            f"out: {blobs.root} belongs to another run (differing: {names}); choose another --out, "
            f"or {' '.join(f'--accept {key}' for key in refused[:6])} to go on and keep what does "
            "not depend on it" + _about_code(refused)
        )
    if not differing:
        return session, None
    accepted = sorted({*stored.get("accepted", []), *differing})
    return session, dump(config, provenance(config, accepted))


def _about_code(keys: Sequence[str]) -> str:
    code = [key for key in keys if key.startswith(("code.", "version."))]
    return f" ({code[0]}: the source or a package changed)" if code else ""


def _accepted(key: str, accept: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in accept)


def _stored_provenance(blobs: Blobs) -> Mapping[str, Any] | None:
    try:
        stored = yaml.safe_load(blobs.get(CONFIG))
        return stored["provenance"]
    except KeyError:
        return None
    except (yaml.YAMLError, TypeError):
        raise CorruptionError(f"{blobs.root}/{CONFIG} is not a run's configuration") from None


def _session(config: RunConfig, root: str) -> Session:
    return Session(config.context(root), torch.device("cpu"))


def execute(config: RunConfig, watch: route.Watcher, accept: Sequence[str] = ()) -> Session:
    """Carry the run out, from wherever it stands, and close what it started."""
    session, text = checked_session(config, accept)
    runtime = open_runtime(config.runtime)
    try:
        if config.runtime.address and "://" not in session.blobs.root:
            _refuse_unseen_folder(session, runtime)
        _write_config(session, text)
        route.run(session, runtime, watch)
    except Interrupted as error:
        raise _with_details(session, error) from None
    finally:
        runtime.close()
    return session


def _with_details(session: Session, error: Interrupted) -> Interrupted:
    """The same error, its worker's traceback put beside the run for whoever looks into it."""
    details = "\n".join(getattr(error, "__notes__", []))
    if not details.strip():
        return error
    name = f"log/failure-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    session.blobs.put(name, details.encode())
    return Interrupted(f"{error} (details: {session.blobs.root}/{name})")


def _refuse_unseen_folder(session: Session, runtime: Any) -> None:
    """A folder of this machine alone would lose what other nodes write."""
    probe = f".probe-{uuid.uuid4().hex}"
    session.blobs.put(probe, b"")
    try:
        blind = runtime.blind_nodes(f"{session.blobs.root}/{probe}")
    finally:
        session.blobs.delete(probe)
    if blind:
        raise InputError(
            f"out: {session.blobs.root} is not seen by {', '.join(blind)}; "
            "put it on a folder that all nodes share, or on s3:// or gs://"
        )


def reopen(folder: str) -> Session:
    """The session of a run's folder or URL, for looking at it; InputError if it is none."""
    blobs = open_root(folder)
    if _stored_provenance(blobs) is None:
        raise InputError(f"{folder}: no {CONFIG} there; give the folder of a run")
    if "://" in folder:
        import tempfile

        with tempfile.TemporaryDirectory() as local:
            copy = f"{local}/{CONFIG}"
            with open(copy, "wb") as file:
                file.write(blobs.get(CONFIG))
            return _session(load(copy), blobs.root)
    return _session(load(folder), blobs.root)


def status(session: Session) -> list[StageStatus]:
    """From the ledger alone: it works while the run works, and when its cluster is gone."""
    found = []
    for stage in route.BASIS_ROUTE:
        wanted = [unit for unit, _ in stage.units(session.outline)]
        records = session.done(wanted)
        complete = bool(wanted) and route.is_done(session, stage, wanted)
        total = len(records) if complete else len(wanted)
        retries = sum(int(record["attempt"]) - 1 for record in records.values())
        left = None if complete else _left(records.values(), total)
        found.append(StageStatus(stage.NAME, len(records), total, retries, left))
    return found


def _left(records: Collection[Mapping[str, Any]], total: int) -> float | None:
    """Seconds until `total` units are done, pauses between a kill and a resume left out."""
    times = sorted(record["committed"] for record in records)
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    if not gaps:
        return None
    usual = [gap for gap in gaps if gap <= 10 * (gaps[len(gaps) // 2] + 1.0)]
    return (total - len(times)) * sum(usual) / len(usual)


def verify(session: Session) -> Verification:
    """Read every committed byte again; list all that is missing or altered."""
    found = Verification()
    for stage in route.BASIS_ROUTE:
        ledger = Ledger(session.blobs, stage.NAME)
        found.problems += ledger.damaged()
        for record in ledger.intact().values():
            manifest = record["manifest"]
            where = f"ledger/{stage.NAME}/{record['unit']}.json"
            found.problems += [
                f"{problem} (its record: {where})" for problem in damage(session.blobs, manifest)
            ]
            found.records += 1
            found.files += len(manifest["files"])
            found.bytes += manifest["bytes"]
    return found


def rewrite_report(session: Session) -> str:
    """Make the report anew from what is committed -> where its page is."""
    wanted = [u for s in route.BASIS_ROUTE[:-1] for u, _ in s.units(session.outline)]
    for stage in route.BASIS_ROUTE[:-1]:
        if not route.is_done(session, stage, [u for u in wanted if u.stage == stage.NAME]):
            raise InputError(f"report: stage '{stage.NAME}' is not done; finish the run first")
    report.write(session)
    return page_path(session)


def page_path(session: Session) -> str:
    return f"{session.blobs.root}/report/index.html"
