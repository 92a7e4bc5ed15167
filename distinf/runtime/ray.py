"""The Ray runtime: one set of warm actors for pools and gangs. The only `import ray`."""

import atexit
import contextlib
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

from distinf.errors import ClusterEnded, InputError, Interrupted
from distinf.runtime.activity import HERE, Seen
from distinf.runtime.address import close_to_others, refuse_open, refuse_silent, resolved
from distinf.runtime.ledger import SEGMENT_RECORDS, Ledger
from distinf.runtime.liveness import Answers
from distinf.runtime.machine import Node, cpus_here, seen_on_node
from distinf.runtime.protocol import Resources, RuntimeSettings, Work
from distinf.runtime.units import Unit
from distinf.runtime.worker import (
    DEVICE_LOST,
    RAISABLE,
    Outcome,
    Worker,
    free_address,
    raise_if_final,
)

LOG = logging.getLogger("distinf")  # the command line shows what is said here
PARTS = ("gcs_server", "raylet")
PULSE, PULSE_S = "pulse", 5.0  # Ray's name for the thread that answers, and how often it is asked
BUSY = "timed out during startup"  # Ray's words, where a machine does too much else


class NodeWorker(Worker):
    """A worker that can be reached at its node's address, as the cluster knows it."""

    STOPS = ()  # Ray ends this process by a kill; an interrupt comes from the task's own code

    def free_address(self) -> str:
        return free_address(ray.util.get_node_ip_address())

    @ray.method(concurrency_group=PULSE)  # type: ignore[untyped-decorator]
    def pulse(self) -> Seen:
        """Answered by a thread of its own, whatever the worker is at."""
        return HERE.seen()


