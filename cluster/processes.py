"""The processes of a local cluster, found and signalled through /proc (Linux).

A process belongs to a node if it carries the node's mark in its environment, is one recorded when
the node came up (pid and start time), shares the node's session, or descends from one that does.
No single sign is enough: Ray's workers overwrite their environment when they set their title,
and daemons lose their parent.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "DISTINF_LOCAL_NODE"  # environment variable: <cluster id>/<node number>


@dataclass(frozen=True)
class Process:
    pid: int
    started: int  # clock ticks since boot
    parent: int
    session: int
    command: str

    @property
    def identity(self) -> tuple[int, int]:
        """Tells it from a later process that was given the same pid."""
        return self.pid, self.started


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read(pid: int) -> Process | None:
    """The process, or None if it is gone, a zombie, or not ours to look at."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    if fields[0] in "ZX":
        return None
    words = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return Process(pid, int(fields[19]), int(fields[1]), int(fields[3]), words or name)


def living() -> list[Process]:
    found = (read(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [process for process in found if process]


def mark_of(process: Process) -> str | None:
    try:
        entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = f"{MARK}=".encode()
    marks = [entry.removeprefix(prefix) for entry in entries if entry.startswith(prefix)]
    return marks[0].decode(errors="replace") if marks else None


def belonging(
    marked: Callable[[str], bool],
    folders: Iterable[Path],
    sessions: Iterable[int],
    recorded: Iterable[tuple[int, int]],
) -> list[Process]:
    """Living processes with a mark that `marked` accepts, recorded as (pid, start time), in a
    session that has one of those or works in one of `folders`, and all their descendants."""
    everything = living()
    known, homes = set(recorded), {str(folder) for folder in folders}
    ours = {
        process.pid
        for process in everything
        if process.identity in known or marked(mark_of(process) or "")
    }
    for session in set(sessions):
        members = [process for process in everything if process.session == session]
        # A session's number is free again once all its processes are gone: ask for proof.
        if any(process.pid in ours or _works_in(process, homes) for process in members):
            ours.update(process.pid for process in members)
    grown = True
    while grown:
        children = {p.pid for p in everything if p.parent in ours and p.pid not in ours}
        ours |= children
        grown = bool(children)
    return [process for process in everything if process.pid in ours - {os.getpid()}]


def _works_in(process: Process, homes: set[str]) -> bool:
    try:
        return os.readlink(f"/proc/{process.pid}/cwd") in homes
    except OSError:
        return False


def send(process: Process, signal_number: int) -> None:
    """Signals this very process: nothing happens if it is gone and its pid belongs to another."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(process.pid)
        try:
            now = read(process.pid)
            if now and now.identity == process.identity:
                signal.pidfd_send_signal(handle, signal_number)
        finally:
            os.close(handle)


def stop(find: Callable[[], list[Process]], grace_s: float) -> int:
    """Ends all that `find` finds, also what is born meanwhile; how many there were.

    SIGTERM first if `grace_s` > 0. RuntimeError if some are still there after 15 s of SIGKILL.
    """
    found = find()
    seen = {process.identity for process in found}
    if grace_s > 0:
        for process in found:
            send(process, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while (found := find()) and time.monotonic() < deadline:
            seen |= {process.identity for process in found}
            time.sleep(0.1)
    deadline = time.monotonic() + 15
    while found := find():
        seen |= {process.identity for process in found}
        if time.monotonic() > deadline:
            raise RuntimeError(f"still running: {', '.join(str(process.pid) for process in found)}")
        for process in found:
            send(process, signal.SIGKILL)
        time.sleep(0.05)
    return len(seen)
