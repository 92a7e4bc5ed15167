"""The verbs of a runtime on Ray."""

import os
import time
from collections.abc import Sequence
from typing import Any

from distinf.runtime.activity import Seen
from distinf.runtime.ledger import Ledger
from distinf.runtime.machine import Node
from distinf.runtime.protocol import Resources, RuntimeSettings, Work
from distinf.runtime.ray import cluster, metrics, preflight
from distinf.runtime.ray.actors import LOG, Actors, Calls
from distinf.runtime.ray.pool import Pool, none_started
from distinf.runtime.units import Unit
from distinf.runtime.worker import HALF, RAISABLE, Outcome, raise_if_final, tell_lowered


class RayRuntime:
    """Warm actors on a cluster that is joined or, without an address, started here.

    Ray never retries for us: a call that failed may have been carried out, so what is done is
    what the ledger says, and only a unit that is not in it is attempted again.
    """

    def __init__(self, settings: RuntimeSettings, packages: Sequence[str] = ()):
        self._settings, self._packages = settings, packages
        self._actors = Actors(settings.threads, settings.silent_s)
        self._started = False
        self._told: set[str] = set()

    @property
    def busy_s(self) -> float:
        return self._actors.busy_s

    # -- verbs -----------------------------------------------------------------------------

    def pool(
        self, work: Work, units: Sequence[Unit], ledger: Ledger, resources: Resources | None = None
    ) -> None:
        resources = resources or self._settings.resources
        done = ledger.committed_ids()
        wanted = {unit.id: unit for unit in units if unit.id not in done}
        if wanted:
            self._start()
            pool = Pool(self._actors, work, wanted, ledger, self._settings)
            pool.run(resources, self._room(resources))
            ledger.seal_full_segments()

    def gang(
        self, work: Work, ranks: int, ledger: Ledger | None = None, units: Sequence[Unit] = ()
    ) -> Any:
        resources = self._settings.resources
        self._start()
        attempt = 0
        failed: Outcome | None = None
        halvings = 0  # of microbatches: by ranks that ran out of memory
        while True:
            attempt += 1
            done = ledger.committed_ids() if ledger else set()
            left, before = [unit.id for unit in units if unit.id not in done], len(done)
            if units and not left:
                return None
            gangs = self._gangs(resources, ranks, len(left) or 1)
            shares = [left[k :: len(gangs)] if left else None for k in range(len(gangs))]
            outcome = self._run_gangs(work, gangs, shares, attempt - 1, halvings)
            if outcome.error is None:
                return outcome.value
            metrics.failed(work.title)
            if ledger and len(ledger.committed_ids()) > before:
                attempt = 0  # days of work may lose more workers than `attempts`
            if outcome.less_may_fit:  # no attempt: each takes half the rows of the last, down to 1
                attempt -= 1
            raise_if_final(work.title, outcome, failed, attempt, self._settings.attempts)
            failed = outcome
            metrics.retried(work.title)
            if outcome.is_killed_for_memory or outcome.less_may_fit:
                halvings += 1
                LOG.warning("warning: %s: %s; %s", work.title, outcome.message, HALF)

    def blind_nodes(self, path: str) -> list[str]:
        """Addresses of nodes that could be given work but do not see the file at `path`."""
        self._start()
        able = [
            n for n in cluster.alive() if cluster.fits(n["Resources"], self._settings.resources)
        ]
        found = cluster.answers(able, os.path.exists, path)
        return [node["NodeName"] for node, is_seen in found if not is_seen]

    def nodes(self) -> list[Node]:
        self._start()
        self._room(self._settings.resources)  # where there is none, nobody need be asked
        return cluster.nodes()

    def take(self, settings: RuntimeSettings) -> None:
        self._settings = settings

    def close(self) -> None:
        if self._started:
            self._started = False
            if cluster.dead_part() is None:
                self._actors.stop_all()
            cluster.leave()

    def _start(self) -> None:
        if not self._started:
            cluster.connect(self._settings)
            self._started = True
            if not self._settings.starts_cluster:
                preflight.refuse_unlike(self._packages)
            LOG.info("starting workers")

    def _room(self, resources: Resources) -> int:
        """How many workers of this shape there can be, at most `workers` of them."""
        room = cluster.room_for(resources)
        return min(self._settings.workers or room, room)

    # -- gangs -----------------------------------------------------------------------------

    def _gangs(self, resources: Resources, ranks: int, most: int) -> list[list[Any]]:
        """Ready actors for as many gangs of so many ranks as there is room for, at most `most`; of
        one gang, when time is up, as many as there are (at least 1)."""
        actors = self._actors.warm(resources)
        starting: Calls = {}
        deadline = time.monotonic() + self._settings.timeout_s
        try:
            while True:
                room = self._room(resources)  # less after a node was lost: don't wait for those
                size = wanted = min(ranks or room, room)
                if ranks and most > 1:
                    wanted = max(size, min(most, room // ranks) * ranks)
                late = time.monotonic() > deadline
                if len(actors) >= wanted or (actors and late):
                    actors.sort(key=self._actors.node)  # a gang's ranks are near each other
                    ends = range(size, min(len(actors), wanted) + 1, size)
                    return [actors[end - size : end] for end in ends] or [actors]
                if late:
                    raise none_started("gang", self._settings)
                for _ in range(wanted - len(actors) - len(starting)):
                    starting |= self._actors.new(resources)
                actors += [
                    actor
                    for actor, _, _ in self._actors.finished(starting)
                    if actor in self._actors
                ]
        finally:
            for actor, _ in starting.values():
                self._actors.stop(actor)

    def _run_gangs(
        self, work: Work, gangs: list[list[Any]], shares: Sequence[list[str] | None], again: int,
        halvings: int,
    ) -> Outcome:  # fmt: skip
        """The first gang's rank 0's outcome when all have ended, or a failure: every rank of a gang
        that failed was stopped, and the others went on."""

        def allowed_s(label: tuple[int, int], seen: Seen) -> float:
            same = (actor for actor, (gang, _) in running.values() if gang == label[0])
            others = [self._actors.last_seen(actor) for actor in same]
            return self._settings.limits.rank(seen, others, again)

        asked = {actors[0].free_address.remote(): (actors[0], k) for k, actors in enumerate(gangs)}
        addresses: dict[int, str] = {}
        while asked:
            for _, k, address in self._actors.finished(asked):
                if address.error is not None:
                    return address
                addresses[k] = address.value
        timeout_s = self._settings.collective_timeout_s
        running = {
            actor.run_rank.remote(
                work, rank, len(actors), addresses[k], timeout_s, halvings, shares[k]
            ): (actor, (k, rank))
            for k, actors in enumerate(gangs)
            for rank, actor in enumerate(actors)
        }
        result = Outcome()
        failures: dict[int, list[Outcome]] = {}
        while running:
            failed = [*failures]  # the first to fail may have only lost its peer: hear once more
            if any(o.error in RAISABLE for each in failures.values() for o in each):
                failed = [*range(len(gangs))]  # none will come further
            for _, (k, rank), outcome in self._actors.finished(running, allowed_s):
                tell_lowered(outcome, self._told)
                if outcome.error is not None:
                    failures.setdefault(k, []).append(outcome)
                elif k == rank == 0:
                    result = outcome
            for k in failed:  # its survivors would hang in their collective until its time-out
                self._stop(gangs[k])
                running = {call: at for call, at in running.items() if at[1][0] != k}
        for k in failures:
            self._stop(gangs[k])
        return min((o for each in failures.values() for o in each), key=_remoteness, default=result)

    def _stop(self, actors: list[Any]) -> None:
        for actor in actors:
            self._actors.stop(actor)


def _remoteness(outcome: Outcome) -> int:
    """Of a gang's failures the lowest is nearest to the cause."""
    if outcome.error in RAISABLE:
        return 0
    if outcome.whose != "passing" or outcome.out_of_memory:
        return 1
    return 2 if outcome.error == "died" else 3
