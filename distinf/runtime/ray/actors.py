"""Workers on a Ray cluster: started, asked whether they live, stopped, and their calls heard."""

import contextlib
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from distinf.errors import InputError
from distinf.runtime.activity import HERE, Seen
from distinf.runtime.liveness import Answers
from distinf.runtime.machine import processes_killed_for_memory
from distinf.runtime.protocol import Resources
from distinf.runtime.ray import metrics
from distinf.runtime.ray.cluster import is_unfit, killed_for_memory, one_line, refuse_ruins
from distinf.runtime.worker import DEVICE_LOST, Outcome, Worker, free_address

LOG = logging.getLogger("distinf")  # the command line shows what is said here
PULSE, PULSE_S = "pulse", 5.0  # Ray's name for the thread that answers, and how often it is asked

OF_MONITOR = re.compile(r"OUT_OF_MEMORY|OutOfMemory|low on memory")  # Ray's words

Calls = dict[Any, tuple[Any, Any]]  # future -> its actor, and what the caller knows it by


class NodeWorker(Worker):
    """A worker that can be reached at its node's address, as the cluster knows it."""

    STOPS = ()  # Ray ends this process by a kill; an interrupt comes from the task's own code

    def born(self) -> tuple[str, int | None]:
        """Set up this process -> its node, and how many processes were killed there for memory."""
        self.ready()
        HERE.hear = metrics.done
        return ray.get_runtime_context().get_node_id(), processes_killed_for_memory()

    def free_address(self) -> str:
        return free_address(ray.util.get_node_ip_address())

    @ray.method(concurrency_group=PULSE)  # type: ignore[untyped-decorator]
    def pulse(self) -> Seen:
        """Answered by a thread of its own, whatever the worker is at."""
        return HERE.seen()


class Actors:
    """Those that are not known to be dead, and the seconds that they spent in bodies.

    threads   torch threads of each
    silent_s  one that does not answer for so long is stopped
    """

    def __init__(self, threads: int, silent_s: float):
        self._threads, self._silent_s = threads, silent_s
        self._shapes: dict[Any, Resources] = {}
        self._pulses = _Pulses()
        self._born: dict[Any, tuple[str, int | None]] = {}
        self.busy_s = 0.0

    def __contains__(self, actor: Any) -> bool:
        return actor in self._shapes

    def node(self, actor: Any) -> str:
        """Where it is."""
        return self._born.get(actor, ("", None))[0]

    def last_seen(self, actor: Any) -> Seen:
        """What it last said it was at."""
        return self._pulses.last(actor)

    def new(self, resources: Resources) -> dict[Any, tuple[Any, None]]:
        """Starts one -> the call that ends when it is ready, and the actor."""
        options = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {PULSE: 1},
        }
        paths = [path for path in sys.path if path]
        remote = ray.remote(**options)(NodeWorker)
        actor = remote.remote(self._threads, paths, resources.num_gpus)
        self._shapes[actor] = resources
        return {actor.born.remote(): (actor, None)}

    def warm(self, resources: Resources) -> list[Any]:
        """Living actors of this shape; others are stopped, so that nothing waits on them.

        Those that died since they were last used would cost a unit or a gang an attempt.
        """
        for actor, shape in list(self._shapes.items()):
            if shape != resources:
                self.stop(actor)
        asked = {actor.ready.remote(): (actor, None) for actor in self._shapes}
        while asked:
            for _ in self.finished(asked):
                pass
        return list(self._shapes)

    def stop(self, actor: Any) -> None:
        self._shapes.pop(actor, None)
        self._born.pop(actor, None)
        self._pulses.forget(actor)
        with contextlib.suppress(RayError, ValueError):
            ray.kill(actor)

    def stop_all(self) -> None:
        for actor in list(self._shapes):
            self.stop(actor)

    def finished(
        self,
        running: dict[Any, Any],
        allowed_s: Callable[[Any, Seen], float] = lambda label, seen: math.inf,
    ) -> Iterator[tuple[Any, Any, Outcome]]:
        """Calls that ended within a second, taken out of `running`; death is an outcome.

        So is hanging: `allowed_s` says how long a worker may be at the call with this label, when
        it last said what it was at, without a report.
        """
        refuse_ruins()
        ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        for future in ready:
            actor, label = running.pop(future)
            try:
                value = ray.get(future)
                outcome = value if isinstance(value, Outcome) else Outcome(value=value)
                self.busy_s += outcome.seconds
                if DEVICE_LOST in outcome.message:
                    self.stop(actor)  # another process may do it
                if label is None and isinstance(outcome.value, tuple):
                    self._born[actor] = outcome.value
            except RayError as error:
                why = self._memory_kill(actor, error)
                self.stop(actor)
                if label is None and is_unfit(error):
                    raise InputError(
                        f"runtime: a worker did not start: {one_line(error)}"
                    ) from None
                outcome = Outcome(
                    error="died", message=why or one_line(error), is_killed_for_memory=bool(why)
                )
            if label is None and outcome.error is None:
                self._pulses.watch(actor)
            yield actor, label, outcome
        yield from self._hung(running, allowed_s)

    def _memory_kill(self, actor: Any, error: RayError) -> str:
        """Who killed this worker for memory; "" if nobody says so.

        Ray's monitor says it with the death. The kernel counts its kills, a machine's together: of
        a worker that died while they became more, it is most likely.
        """
        if OF_MONITOR.search(str(error)):
            return "its worker was killed by Ray, as its node ran out of memory"
        node, before = self._born.get(actor, ("", None))
        if before is None or not isinstance(error, ActorDiedError):
            return ""
        now = killed_for_memory(node)
        if now is None or now <= before:
            return ""
        return "its worker was killed, most likely by the kernel of its node, out of memory"

    def _hung(
        self, running: dict[Any, Any], allowed_s: Callable[[Any, Seen], float]
    ) -> Iterator[tuple[Any, Any, Outcome]]:
        """Calls that go on but will not end, taken out of `running`, their workers stopped."""
        self._pulses.ask(actor for actor, _ in running.values())
        hung = []
        for future, (actor, label) in running.items():
            unanswered_s, seen = self._pulses.unanswered_s(actor), self._pulses.last(actor)
            if unanswered_s > self._silent_s:
                hung.append((future, f"it did not answer for {unanswered_s:.0f} s"))
            elif seen.kind and seen.silent_s > allowed_s(label, seen):
                hung.append((future, f"it was at one {seen.kind} for {seen.silent_s:.0f} s"))
        for future, why in hung:
            actor, label = running.pop(future)
            self.stop(actor)
            LOG.warning("warning: a worker hangs, another one takes its work: %s", why)
            yield actor, label, Outcome(error="died", message=f"{why}; it was stopped")


