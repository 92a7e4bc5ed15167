"""One driver a run folder: a lease that a living driver renews and a dead one cannot keep.

A driver takes the next number that nobody has: `driver/00000002.json`, put if absent, so that of
two that come at once one loses. While it works, a counter in its file moves. Whether an earlier
driver lives is asked of the machine where both are on one, by process and start time; elsewhere
its counter is watched. Clocks are never compared, and the ledger needs no lease to be right: it
keeps two different runs out of one folder, and one run from being computed twice.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from distinf.errors import CorruptionError, InputError, Interrupted
from distinf.runtime import repairs
from distinf.runtime.orphans import end_orphans
from distinf.store import Blobs

LOG = logging.getLogger("distinf")  # the command line shows what is said here
FOLDER = "driver"
RENEW_S = 10.0
WATCH_S = 25.0  # more than two renewals


@dataclass(frozen=True)
class Driver:
    """machine tells apart what has processes of its own: a boot of a host, a container on it."""

    host: str = ""
    machine: str = ""
    process: int = 0
    started: str = ""
    counter: int = 0


@contextlib.contextmanager
def held(blobs: Blobs) -> Iterator[None]:
    """The folder is this driver's meanwhile.

    InputError, naming it, if another driver that lives has it; Interrupted if another one took it,
    as it may where this process was stopped for long.
    """
    lease = _take(blobs)
    over, lost = threading.Event(), threading.Event()

    def renewing() -> None:
        while not over.wait(RENEW_S):
            with contextlib.suppress(OSError):  # a full disk: tried again
                if not lease.renew():
                    lost.set()
                    signal.pthread_kill(threading.main_thread().ident or 0, _heard())
                    return

    thread = threading.Thread(target=renewing, daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise Interrupted(
            f"out: another command has taken over {blobs.root}, as this one did not move for long"
        ) from None
    finally:
        over.set()
        thread.join()
        lease.release()


def _heard() -> signal.Signals:
    """What interrupts the main thread: a command in a script's background ignores SIGINT."""
    is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    is_caught = callable(signal.getsignal(signal.SIGTERM))
    return signal.SIGTERM if is_ignored and is_caught else signal.SIGINT


class Lease:
    """A driver's number in a run's folder."""

    def __init__(self, blobs: Blobs, number: int):
        self._blobs = blobs
        self._name = _name(number)
        self._number = number
        self._driver = Driver(socket.gethostname(), _machine(), os.getpid(), start_of(os.getpid()))

    def claim(self) -> bool:
        """Take the number -> False if another driver was faster."""
        try:
            return self._blobs.put_if_absent(self._name, _packed(self._driver))
        except FileNotFoundError:  # the folder went with another's release
            return self._blobs.put_if_absent(self._name, _packed(self._driver))

    def renew(self) -> bool:
        """Say that this driver lives -> False if another one has taken its place."""
        if any(number > self._number for number in _numbers(self._blobs)):
            return False
        self._driver = replace(self._driver, counter=self._driver.counter + 1)
        self._blobs.put(self._name, _packed(self._driver))
        return True

    def release(self) -> None:
        """The folder is free; a failure to say so is no harm, as the process will be gone."""
        with contextlib.suppress(OSError):
            self._blobs.delete(self._name)
            if "://" not in self._blobs.root:
                os.rmdir(os.path.join(self._blobs.root, FOLDER))


def _take(blobs: Blobs) -> Lease:
    try:
        return _next(blobs)
    except CorruptionError:  # a link that leads elsewhere, or no folder: no lease of ours is there
        LOG.warning("warning: %s was no folder of the run; it was moved away", FOLDER)
        blobs.move(FOLDER, repairs.ASIDE)
        return _next(blobs)


def _next(blobs: Blobs) -> Lease:
    numbers = _numbers(blobs)
    if numbers:
        _refuse_living(blobs, numbers[-1])
    number = (numbers[-1] if numbers else 0) + 1
    lease = Lease(blobs, number)
    if not lease.claim():
        raise _taken(blobs, _driver(blobs, number))
    for earlier in numbers:  # of dead drivers
        dead = _driver(blobs, earlier)
        if dead is not None and dead.machine == _machine() and not start_of(dead.process):
            end_orphans(dead.process)
        with contextlib.suppress(CorruptionError):  # no file: nobody's, and passed over
            blobs.delete(_name(earlier))
    return lease


def _refuse_living(blobs: Blobs, number: int) -> None:
    last = _driver(blobs, number)
    if last is None:
        return
    if last.machine == _machine():
        if start_of(last.process) == last.started:
            raise _taken(blobs, last)
        return
    LOG.info("looking for %d s whether the driver on %s still works here", WATCH_S, last.host)
    until = time.monotonic() + WATCH_S
    while time.monotonic() < until:
        time.sleep(1.0)
        now = _driver(blobs, number)
        if now is None:
            return
        if now.counter != last.counter:
            raise _taken(blobs, now)


def _taken(blobs: Blobs, driver: Driver | None) -> InputError:
    who = f"process {driver.process} on {driver.host}" if driver else "another command"
    return InputError(
        f"out: {who} works in {blobs.root}; wait for it or stop it, or choose another --out"
    )


def _numbers(blobs: Blobs) -> list[int]:
    stems = [name.rsplit("/", 1)[-1].removesuffix(".json") for name in blobs.names(FOLDER)]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _name(number: int) -> str:
    return f"{FOLDER}/{number:08d}.json"


def _packed(driver: Driver) -> bytes:
    return json.dumps(asdict(driver)).encode()


def _driver(blobs: Blobs, number: int) -> Driver | None:
    """None if it is gone, or says nothing that can be read: such a driver counts as dead."""
    try:
        found = json.loads(blobs.get(_name(number)))
        driver = Driver(**found)
    except (CorruptionError, KeyError, ValueError, TypeError, RecursionError):
        return None
    kinds = (str, str, int, str, int)
    return driver if all(map(isinstance, asdict(driver).values(), kinds)) else None


def _machine() -> str:
    """The host's boot and the space of process numbers; on systems without them, its name."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def start_of(process: int) -> str:
    """When a process of this machine started, in ticks since its boot; "" if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return _alive_without_proc(process)


def _alive_without_proc(process: int) -> str:
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return ""
    except PermissionError:
        pass
    return "alive"
