"""How a run stands, as its driver last said: one small file in its folder.

The ledger alone says what is done. This says who works on it, where it stopped and why, and can
be read within a moment, before anything heavy is imported.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distinf.errors import CorruptionError, DistinfError
from distinf.naming import CONFIG
from distinf.runtime.agenda import START
from distinf.store.regular import open_regular, read_whole

if TYPE_CHECKING:  # the stages are heavy to import
    from distinf.engine.running import Watcher
    from distinf.runtime import Part

HEARTBEAT = "heartbeat.json"
MOST_BYTES = 64 << 20  # of a configuration
BEAT_S = 10.0
SILENT_S = 60.0  # without a word for this long, a driver on another machine counts as gone

RUNNING, STOPPED, FINISHED = "running", "stopped", "finished"


@dataclass(frozen=True)
class Heartbeat:
    """The driver's last word.

    state          running, stopped or finished
    stage          that it was at, "" before the first; done of units of it are committed
    stages_done    of `stages`, those of variations among them
    at             when it was said, in seconds since the epoch
    host, process  the driver
    why            it stopped
    """

    state: str = RUNNING
    stage: str = ""
    done: int = 0
    units: int = 0
    stages_done: int = 0
    stages: int = 0
    at: float = 0.0
    host: str = ""
    process: int = 0
    why: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether its driver still works: looked up on this machine, elsewhere by its age."""
        if self.state != RUNNING or self.process < 1:
            return False
        if self.host != socket.gethostname():
            return time.time() - self.at < SILENT_S
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):  # another user's; no process at all
            pass
        return True


def last_heartbeat(root: str) -> Heartbeat | None:
    """What the driver of the run in this folder or bucket last said; None if there is nothing."""
    try:
        found = json.loads(_stored(root, HEARTBEAT) or b"")
        return Heartbeat(**{f.name: f.type(found[f.name]) for f in fields(Heartbeat)})  # type: ignore
    except (ValueError, KeyError, TypeError, OSError, ArithmeticError, RecursionError):
        return None
    except CorruptionError:
        return None


def is_begun(root: str) -> bool:
    """Whether a run lies there, this one or another: by its configuration, whatever that is, or,
    where it is gone, by its agenda."""
    try:
        return any(_stored(root, name) is not None for name in (CONFIG, START))
    except CorruptionError:
        return True


def _stored(root: str, name: str) -> bytes | None:
    if "://" in root and not root.startswith("file://"):
        from distinf.store import open_root

        try:
            return open_root(root).get(name)
        except KeyError:
            return None
    try:
        with open_regular(Path(root.removeprefix("file://"), name)) as file:
            return read_whole(file, name, MOST_BYTES)
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None


class Beating:
    """Keeps the file up to date while a run goes through the stages `titles`, in this order."""

    def __init__(
        self, blobs: Any, titles: Sequence[str], hidden: Callable[[str], str] = lambda why: why
    ):
        """`hidden` takes out of a failure's words what is not to be stored."""
        self._hidden = hidden
        self._blobs = blobs
        self._titles = titles
        self._count: Callable[[], float] | None = None
        self._stop = threading.Event()
        self._last = Heartbeat(stages=len(titles), host=socket.gethostname(), process=os.getpid())

    @contextmanager
    def beating(self) -> Iterator[None]:
        """From the first word to the last; a word that cannot be written stops nothing."""
        thread = threading.Thread(target=self._beat, daemon=True)
        self._say()
        thread.start()
        end: dict[str, Any] = {"state": STOPPED, "why": "by a failure"}
        try:
            yield
            end = {"state": FINISHED, "stage": "", "stages_done": len(self._titles)}
        except KeyboardInterrupt:
            end["why"] = "by hand"
            raise
        except DistinfError as error:
            end["why"] = self._hidden(str(error))
            raise
        finally:
            self._stop.set()
            thread.join()
            self._say(**end)

    def watching(self, watch: "Watcher") -> "Watcher":
        """`watch`, with every stage told of here too."""

        @contextmanager
        def watched(
            part: "Part", units: Sequence[Any], done: Callable[[], float]
        ) -> Iterator[None]:
            before = self._titles.index(part.title)
            self._count = done
            self._say(stage=part.title, units=len(units), stages_done=before)
            with watch(part, units, done):
                yield
            self._count = None

        return watched

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._say()

    def _say(self, **changes: Any) -> None:
        with contextlib.suppress(Exception):
            if self._count is not None:
                changes["done"] = int(self._count())
            self._last = replace(self._last, at=time.time(), **changes)
            self._blobs.put(HEARTBEAT, json.dumps(asdict(self._last)).encode())
