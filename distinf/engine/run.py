"""A run as a whole: open or resume its folder, carry it out, look at it, verify it."""

import contextlib
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
import yaml

from distinf.config import METHOD, RunConfig, dump, load
from distinf.config_file import parsed, todays
from distinf.engine import board, lease, running
from distinf.engine.fingerprint import fingerprint, provenance
from distinf.engine.format import refuse_other_format
from distinf.engine.heartbeat import Beating, is_begun
from distinf.engine.lease import held
from distinf.engine.refusals import refuse_unknown_secrets, refuse_unseen_folder, refuse_without_gpu
from distinf.engine.session import Session
from distinf.errors import SEE, CorruptionError, DistinfError, InputError, Interrupted
from distinf.masking import masked, without
from distinf.naming import CONFIG
from distinf.planning import fitting_runtime, joins, quick_plans, refuse_what_cannot_fit
from distinf.runtime import Agenda, Node, RuntimeSettings, open_runtime
from distinf.runtime.litter import sweep
from distinf.runtime.units import differences
from distinf.store import Blobs, open_root
from distinf.tasks.warm import let_go

WHOLE = ("task", "recipe")  # where they differ, nothing is alike
LOG = logging.getLogger("distinf")  # the command line shows what is said here


def open_session(config: RunConfig, accept: Sequence[str] = ()) -> Session:
    """The run's folder, made or found -> its session.

    A folder of another config, data, model or code is refused with the differing keys named,
    unless each is accepted; what was accepted is recorded. Nothing is written before all checks.
    """
    session, text = checked_session(config, accept)
    _write_config(session, config, text)
    return session


def _write_config(session: Session, config: RunConfig, text: str | None) -> None:
    """Keep what the run has to do and its configuration: a new one, or, where config.yaml is not
    as it was written (torn, gone, edited), this one, which agrees with what the run was begun with.
    """
    blobs = session.blobs
    try:
        found, whole = _raw_config(blobs), _kept_config(blobs)
        if text is not None:
            whole = text.encode()
        elif found != whole:
            LOG.warning("warning: %s was edited or damaged; it is written anew", CONFIG)
            stored = _provenance_in(whole, CONFIG) or {}
            whole = dump(config.settled(_stored_methods(stored)), stored).encode()
        Agenda(blobs).begin(whole.decode(), running.planned(session))
        if found != whole:
            blobs.put(CONFIG, whole)
        if text is not None:
            session.forget_sources()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"out: cannot write {blobs.root}: {reason}") from None


def checked_session(
    config: RunConfig, accept: Sequence[str] = (), by: str = ""
) -> tuple[Session, str | None]:
    """The session, and the config.yaml to write (None: it stands); nothing is written here.

    by  the command that takes --accept, where the one that was given does not
    """
    blobs = open_root(str(config.out))
    refuse_other_format(blobs)
    stored = stored_provenance(blobs)
    refuse_unknown_secrets(config)
    refuse_without_gpu(config)
    config = config.settled(_stored_methods(stored))
    session = _session(config, blobs.root)
    if stored is None and blobs.has_beside(lease.FOLDER):
        raise InputError(
            f"out: {blobs.root} is not empty and holds no {CONFIG}; choose another --out"
        )
    for each in running.together(session):
        each.refuse_other_data()
    LOG.info("checking the task on a few rows")
    methods = running.check(session)
    if config.method is None:
        config = config.settled(methods)
        session.settle(config.context(blobs.root))
    if stored is None:
        LOG.info("estimating what the run will take")
        _refuse_what_cannot_fit(session, config)
        return session, dump(config, provenance(config, accept))
    before = masked(stored.get("fingerprint", {}), "")  # a secret as an earlier version kept it
    differing = differences(before, fingerprint(config))
    differing = [*differing, *(f"code.{name}" for name in session.changed_sources())]
    refused = [key for key in differing if not _accepted(key, accept)]
    if refused:
        raise InputError(_refusal(config, blobs, refused, by))
    if not differing:
        return session, None
    accepted = sorted({*stored.get("accepted", []), *differing})
    return session, dump(config, provenance(config, accepted))


