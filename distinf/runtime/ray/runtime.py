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

    def __init__(self, settings: RuntimeSettings):
        self._settings = settings
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

    def gang(self, work: Work, ranks: int, ledger: Ledger | None = None) -> Any:
        resources = self._settings.resources
        self._start()
        attempt = 0
        failed: Outcome | None = None
        halvings = 0  # of microbatches: by ranks killed for memory
        while True:
            attempt += 1
            before = len(ledger.committed_ids()) if ledger else 0
            actors = self._gang_actors(resources, ranks)
            outcome = self._run_gang(work, actors, attempt - 1, halvings)
            if outcome.error is None:
                return outcome.value
            metrics.failed(work.title)
            if ledger and len(ledger.committed_ids()) > before:
                attempt = 0  # days of work may lose more workers than `attempts`
            raise_if_final(work.title, outcome, failed, attempt, self._settings.attempts)
            failed = outcome
            metrics.retried(work.title)
            if outcome.is_killed_for_memory:
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
                preflight.refuse_unlike()
            LOG.info("starting workers")

    def _room(self, resources: Resources) -> int:
        """How many workers of this shape there can be, at most `workers` of them."""
        room = cluster.room_for(resources)
        return min(self._settings.workers or room, room)

    # -- gangs -----------------------------------------------------------------------------

    def _gang_actors(self, resources: Resources, ranks: int) -> list[Any]:
        """As many ready actors as ranks, or, when time is up, as many as there are (at least 1)."""
        actors = self._actors.warm(resources)
        starting: Calls = {}
        deadline = time.monotonic() + self._settings.timeout_s
        try:
            while True:
                room = self._room(resources)  # less after a node was lost: don't wait for those
                wanted = min(ranks or room, room)
                late = time.monotonic() > deadline
                if len(actors) >= wanted or (actors and late):
                    return actors[:wanted]
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

    def _run_gang(self, work: Work, actors: list[Any], again: int, halvings: int) -> Outcome:
        """Rank 0's outcome, or a failure after which every rank was stopped."""

        def allowed_s(_: int, seen: Seen) -> float:
            others = [self._actors.last_seen(actor) for actor, _ in running.values()]
            return self._settings.limits.rank(seen, others, again)

        asked = {actors[0].free_address.remote(): (actors[0], 0)}
        address = Outcome()
        while asked:
            for _, _, address in self._actors.finished(asked):
                if address.error is not None:
                    return address
        timeout_s = self._settings.collective_timeout_s
        running = {
            actor.run_rank.remote(work, rank, len(actors), address.value, timeout_s, halvings): (
                actor,
                rank,
            )
            for rank, actor in enumerate(actors)
        }
        result = Outcome()
        failures: list[Outcome] = []
        while running and not failures:
            for _, rank, outcome in self._actors.finished(running, allowed_s):
                tell_lowered(outcome, self._told)
                if outcome.error is not None:
                    failures.append(outcome)
                elif rank == 0:
                    result = outcome
        if not failures:
            return result
        if running:  # the first to fail may have only lost its peer: hear the next one too
            failures += [o for _, _, o in self._actors.finished(running) if o.error is not None]
        for survivor in actors:  # they would hang in their collective until its time-out
            self._actors.stop(survivor)
        return min(failures, key=_remoteness)


def _remoteness(outcome: Outcome) -> int:
    """Of a gang's failures the lowest is nearest to the cause."""
    if outcome.error in RAISABLE:
        return 0
    return 1 if outcome.whose != "passing" else 2 if outcome.error == "died" else 3
