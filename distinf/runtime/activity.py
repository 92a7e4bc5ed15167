"""What this process is at, for whoever asks from another thread: a hung one says nothing new."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

UNIT, SHARD, COLLECTIVE = "unit", "shard", "collective"


@dataclass(frozen=True)
class Seen:
    """kind of the innermost work, seconds since its last report, and the longest shard so far."""

    kind: str = ""
    silent_s: float = 0.0
    longest_shard_s: float = 0.0


def _deaf(stage: str, seconds: float) -> None:
    pass


class Activity:
    """One thread works and reports, others look; each field is written whole."""

    def __init__(self) -> None:
        self._kinds: list[str] = []
        self._reported = time.monotonic()
        self._longest_shard_s = 0.0
        self._lap: float | None = None  # when what is committed next was begun
        self.gpus = 0.0  # that this process holds
        self.hear: Callable[[str, float], None] = _deaf  # stage and seconds of what is committed

    def report(self) -> None:
        """A sign of progress: rows were read, a step was taken, something was committed."""
        self._reported = time.monotonic()

    @contextmanager
    def doing(self, kind: str) -> Iterator[None]:
        """Report that this work begins, and that it ends."""
        began = time.monotonic()
        self._kinds = [*self._kinds, kind]
        self._reported = began
        self._lap = began if kind == UNIT else self._lap
        try:
            yield
        finally:
            self._kinds = self._kinds[:-1]
            self._reported = time.monotonic()
            self._lap = None if kind == UNIT else self._lap
            if kind == SHARD:
                self._longest_shard_s = max(self._longest_shard_s, self._reported - began)

    def spent(self, stage: str) -> dict[str, float]:
        """Seconds since the unit began, or since this was asked last in it, and GPUs held; nothing
        outside of a unit."""
        began, self._lap = self._lap, None if self._lap is None else time.monotonic()
        if began is None:
            return {}
        seconds = time.monotonic() - began
        self.hear(stage, seconds)
        return {"seconds": seconds, "gpus": self.gpus}

    def forget(self) -> None:
        """Before other work, whose shards may take another time."""
        self._longest_shard_s = 0.0

    def seen(self) -> Seen:
        kinds = self._kinds
        kind = kinds[-1] if kinds else ""
        return Seen(kind, time.monotonic() - self._reported, self._longest_shard_s)


HERE = Activity()  # of this process