class RayRuntime:
    """Warm actors on a cluster that is joined or, without an address, started here.

    Ray never retries for us: a call that failed may have been carried out, so what is done is
    what the ledger says, and only a unit that is not in it is attempted again.
    """

    def __init__(self, settings: RuntimeSettings):
        self._settings = settings
        self._actors: dict[Any, Resources] = {}  # not known to be dead
        self._started = False
        self._pulses = _Pulses()
        self.busy_s = 0.0

    # -- verbs -----------------------------------------------------------------------------

    def pool(
        self, work: Work, units: Sequence[Unit], ledger: Ledger, resources: Resources | None = None
    ) -> None:
        resources = resources or self._settings.resources
        done = ledger.committed_ids()
        waiting = deque({unit.id: unit for unit in units if unit.id not in done}.values())
        if not waiting:
            return
        self._start(resources)
        idle = self._warm(resources)
        attempts: dict[str, int] = {}
        failed: dict[str, Outcome] = {}  # how a unit failed last
        running: dict[Any, tuple[Any, Unit | None]] = {}  # future -> its actor and unit
        longest_s: float | None = None

        def allowed_s(unit: Unit | None, _: Seen) -> float:
            return limits.unit(longest_s, attempts[unit.id] - 1) if unit else math.inf

        limits = self._settings.limits
        room = self._room(resources)
        progressed = time.monotonic()
        finished = 0  # since records were last sealed
        try:
            while waiting or any(unit for _, unit in running.values()):
                while waiting and idle:
                    actor, unit = idle.pop(), waiting.popleft()
                    attempts[unit.id] = attempts.get(unit.id, 0) + 1
                    running[actor.run.remote(work, unit, attempts[unit.id])] = (actor, unit)
                alive = len(idle) + len(running)
                for _ in range(min(len(waiting), room - alive)):
                    running |= self._new_actor(resources)
                if any(unit for _, unit in running.values()):
                    progressed = time.monotonic()
                elif time.monotonic() - progressed > self._settings.timeout_s:
                    raise self._none_started(waiting[0].describe())
                for actor, unit, outcome in self._finished(running, allowed_s):
                    if actor in self._actors:
                        idle.append(actor)
                    if unit is None or outcome.error is None:
                        if unit is not None:
                            finished += 1
                            longest_s = max(longest_s or 0.0, outcome.seconds)
                        if finished == SEGMENT_RECORDS:
                            ledger.seal_full_segments()
                            finished = 0
                        continue
                    if outcome.error not in RAISABLE and unit.id in ledger.committed_ids():
                        continue
                    raise_if_final(
                        unit.describe(), outcome, failed.get(unit.id), attempts[unit.id],
                        self._settings.attempts,
                    )  # fmt: skip
                    failed[unit.id] = outcome
                    if outcome.whose == "passing":
                        waiting.append(unit)
                    else:  # know at once whether it fails again, not after all the others
                        waiting.appendleft(unit)
        finally:  # still starting and no longer needed, or at work when this stopped
            for actor, _ in running.values():
                self._stop(actor)
        ledger.seal_full_segments()

    def gang(self, work: Work, ranks: int, ledger: Ledger | None = None) -> Any:
        resources = self._settings.resources
        self._start(resources)
        attempt = 0
        failed: Outcome | None = None
        while True:
            attempt += 1
            before = len(ledger.committed_ids()) if ledger else 0
            outcome = self._run_gang(work, self._gang_actors(resources, ranks), attempt - 1)
            if outcome.error is None:
                return outcome.value
            if ledger and len(ledger.committed_ids()) > before:
                attempt = 0  # days of work may lose more workers than `attempts`
            raise_if_final(work.title, outcome, failed, attempt, self._settings.attempts)
            failed = outcome

    def blind_nodes(self, path: str) -> list[str]:
        """Addresses of nodes that could be given work but do not see the file at `path`."""
        self._start(self._settings.resources)
        able = [n for n in _alive() if _fits(n["Resources"], self._settings.resources)]
        return [node["NodeName"] for node, seen in _answers(able, _sees, path) if not seen]

    def nodes(self) -> list[Node]:
        """Machines of the cluster; several of Ray's nodes on one machine are one."""
        self._start(self._settings.resources)
        self._room(self._settings.resources)  # where there is none, nobody need be asked
        found: dict[str, Node] = {}
        for node, (machine, memory, sizes) in _answers(_alive(), seen_on_node):
            count = int(node["Resources"].get("GPU", 0.0))
            gpus = (*sizes[:count], *[None] * (count - len(sizes)))
            cpus = node["Resources"].get("CPU", 0.0)
            before = found.get(machine, Node(node["NodeName"], 0.0, memory))
            found[machine] = replace(before, cpus=before.cpus + cpus, gpus=before.gpus + gpus)
        return list(found.values())

    def close(self) -> None:
        if not self._started:
            return
        self._started = False
        if _dead_part() is not None:
            _leave_ruins()
            return
        for actor in list(self._actors):
            self._stop(actor)
        ray.shutdown()

    # -- gangs -----------------------------------------------------------------------------

    def _gang_actors(self, resources: Resources, ranks: int) -> list[Any]:
        """As many ready actors as ranks, or, when time is up, as many as there are (at least 1)."""
        actors = self._warm(resources)
        starting: dict[Any, tuple[Any, Any]] = {}
        deadline = time.monotonic() + self._settings.timeout_s
        try:
            while True:
                room = self._room(resources)  # less after a node was lost: don't wait for those
                wanted = min(ranks or room, room)
                late = time.monotonic() > deadline
                if len(actors) >= wanted or (actors and late):
                    return actors[:wanted]
                if late:
                    raise self._none_started("gang")
                for _ in range(wanted - len(actors) - len(starting)):
                    starting |= self._new_actor(resources)
                actors += [
                    actor for actor, _, _ in self._finished(starting) if actor in self._actors
                ]
        finally:
            for actor, _ in starting.values():
                self._stop(actor)

    def _run_gang(self, work: Work, actors: list[Any], again: int) -> Outcome:
        """Rank 0's outcome, or a failure after which every rank was stopped."""

        def allowed_s(_: int, seen: Seen) -> float:
            others = [self._pulses.last(actor) for actor, _ in running.values()]
            return self._settings.limits.rank(seen, others, again)

        asked = {actors[0].free_address.remote(): (actors[0], 0)}
        address = Outcome()
        while asked:
            for _, _, address in self._finished(asked):
                if address.error is not None:
                    return address
        timeout_s = self._settings.collective_timeout_s
        running = {
            actor.run_rank.remote(work, rank, len(actors), address.value, timeout_s): (actor, rank)
            for rank, actor in enumerate(actors)
        }
        result = Outcome()
        failures: list[Outcome] = []
        while running and not failures:
            for _, rank, outcome in self._finished(running, allowed_s):
                if outcome.error is not None:
                    failures.append(outcome)
                elif rank == 0:
                    result = outcome
        if not failures:
            return result
        if running:  # the first to fail may have only lost its peer: hear the next one too
            failures += [o for _, _, o in self._finished(running) if o.error is not None]
        for survivor in actors:  # they would hang in their collective until its time-out
            self._stop(survivor)
        return min(failures, key=_remoteness)

    # -- actors ----------------------------------------------------------------------------

    def _finished(
        self,
        running: dict[Any, Any],
        allowed_s: Callable[[Any, Seen], float] = lambda label, seen: math.inf,
    ) -> Iterator[tuple[Any, Any, Outcome]]:
        """Calls that ended within a second, taken out of `running`; death is an outcome.

        So is hanging: `allowed_s` says how long a worker may be at the call with this label, when
        it last said what it was at, without a report.
        """
        _refuse_ruins()
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
                    self._stop(actor)  # another process may do it
            except RayError as error:
                self._stop(actor)
                if label is None and _is_unfit(error):
                    raise InputError(
                        f"runtime: a worker did not start: {_one_line(error)}"
                    ) from None
                outcome = Outcome(error="died", message=_one_line(error))
            if label is None and outcome.error is None:
                self._pulses.watch(actor)
            yield actor, label, outcome
        yield from self._hung(running, allowed_s)

    def _hung(
        self, running: dict[Any, Any], allowed_s: Callable[[Any, Seen], float]
    ) -> Iterator[tuple[Any, Any, Outcome]]:
        """Calls that go on but will not end, taken out of `running`, their workers stopped."""
        self._pulses.ask(actor for actor, _ in running.values())
        hung = []
        for future, (actor, label) in running.items():
            unanswered_s, seen = self._pulses.unanswered_s(actor), self._pulses.last(actor)
            if unanswered_s > self._settings.silent_s:
                hung.append((future, f"it did not answer for {unanswered_s:.0f} s"))
            elif seen.kind and seen.silent_s > allowed_s(label, seen):
                hung.append((future, f"it was at one {seen.kind} for {seen.silent_s:.0f} s"))
        for future, why in hung:
            actor, label = running.pop(future)
            self._stop(actor)
            LOG.warning("warning: a worker hangs, another one takes its work: %s", why)
            yield actor, label, Outcome(error="died", message=f"{why}; it was stopped")

    def _new_actor(self, resources: Resources) -> dict[Any, tuple[Any, None]]:
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
        actor = remote.remote(self._settings.threads, paths, resources.num_gpus)
        self._actors[actor] = resources
        return {actor.ready.remote(): (actor, None)}

    def _warm(self, resources: Resources) -> list[Any]:
        """Living actors of this shape; others are stopped, so that nothing waits on them.

        Those that died since they were last used would cost a unit or a gang an attempt.
        """
        for actor, shape in list(self._actors.items()):
            if shape != resources:
                self._stop(actor)
        asked = {actor.ready.remote(): (actor, None) for actor in self._actors}
        while asked:
            for _ in self._finished(asked):
                pass
        return list(self._actors)

    def _stop(self, actor: Any) -> None:
        self._actors.pop(actor, None)
        self._pulses.forget(actor)
        with contextlib.suppress(RayError, ValueError):
            ray.kill(actor)

    def _none_started(self, what: str) -> Interrupted:
        return Interrupted(
            f"{what}: no worker started within {self._settings.timeout_s:g} s, the cluster may be "
            "full; run the same command to resume"
        )

    def _room(self, resources: Resources) -> int:
        """How many workers of this shape the cluster holds, at most `workers` of them."""
        _refuse_ruins()
        rooms = [_fits(node["Resources"], resources) for node in _alive()]
        room = sum(rooms)
        if room < 1:
            raise InputError(
                f"runtime: no node has {resources.num_cpus:g} CPUs and {resources.num_gpus:g} GPUs "
                "for one worker; lower runtime.num_cpus or runtime.num_gpus"
            )
        return min(self._settings.workers or room, room)

    def _start(self, resources: Resources) -> None:
        if self._started:
            return
        settings = self._settings
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if settings.working_dir:
            options["runtime_env"] = {"working_dir": settings.working_dir}
        if settings.starts_cluster:
            close_to_others()
            _read_environment()
            ray_worker.print_to_stdstream = _unsaid
            doing, what = "starting a Ray cluster here", "start a cluster here"
            options |= {
                "address": "local",  # None would join any cluster that RAY_ADDRESS names
                "include_dashboard": settings.dashboard,
                "dashboard_host": "127.0.0.1",
                "num_cpus": _logical_cpus(settings),
            }
        else:
            doing = f"joining the Ray cluster at {settings.address}"
            what = f"join {settings.address}, check RAY_AUTH_TOKEN_PATH"
            address = resolved(settings.address or "")
            if not settings.insecure:
                refuse_open(address)
            refuse_silent(address, ray.util.get_node_ip_address())
            options["address"] = settings.address
        LOG.info(doing)
        with _own_sigterm(), _stderr_aside() as aside:
            try:
                ray.init(**options)
            except Exception as error:  # of many classes, some of them bare
                reason = aside().rpartition("GCS server: ")[2].strip() or _one_line(error)
                if BUSY in str(error):
                    raise Interrupted(
                        f"runtime: cannot {what} ({reason[:400]}); run the same command to resume"
                    ) from None
                raise InputError(f"runtime: cannot {what}: {reason[:400]}") from None
        LOG.info("starting workers")
        self._started = True


