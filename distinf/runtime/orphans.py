"""What a driver's own Ray cluster leaves behind when the driver is killed: agents of its node.

Ray ends its servers and workers with their driver; two agents that the node's own process had
started stay. They are known by their title, and by the log files that they hold open: a session of
Ray's is named after the process that began it.
"""

import contextlib
import os
import re
import signal
from pathlib import Path

PROCESSES = Path("/proc")


def end_orphans(driver: int) -> int:
    """Kill what is left of the cluster of a process that is dead -> how many processes.

    Nothing where there is no /proc, or what is another user's.
    """
    session = re.compile(rf"/session_[^/]*_{driver}/")
    found = [
        each
        for each in _others()
        if _title(each).startswith(b"ray::") and any(map(session.search, _open_files(each)))
    ]
    for each in found:
        with contextlib.suppress(OSError):
            os.kill(each, signal.SIGKILL)
    return len(found)


def _others() -> list[int]:
    if not PROCESSES.is_dir():
        return []
    numbers = [int(entry.name) for entry in PROCESSES.iterdir() if entry.name.isdigit()]
    return [number for number in numbers if number != os.getpid()]


def _title(process: int) -> bytes:
    with contextlib.suppress(OSError):
        return (PROCESSES / str(process) / "cmdline").read_bytes()
    return b""


def _open_files(process: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for entry in (PROCESSES / str(process) / "fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(os.readlink(entry))
    return found
