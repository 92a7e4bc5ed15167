"""Units handed out to workers, until the ledger holds every one."""

import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from distinf.errors import Interrupted
from distinf.runtime.activity import Seen
from distinf.runtime.ledger import SEGMENT_RECORDS, Ledger
from distinf.runtime.protocol import Resources, RuntimeSettings, Work
from distinf.runtime.ray import metrics
from distinf.runtime.ray.actors import LOG, Actors, Calls
from distinf.runtime.units import Unit
from distinf.runtime.worker import HALF, RAISABLE, Outcome, raise_if_final, tell_lowered

LATE, LATE_S = 2.0, 30.0  # times the longest unit so far, and at least: an idle worker tries it too


class Pool:
    """One stage's units on all workers.

    A unit that takes long when others wait for nothing is tried by an idle worker as well: the
    first to commit it has it, and what the other makes changes nothing (see the ledger).
    """

    def __init__(
        self, actors: Actors, work: Work, units: Mapping[str, Unit], ledger: Ledger,
        settings: RuntimeSettings,
    ):  # fmt: skip
        """units: by id, of which the ledger has none."""
        self._actors, self._work, self._ledger, self._settings = actors, work, ledger, settings
        self._waiting = deque(units.values())
        self._open = {*units}  # ids that are not known to be committed
        self._running: Calls = {}  # with the unit, None for a worker that starts
        self._attempts: Counter[str] = Counter()
        self._began: dict[str, float] = {}  # the last attempt, by unit
        self._failed: dict[str, Outcome] = {}  # how a unit failed last
        self._halvings: Counter[str] = Counter()  # of microbatches: where memory ran out
        self._longest_s: float | None = None
        self._most_rows = 1  # of a unit that is done
        self._finished = 0
        self._told: set[str] = set()

    def run(self, resources: Resources, room: int) -> None:
        """On workers of this shape, at most `room` of them."""
        idle = self._actors.warm(resources)
        progressed = time.monotonic()
        try:
            while self._open:
                self._hand_out(idle)
                alive = len(idle) + len(self._running)
                for _ in range(min(len(self._waiting), room - alive)):
                    self._running |= self._actors.new(resources)
                if any(unit for _, unit in self._running.values()):
                    progressed = time.monotonic()
                elif time.monotonic() - progressed > self._settings.timeout_s:
                    raise none_started(self._waiting[0].describe(), self._settings)
                for actor, unit, outcome in self._actors.finished(self._running, self._allowed_s):
                    if actor in self._actors:
                        idle.append(actor)
                    if unit is not None and unit.id in self._open:
                        self._hear(unit, outcome)
        finally:  # still starting and no longer needed, or at work when this stopped
            for actor, _ in self._running.values():
                self._actors.stop(actor)

    def _hand_out(self, idle: list[Any]) -> None:
        while self._waiting and idle:
            unit = self._waiting.popleft()
            self._attempts[unit.id] += 1
            if self._attempts[unit.id] > 1:
                metrics.retried(unit.stage)
            self._began[unit.id] = time.monotonic()
            self._give(idle.pop(), unit)
        for unit in self._late()[: len(idle)]:
            LOG.info("%s takes long: another worker tries it too", unit.describe())
            self._give(idle.pop(), unit)

    def _give(self, actor: Any, unit: Unit) -> None:
        call = actor.run.remote(self._work, unit, self._attempts[unit.id], self._halvings[unit.id])
        self._running[call] = (actor, unit)

    def _late(self) -> list[Unit]:
        """Those that take long beside the ones that are done, and that one worker is at."""
        if self._longest_s is None:
            return []
        running = [unit for _, unit in self._running.values() if unit and unit.id in self._open]
        workers = Counter(unit.id for unit in running)
        now, late_s = time.monotonic(), LATE * self._longest_s
        return [
            unit
            for unit in running
            if workers[unit.id] == 1
            and now - self._began[unit.id] > max(LATE_S, late_s * self._times(unit))
        ]

    def _times(self, unit: Unit) -> float:
        """As long as the longest so far: in proportion where it has more rows than any of them."""
        return max(1.0, (unit.stop - unit.start) / self._most_rows)

    def _allowed_s(self, unit: Unit | None, _: Seen) -> float:
        if unit is None:
            return math.inf
        longest_s = self._longest_s and self._longest_s * self._times(unit)
        return self._settings.limits.unit(longest_s, self._attempts[unit.id] - 1)

    def _hear(self, unit: Unit, outcome: Outcome) -> None:
        if outcome.error is None:
            self._open.remove(unit.id)
            self._longest_s = max(self._longest_s or 0.0, outcome.seconds)
            self._most_rows = max(self._most_rows, unit.stop - unit.start)
            self._finished += 1
            tell_lowered(outcome, self._told)
            if self._finished % SEGMENT_RECORDS == 0:
                self._ledger.seal_full_segments()
            return
        metrics.failed(unit.stage)
        if outcome.error not in RAISABLE:
            if unit.id in self._ledger.committed_ids():
                self._open.remove(unit.id)
                return
            if any(other == unit for _, other in self._running.values()):
                return  # the other worker that tries it may have it
        raise_if_final(
            unit.describe(), outcome, self._failed.get(unit.id), self._attempts[unit.id],
            self._settings.attempts,
        )  # fmt: skip
        self._failed[unit.id] = outcome
        if outcome.is_killed_for_memory or outcome.less_may_fit:
            self._halvings[unit.id] += 1
            LOG.warning("warning: %s: %s; %s", unit.describe(), outcome.message, HALF)
        if outcome.whose == "passing":
            self._waiting.append(unit)
        else:  # know at once whether it fails again, not after all the others
            self._waiting.appendleft(unit)


def none_started(what: str, settings: RuntimeSettings) -> Interrupted:
    return Interrupted(
        f"{what}: no worker started within {settings.timeout_s:g} s, the cluster may be full; run "
        "the same command to resume"
    )