def _unsaid(*_: Any, **__: Any) -> None:
    """In the place of what prints the last lines of a dead part's log on this screen."""


def _dead_part() -> str | None:
    """Of a cluster that this process started, the part that is dead and that it cannot be without.

    Ray itself would wait for it, and then end this process with a line of C++.
    """
    node = ray_worker._global_node
    parts = node.all_processes if node is not None else {}
    for name in PARTS:
        if any(part.process.poll() is not None for part in parts.get(name, ())):
            return name
    return None


def _refuse_ruins() -> None:
    part = _dead_part()
    if part is not None:
        raise ClusterEnded(
            f"runtime: the Ray cluster of this run has ended ({part} died); run the same command "
            "to resume"
        )


def _leave_ruins() -> None:
    """End what is left of a cluster; Ray's own ways would wait for the dead part."""
    node = ray_worker._global_node
    if node is not None:
        atexit.unregister(ray_worker.shutdown)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        ray_worker._global_node = None


def _read_environment() -> None:
    """Of the environment what Ray read when it was imported, as a task may have done before us."""
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    if not is_token_auth_enabled():
        raise InputError(
            "runtime: this Ray starts no cluster with token authentication, and others could run "
            "code in it; set runtime.kind=local, or install the Ray that distinf names"
        )


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


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps our handler: Ray puts one in its place that exits with the signal's number."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as left:
        if left.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from None  # what our handler would have made of it
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stderr_aside() -> Iterator[Callable[[], str]]:
    """Keeps from the screen what Ray's C++ writes there, a line per try -> how to read it."""
    screen = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as file:

        def read() -> str:
            file.seek(0)
            return file.read()

        os.dup2(file.fileno(), 2)
        try:
            yield read
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _answers(
    nodes: Sequence[dict[str, Any]], function: Callable[..., Any], *arguments: Any
) -> list[tuple[dict[str, Any], Any]]:
    """Each node with what the function returns there; without those that are lost meanwhile."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = []
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote = ray.remote(function).options(num_cpus=0, scheduling_strategy=where)
        asked.append((node, remote.remote(*arguments)))
    found = []
    for node, answer in asked:
        try:
            found.append((node, ray.get(answer)))
        except RayError as error:
            if _is_unfit(error):
                told = f"runtime: {node['NodeName']} cannot work: {_one_line(error)}"
                raise InputError(told) from None
    return found


def _logical_cpus(settings: RuntimeSettings) -> int:
    """CPUs of a cluster started here: the machine's, or more if the user asked for more workers."""
    return max(cpus_here(), int(settings.workers * settings.num_cpus + 0.999))


def _fits(node: dict[str, float], resources: Resources) -> int:
    counts = [
        int(node.get(name, 0.0) / amount + 1e-9)
        for name, amount in (("CPU", resources.num_cpus), ("GPU", resources.num_gpus))
        if amount > 0
    ]
    return min(counts) if counts else 1


def _sees(path: str) -> bool:
    return os.path.exists(path)


def _is_unfit(error: RayError) -> bool:
    """Raised where the work was to run, not a death: another try would end the same way."""
    raised = isinstance(error, RayTaskError | RuntimeEnvSetupError)
    return raised or bool(getattr(error, "actor_init_failed", False))


def _remoteness(outcome: Outcome) -> int:
    """Of a gang's failures the lowest is nearest to the cause."""
    if outcome.error in RAISABLE:
        return 0
    return 1 if outcome.whose != "passing" else 2 if outcome.error == "died" else 3


def _one_line(error: BaseException) -> str:
    """What Ray has to say, without its identifiers; of a traceback, the error at its end."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayError) and _is_unfit(error):
        lines = lines[-1:]
    told = " ".join(line.strip() for line in lines if not line.startswith("\t"))
    return told.partition(" Some common causes")[0][:400] or type(error).__name__
