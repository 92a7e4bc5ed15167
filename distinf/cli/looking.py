"""Commands that look at a run: how far it is, its report, whether its bytes are what they were."""

import argparse
import contextlib
import json
import shlex
import sys
import time
from typing import TYPE_CHECKING

from distinf.cli.runs import carry_out
from distinf.errors import CorruptionError, InputError
from distinf.printable import show

if TYPE_CHECKING:
    from distinf.engine.verifying import Verification
    from distinf.store import Blobs


def status(options: argparse.Namespace) -> None:
    look_for_run(options)
    from distinf.engine.standing import status_of, status_table
    from distinf.store import open_root

    if options.watch is not None:
        watch(options)
        return
    found = status_of(options.run, open_root(options.run))
    if options.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        status_table(found)


def watch(options: argparse.Namespace) -> None:
    """The status every so often, until the run's driver says that it ended, or Ctrl-C.

    Where no driver is alive that said so, another may come: it is told, and waited for.
    """
    from rich.live import Live

    from distinf.engine.standing import RUNNING, Ledgers, status_of, status_view
    from distinf.store import open_root
    from distinf.terminal import Terminal

    if not 0 < options.watch < 1e6:
        raise InputError(f"--watch: {options.watch:g} seconds must be above 0")
    options.voice.rest()
    blobs, out, ledgers = open_root(options.run), Terminal(), Ledgers()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        live = None
        if out.is_terminal and not options.json:
            live = stack.enter_context(Live(console=out, auto_refresh=False))
        while True:
            found = status_of(options.run, blobs, ledgers)
            if live is not None:
                live.update(status_view(found, out), refresh=True)
            elif options.json:
                print(json.dumps(found.as_json()), flush=True)
            else:
                show(found.words)
            if found.state != RUNNING and not found.is_orphaned:
                return
            time.sleep(options.watch)


def report(options: argparse.Namespace) -> None:
    look_for_run(options)
    from distinf.engine.rewriting import rewrite_report
    from distinf.engine.run import reopen

    show(rewrite_report(reopen(options.run)))


def verify(options: argparse.Namespace) -> int:
    look_for_run(options)
    from distinf.engine.verifying import verify
    from distinf.store import open_root

    blobs = open_root(options.run)
    found = verify(blobs)
    lost = _asked_again(options, found)
    run = shlex.quote(options.run)
    remedy = f"distinf verify --repair {run} makes it again" if found.by_run else "; ".join(lost)
    code = _told_verification(found, remedy)
    if not options.repair or not found.problems:
        return code
    _repair(options, blobs, found)
    for line in lost:
        show(line)
    return _told_verification(verify(blobs), "")


def look_for_run(options: argparse.Namespace) -> None:
    """InputError at once where no run lies, before anything heavy is imported."""
    from distinf.engine.heartbeat import is_begun
    from distinf.naming import CONFIG

    if not is_begun(options.run):
        raise InputError(f"{options.run}: no {CONFIG} there; give the folder of a run")
    options.voice.say(f"reading {options.run}")
    from distinf.engine.format import refuse_other_format
    from distinf.store import open_root

    refuse_other_format(open_root(options.run))


def _asked_again(options: argparse.Namespace, found: "Verification") -> list[str]:
    """What to do about damaged files that a run does not make."""
    from distinf.engine.verifying import EVALUATION, QUERY, folder_of

    verbs, run = {QUERY: "query", EVALUATION: "evaluate"}, shlex.quote(options.run)
    return [
        f"{folder_of(kind)} comes from a command of its own: give distinf {verb} {run} … again"
        for start, verb in verbs.items()
        for kind in sorted(found.handed)
        if kind.startswith(start)
    ]


def _repair(options: argparse.Namespace, blobs: "Blobs", found: "Verification") -> None:
    """Set aside what is damaged, then carry the run out: it makes that again, and what is left."""
    options.voice.say("loading torch and the task")
    from distinf.config import load
    from distinf.engine.lease import held
    from distinf.engine.run import checked_session
    from distinf.engine.verifying import set_aside, set_notes_aside

    config = load(options.run)
    with held(blobs):
        set_notes_aside(blobs, found)
    by = f"first distinf run {shlex.quote(options.run)}"
    checked_session(config, by=by)  # nothing is moved that cannot be made again
    with held(blobs):
        count = set_aside(blobs, found)
    units = f"{count} unit{'s' if count != 1 else ''}"
    show(f"set aside under {options.run}/damaged: {units}, and files that are no unit's")
    carry_out(config, [], time.monotonic(), options.voice, looks=True)


def _told_verification(found: "Verification", remedy: str) -> int:
    for problem in found.problems:
        show(problem, file=sys.stderr)
    counted = f"{found.records} records, {found.files} files, {found.bytes / 1e6:.1f} MB"
    if found.problems:
        count = len(found.problems)
        told = f"{count} problem{'s' if count > 1 else ''} in {counted}"
        show(f"{told}; {remedy}" if remedy else told, file=sys.stderr)
        return CorruptionError.exit_code
    show(f"intact: {counted}")
    return 0