class _Pulses:
    """Asks workers every few seconds what they are at, without waiting for the answer."""

    def __init__(self) -> None:
        self._answers: dict[Any, Answers] = {}
        self._open: dict[Any, Any] = {}  # question -> worker
        self._asked: dict[Any, float] = {}
        self._looked = time.monotonic()

    def watch(self, actor: Any) -> None:
        """From now on: it has started."""
        self._answers.setdefault(actor, Answers())

    def forget(self, actor: Any) -> None:
        self._answers.pop(actor, None)
        self._asked.pop(actor, None)
        self._open = {question: asked for question, asked in self._open.items() if asked != actor}

    def last(self, actor: Any) -> Seen:
        return self._answers[actor].last if actor in self._answers else Seen()

    def unanswered_s(self, actor: Any) -> float:
        watched = self._answers.get(actor)
        return watched.unanswered_s(time.monotonic()) if watched else 0.0

    def ask(self, actors: Iterable[Any]) -> None:
        """Take the answers that are there, and put the questions that are due."""
        now = time.monotonic()
        if now - self._looked > PULSE_S + 5.0:  # this process was stopped, not they
            for watched in self._answers.values():
                watched.asked = now if watched.asked is not None else None
        self._looked = now
        if self._open:
            answered, _ = ray.wait(list(self._open), num_returns=len(self._open), timeout=0)
            for question in answered:
                watched = self._answers[self._open.pop(question)]
                with contextlib.suppress(RayError):  # a death is told by the call that it ended
                    watched.last, watched.asked = ray.get(question), None
        for actor in actors:
            due = now - self._asked.get(actor, 0.0) >= PULSE_S
            if due and actor in self._answers and self._answers[actor].asked is None:
                self._answers[actor].asked = self._asked[actor] = now
                self._open[actor.pulse.remote()] = actor