def _refuse_what_cannot_fit(
    session: Session, config: RunConfig, nodes: Sequence[Node] | None = None
) -> None:
    runtime = fitting_runtime(session, config.runtime, nodes)
    plans = quick_plans(session, runtime)
    for line in refuse_what_cannot_fit(plans, runtime, session.blobs, nodes):
        LOG.warning("warning: %s", line)


def _fitting(
    session: Session, config: RunConfig, nodes: Sequence[Node] | None = None
) -> RuntimeSettings:
    found = fitting_runtime(session, config.runtime, nodes)
    if found.workers != config.runtime.workers:
        LOG.info("%d workers: more would not fit the memory", found.workers)
    elif found != config.runtime:
        LOG.info("%g CPUs a worker: with fewer, not all fit the memory", found.num_cpus)
    return found


def _refusal(config: RunConfig, blobs: Blobs, keys: Sequence[str], by: str) -> str:
    keys = sorted(keys, key=lambda key: (key not in WHOLE, key.startswith(("code.", "digest."))))
    shown = ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
    accept = " ".join(
        [*filter(None, [by]), *(f"--accept {shlex.quote(k)}" for k in _prefixes(keys))]
    )
    code = [key for key in keys if key.startswith(("code.", "version."))]
    about = f" ({code[0]}: the source or a package changed)" if code else ""
    line = (
        f"out: {blobs.root} belongs to another run (differing: {shown}); choose another folder, "
        f"as by --out {shlex.quote(_free_folder(str(config.out)))}"
    )
    if set(WHOLE) & set(keys):  # nothing to keep
        return line
    return f"{line}, or {accept} to go on and keep what does not depend on it{about}"


def _prefixes(keys: Sequence[str], most: int = 4) -> list[str]:
    """What to accept so that all of `keys` are: each, or where they are many what they begin with.

    No other key differs, so a prefix lets nothing through that is not named.
    """
    return list(keys) if len(keys) <= most else sorted({key.split(".")[0] for key in keys})


def _free_folder(out: str) -> str:
    """`out` with the first number behind it under which nothing lies yet."""
    names = (f"{out.rstrip('/')}-{number}" for number in count(2))
    return next(name for name in names if not (os.path.exists(name) or is_begun(name)))


def _accepted(key: str, accept: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in accept)


def _raw_config(blobs: Blobs) -> bytes | None:
    try:
        return blobs.get(CONFIG)
    except KeyError:
        return None


def _kept_config(blobs: Blobs) -> bytes:
    """The configuration as it was written; of a run without an agenda, as it is: empty if none."""
    try:
        return Agenda(blobs).config().encode()
    except (KeyError, CorruptionError):
        return _raw_config(blobs) or b""


def stored_provenance(blobs: Blobs) -> Mapping[str, Any] | None:
    """What the folder's run was begun with; None if there is none."""
    data = _kept_config(blobs)
    return _provenance_in(data, f"{blobs.root}/{CONFIG}") if data else None


def _provenance_in(config: bytes, name: str) -> Mapping[str, Any] | None:
    """None if it has none, as it is not of a run; CorruptionError if it is no configuration."""
    try:
        stored = parsed(config)
    except (yaml.YAMLError, ValueError, RecursionError):
        stored = None
    found = stored.get("provenance") if isinstance(stored, dict) else False
    if found is None:
        return None
    kinds = {"fingerprint": dict, "accepted": list, "versions": dict, "machine": dict}
    if not isinstance(found, dict) or any(
        not isinstance(found.get(key, kind()), kind) for key, kind in kinds.items()
    ):
        raise CorruptionError(f"{name} is not a run's configuration; {SEE}")
    if "fingerprint" in found:
        found["fingerprint"] = {todays(key): value for key, value in found["fingerprint"].items()}
    return found


def _stored_methods(stored: Mapping[str, Any] | None) -> dict[str, str]:
    """The methods of gradients that the folder's run and its variations have."""
    keys = (stored or {}).get("fingerprint", {})
    found = {"": keys[METHOD]} if keys.get(METHOD) else {}
    varied = {key: value for key, value in keys.items() if key.startswith("variations.")}
    found |= {
        key.removeprefix("variations.").removesuffix(f".{METHOD}"): value
        for key, value in varied.items()
        if key.endswith(f".{METHOD}") and value
    }
    return found


