"""Everything in this process, one unit after the other: the reference, without Ray."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from distinf.runtime.ledger import Ledger
from distinf.runtime.machine import Node, this_machine
from distinf.runtime.protocol import Resources, RuntimeSettings, Work
from distinf.runtime.units import Unit
from distinf.runtime.worker import Outcome, Worker, raise_if_final, tell_lowered


class LocalRuntime:
    """A pool or gang of one. A gang has one rank: ordered sums make that the same result."""

    def __init__(self, settings: RuntimeSettings):
        self._settings = settings
        self._worker: Worker | None = None
        self._told: set[str] = set()
        self.busy_s = 0.0

    def pool(
        self, work: Work, units: Sequence[Unit], ledger: Ledger, resources: Resources | None = None
    ) -> None:
        done = ledger.committed_ids()
        for unit in {unit.id: unit for unit in units if unit.id not in done}.values():
            self._attempt(unit.describe(), partial(self._ready().run, work, unit))
        ledger.seal_full_segments()

    def gang(
        self, work: Work, ranks: int, ledger: Ledger | None = None, units: Sequence[Unit] = ()
    ) -> Any:
        if units and ledger and {unit.id for unit in units} <= ledger.committed_ids():
            return None
        alone = partial(self._ready().run_rank, work, 0, 1, "", self._settings.collective_timeout_s)
        return self._attempt(work.title, lambda _, halvings: alone(halvings)).value

    def blind_nodes(self, path: str) -> list[str]:
        return []  # there is no node but this

    def nodes(self) -> list[Node]:
        return [this_machine()]

    def take(self, settings: RuntimeSettings) -> None:
        self._settings = settings

    def close(self) -> None:
        self._worker = None

    def _ready(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._settings.threads, gpus=self._settings.num_gpus)
            self._worker.ready()
        return self._worker

    def _attempt(self, what: str, call: Callable[[int, int], Outcome]) -> Outcome:
        """call(attempt, halvings) until it succeeds, with half the rows where memory ran out."""
        before: Outcome | None = None
        attempt = halvings = 0
        while True:
            attempt += 1
            outcome = call(attempt, halvings)
            self.busy_s += outcome.seconds
            tell_lowered(outcome, self._told)
            if outcome.error is None:
                return outcome
            if outcome.less_may_fit:  # no attempt: each takes half the rows of the last, down to 1
                attempt, halvings = attempt - 1, halvings + 1
            raise_if_final(what, outcome, before, attempt, self._settings.attempts)
            before = outcome
