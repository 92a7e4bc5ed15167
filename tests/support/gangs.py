"""Gangs of one or two processes on this machine, stopped in the middle of a sum if asked to.

The processes form a real gloo group, run the stages' own bodies and are those of a runtime but for
Ray. A stop comes at the same sum on every rank, so a test fails in the same place each time.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from distinf.runtime import Work
from distinf.runtime.worker import Outcome, Worker, free_address, resolve
from distinf.spectral.session import Session

PREPARE = "distinf.engine.session:prepare"
SUMS = ("ordered_sum", "all_reduce", "all_gather", "barrier")
TIMEOUT_S = 60.0


class Stopped(Exception):
    """The stop that was asked for."""


class Gang:
    """Warm processes that are the ranks of one gang after the other."""

    def __init__(self, pool: ProcessPoolExecutor):
        self._pool = pool

    def run(self, body: str, session: Session, ranks: int, stop_at: int | None = None) -> bool:
        """The body on every rank -> whether it went to its end; other failures are raised.

        stop_at: the sum, from 1, at which every rank stops instead of taking part.
        """
        work = Work(
            "tests.support.gangs:stopping", PREPARE,
            {**session.context, "stopping": {"body": body, "at": stop_at}},
        )  # fmt: skip
        address = free_address("127.0.0.1")
        calls = [self._pool.submit(_rank, work, rank, ranks, address) for rank in range(ranks)]
        outcomes = [call.result(timeout=2 * TIMEOUT_S) for call in calls]
        stopped = ["gangs.Stopped: " in o.trace for o in outcomes if o.error]
        if stopped and not all(stopped):
            raise AssertionError("\n".join(o.trace for o in outcomes))
        return not stopped


@contextmanager
def gang_of_two() -> Iterator[Gang]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield Gang(pool)


def _rank(work: Work, rank: int, size: int, address: str) -> Outcome:
    worker = Worker()
    worker.ready()
    return worker.run_rank(work, rank, size, address, TIMEOUT_S)


def stopping(session: Session, collective: Any, attempt: str) -> Any:
    """A gang's body that runs another, up to a sum."""
    stop: Mapping[str, Any] = session.context["stopping"]
    return resolve(stop["body"])(session, _Counting(collective, stop["at"]), attempt)


class _Counting:
    """A collective that counts what the ranks say to each other."""

    def __init__(self, collective: Any, stop_at: int | None):
        self._collective = collective
        self._left = stop_at

    def __getattr__(self, name: str) -> Any:
        if name in SUMS and self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Stopped(name)
        return getattr(self._collective, name)