def _session(config: RunConfig, root: str) -> Session:
    return config.session(root, torch.device("cpu"))


def execute(config: RunConfig, watch: running.Watcher, accept: Sequence[str] = ()) -> Session:
    """Carry the run out, from wherever it stands, and close what it started.

    InputError if another driver that lives works in its folder.
    """
    if config.runtime.tensorboard:
        board.refuse_missing()
    before = _raw_config(open_root(str(config.out)))
    session, text = checked_session(config, accept)
    with held(session.blobs):
        if _raw_config(session.blobs) != before:
            raise InputError(
                f"out: another command wrote {session.blobs.root}/{CONFIG} meanwhile; run yours "
                "again, or choose another --out"
            )
        return _carried_out(config, session, text, watch)


def _carried_out(
    config: RunConfig, session: Session, text: str | None, watch: running.Watcher
) -> Session:
    used = [name for name in session.recipe.packages if name.partition("-")[0] in sys.modules]
    runtime, begun = open_runtime(_fitting(session, config), used), False
    if config.runtime.kind == "ray":  # its workers have what they compute with
        let_go()
    try:
        if config.runtime.address and "://" not in session.blobs.root:
            refuse_unseen_folder(session, runtime)
        if joins(config.runtime):
            nodes = runtime.nodes()
            if text is not None:
                _refuse_what_cannot_fit(session, config, nodes)
            runtime.take(_fitting(session, config, nodes))
        _write_config(session, config, text)
        session.blobs.require(CONFIG)
        begun = True
        swept = _swept(session)
        if swept:
            LOG.info("took away %d files of attempts that never ended", swept)
        hidden = partial(without, settings=config.settings)
        titles = [running.part_of(*part).title for part in running.parts(session)]
        beat = Beating(session.blobs, titles, hidden)
        if config.runtime.tensorboard:
            watch = board.watching(watch, session, config.runtime.tensorboard)
        with beat.beating():
            running.run(session, runtime, beat.watching(watch))
    except Exception as error:
        if begun and _raw_config(session.blobs) is None:
            raise Interrupted(
                f"out: {session.blobs.root} is gone, or its {CONFIG} (moved, deleted, unmounted); "
                "put it back and run the same command to resume"
            ) from None
        if not isinstance(error, DistinfError):
            raise
        raise _with_details(session, error) from None
    finally:
        runtime.close()
    return session


def _swept(session: Session) -> int:
    stages = session.recipe.every
    jobs = [stage.name for stage in stages if stage.is_jobs]
    return sweep(session.blobs, [stage.name for stage in stages], jobs)


def _with_details(session: Session, error: DistinfError) -> DistinfError:
    """The same error, its worker's traceback put beside the run for whoever looks into it."""
    settings = session.context["task_settings"]
    details = without("\n".join(getattr(error, "__notes__", [])), settings)
    if not details.strip():
        return error
    name = f"log/failure-{time.strftime('%Y%m%d-%H%M%S')}.txt"
    with contextlib.suppress(CorruptionError, OSError):  # a full disk must not take its place
        session.blobs.put(name, details.encode("utf-8", "replace"))
    return type(error)(f"{error} (details: {session.blobs.root}/{name})")


def reopen(folder: str) -> Session:
    """The session of a run's folder or URL, for looking at it; InputError if it is none."""
    blobs = open_root(folder)
    if stored_provenance(blobs) is None:
        raise InputError(f"{folder}: no {CONFIG} there; give the folder of a run")
    return _session(load(folder), blobs.root)


def refuse_unfinished(session: Session, config: RunConfig, folder: str) -> None:
    """InputError for a run with work left to do, or begun with other settings, data or code."""
    for stage in session.recipe.working:
        if not stage.is_done(session, stage.wanted_units(session)):
            raise InputError(f"{folder}: stage '{stage.name}' is not done; finish the run first")
    record = stored_provenance(session.blobs) or {}
    differing = differences(masked(record.get("fingerprint", {}), ""), fingerprint(config))
    if differing:
        raise InputError(
            f"{folder}: {', '.join(differing[:3])} differ from what the run was begun with; "
            f"accept that first by distinf run {shlex.quote(folder)} --accept "
            f"{shlex.quote(differing[0])}, which makes anew what depends on it"
        )
