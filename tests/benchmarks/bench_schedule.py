"""How busy many workers are kept: the scheduling code of a run, on a clock that is computed.

python -m tests.benchmarks.bench_schedule [--workers 64] [--real 64]

`Pool` itself hands out the units, in the order that the retraining stage gives them, by estimates
that are wrong by a third. Its workers are simulated: a unit ends after its duration, and
the clock jumps to the next end. What the driver's code takes is really measured, as processor time,
and passes on that clock too, with CALL_S for what Ray takes of the driver for each call.

With --real, that many Ray actors on this machine as well, without torch, that sleep for as long as
shorter jobs of the same spread take: real calls, real processes, a real clock.
"""

import argparse
import heapq
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from distinf.runtime import Resources, RuntimeSettings, Unit, Work, address
from distinf.runtime.units import ending_together
from distinf.runtime.worker import Outcome

address.close_to_others()  # Ray reads it when it is imported

import ray  # noqa: E402

from distinf.runtime.ray import actors, pool  # noqa: E402

CALL_S = 1e-3  # bench_driver: .97 ms a unit, the scheduling code and a ledger's listing included
START_S = 20.0  # of a worker: it imports torch
# Seconds of 444 units that generated slots (twentieths, from the shortest to the longest).
RECORDED_S = (
    0.0, 0.09, 0.16, 0.33, 0.44, 0.63, 0.8, 0.96, 1.14, 1.34, 1.56, 1.8, 2.3, 2.65, 3.29, 3.7, 4.28,
    5.17, 6.6, 8.98, 22.91,
)  # fmt: skip
MEAN_JOB_S = 180.0
REAL_S, UP_S = 3.0, 5.0  # of a real actor's job on average, and of its first
WRONG = 0.3  # standard deviation of the logarithm of what a job takes over what was estimated


class Clock:
    """Seconds of the simulation: this process's own work, and what is waited for."""

    def __init__(self) -> None:
        self._ahead = -time.process_time()

    def monotonic(self) -> float:
        return time.process_time() + self._ahead

    def until(self, moment: float) -> None:
        self._ahead += max(0.0, moment - self.monotonic())


class Actors:
    """As `distinf.runtime.ray.actors.Actors`, of workers that only take their time."""

    def __init__(self, clock: Clock, seconds: dict[str, float]):
        self._clock, self._seconds = clock, seconds
        self._alive: set[Any] = set()
        self._ends: list[tuple[float, int]] = []
        self._calls = 0
        self.busy_s = 0.0

    def __contains__(self, actor: Any) -> bool:
        return actor in self._alive

    def warm(self, resources: Resources) -> list[Any]:
        return []

    def stop(self, actor: Any) -> None:
        self._alive.discard(actor)

    def new(self, resources: Resources) -> dict[Any, tuple[Any, None]]:
        actor = SimulatedWorker(self)
        self._alive.add(actor)
        return {self.call(START_S): (actor, None)}

    def call(self, seconds: float) -> int:
        self._calls += 1
        heapq.heappush(self._ends, (self._clock.monotonic() + seconds, self._calls))
        return self._calls

    def finished(
        self, running: dict[Any, Any], allowed_s: Callable[..., float]
    ) -> Iterator[tuple[Any, Any, Outcome]]:
        self._clock.until(self._ends[0][0])
        now, ended = self._clock.monotonic(), []
        while self._ends and self._ends[0][0] <= now:
            ended.append(heapq.heappop(self._ends)[1])
        for call in ended:
            if call in running:
                actor, unit = running.pop(call)
                self._clock.until(self._clock.monotonic() + CALL_S)
                seconds = 0.0 if unit is None else self._seconds[unit.id]
                self.busy_s += seconds
                yield actor, unit, Outcome(seconds=seconds)


class SimulatedWorker:
    """Has the one method that a pool calls, and that method's `remote`."""

    def __init__(self, actors: Actors):
        self._actors, self.run = actors, self

    def remote(self, work: Work, unit: Unit, attempt: int, halvings: int = 0) -> int:
        return self._actors.call(self._actors._seconds[unit.id])


class Unlisted:
    """In the place of a ledger: what listing it costs is in CALL_S."""

    def committed_ids(self) -> set[str]:
        return set()

    def seal_full_segments(self) -> int:
        return 0


def simulated(durations: list[float], workers: int) -> tuple[float, float, float]:
    """(utilisation from when the workers are up to the last unit's end, the seconds of all of it,
    the driver's processor seconds without Ray's own)."""
    jobs = [Unit("job", "key", i) for i in range(len(durations))]
    seconds_of = {unit.id: taken for unit, taken in zip(jobs, durations, strict=True)}
    drawn = random.Random(1)
    estimated = {id: taken * drawn.lognormvariate(0.0, WRONG) for id, taken in seconds_of.items()}
    units = {u.id: u for u in ending_together(jobs, lambda unit: estimated[unit.id])}
    clock = Clock()
    simulation: Any = Actors(clock, seconds_of)
    ledger: Any = Unlisted()
    work = Work("distinf.gram.actions:body", "", {})
    with patch.object(pool, "time", clock):
        began, before = clock.monotonic(), time.process_time()
        pool.Pool(simulation, work, units, ledger, RuntimeSettings()).run(Resources(), workers)
        seconds = clock.monotonic() - began
    took = time.process_time() - before
    return simulation.busy_s / (workers * (seconds - START_S)), seconds, took


class Sleeper:
    """A process on Ray that has what a pool asks of a worker, and no torch."""

    def born(self) -> tuple[str, None]:
        return "", None

    def ready(self) -> None: ...

    def run(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


class Handle:
    """As the handle of a worker's actor; a unit would bring torch with it, its seconds do not."""

    def __init__(self, actor: Any, seconds: dict[str, float]):
        self.actor, self.ready = actor, actor.ready
        self._seconds, self.run = seconds, self

    def remote(self, work: Work, unit: Unit, attempt: int, halvings: int = 0) -> Any:
        return self.actor.run.remote(self._seconds[unit.id])


class RealActors(actors.Actors):
    """The product's own, of Sleepers."""

    def __init__(self, seconds: dict[str, float]):
        super().__init__(threads=1, silent_s=math.inf)
        self._seconds, self.up = seconds, 0.0

    def new(self, resources: Resources) -> dict[Any, tuple[Any, None]]:
        actor = ray.remote(num_cpus=1)(Sleeper).remote()
        handle = Handle(actor, self._seconds)
        self._shapes[handle] = resources
        return {actor.born.remote(): (handle, None)}

    def stop(self, actor: Any) -> None:
        self._shapes.pop(actor, None)
        ray.kill(actor.actor)

    def _hung(self, *_: Any) -> Iterator[Any]:
        return iter(())


def real(durations: list[float], workers: int) -> tuple[float, float, float]:
    """(utilisation from when all workers are up, the seconds of that, the driver's processor
    seconds, Ray's own included)."""
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    first = [Unit("up", "key", i) for i in range(workers)]
    jobs = [Unit("job", "key", i) for i in range(len(durations))]
    seconds_of = {unit.id: taken for unit, taken in zip(jobs, durations, strict=True)}
    drawn = random.Random(1)
    estimated = {id: taken * drawn.lognormvariate(0.0, WRONG) for id, taken in seconds_of.items()}
    units = {u.id: u for u in ending_together(jobs, lambda unit: estimated[unit.id])}
    mine = RealActors(seconds_of | dict.fromkeys((unit.id for unit in first), UP_S))
    ledger: Any = Unlisted()
    work, settings = Work("distinf.gram.actions:body", "", {}), RuntimeSettings()
    pool.Pool(mine, work, {u.id: u for u in first}, ledger, settings).run(Resources(), workers)
    began, before = time.monotonic(), time.process_time()
    pool.Pool(mine, work, units, ledger, settings).run(Resources(), workers)
    seconds, took = time.monotonic() - began, time.process_time() - before
    ray.shutdown()
    return sum(durations) / (workers * seconds), seconds, took


def recorded(count: int, mean_s: float = MEAN_JOB_S) -> list[float]:
    """Durations spread as those that were recorded, of `mean_s` on average."""
    drawn, found = random.Random(0), []
    for _ in range(count):
        place = drawn.random() * (len(RECORDED_S) - 1)
        low = RECORDED_S[int(place)]
        found.append(low + (RECORDED_S[int(place) + 1] - low) * (place % 1))
    return [seconds * mean_s * count / sum(found) for seconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=30, help="of each real worker, on average")
    args = parser.parse_args()
    grid, short = recorded(6_000), [0.2] * 20_000
    for what, durations in (("jobs of minutes", grid), ("units of .2 s", short)):
        share, seconds, took = simulated(durations, args.workers)
        print(
            f"{len(durations)} {what} on {args.workers} simulated workers: busy {share:.1%} of "
            f"{(seconds - START_S) / 3600:.3f} h after their start of {START_S:g} s; the driver's "
            f"code {1e3 * took / len(durations):.2f} ms a unit, beside {1e3 * CALL_S:g} for Ray"
        )
    if args.real:
        count = args.jobs * args.real
        share, seconds, took = real(recorded(count, REAL_S), args.real)
        print(
            f"{count} jobs of {REAL_S:g} s on average on {args.real} real actors: busy {share:.1%} "
            f"of {seconds:.1f} s; the driver {1e3 * took / count:.2f} ms a unit, Ray's own included"
        )


if __name__ == "__main__":
    main()
