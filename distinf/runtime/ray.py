"""The Ray runtime: one set of warm actors for pools, gangs and grids. The only `import ray`."""

import contextlib
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from distinf.errors import InputError, Interrupted
from distinf.runtime.ledger import Ledger
from distinf.runtime.protocol import Resources, RuntimeSettings, Work
from distinf.runtime.units import Unit
from distinf.runtime.worker import Outcome, Worker, gave_up, raise_unless_retryable

LOOPBACK = ("127.", "localhost", "auto", "local")


class RayRuntime:
    """Warm actors on a cluster that is joined or, without an address, started here.

    Ray never retries for us: a call that failed may have been carried out, so what is done is
    what the ledger says, and only a unit that is not in it is attempted again.
    """

    def __init__(self, settings: RuntimeSettings):
        self._settings = settings
        self._actors: dict[Any, Resources] = {}  # ready ones
        self._started = False
        self.busy_s = 0.0

    # -- verbs -----------------------------------------------------------------------------

    def pool(self, work: Work, units: Sequence[Unit], ledger: Ledger) -> None:
        self.grid(work, units, ledger, self._settings.resources)

    def grid(self, work: Work, jobs: Sequence[Unit], ledger: Ledger, resources: Resources) -> None:
        done = ledger.committed_ids()
        waiting = deque({unit.id: unit for unit in jobs if unit.id not in done}.values())
        if not waiting:
            return
        self._start(resources)
        idle = self._keep_shape(resources)
        attempts: dict[str, int] = {}
        running: dict[Any, tuple[Any, Unit | None]] = {}  # future -> its actor and unit
        room = self._room(resources)
        progressed = time.monotonic()
        while waiting or any(unit for _, unit in running.values()):
            while waiting and idle:
                actor, unit = idle.pop(), waiting.popleft()
                attempts[unit.id] = attempts.get(unit.id, 0) + 1
                running[actor.run.remote(work, unit, attempts[unit.id])] = (actor, unit)
            alive = len(idle) + len(running)
            for _ in range(min(len(waiting), room - alive)):
                actor = self._new_actor(resources)
                running[actor.ready.remote()] = (actor, None)
            if any(unit for _, unit in running.values()) or idle:
                progressed = time.monotonic()
            elif time.monotonic() - progressed > self._settings.timeout_s:
                raise Interrupted(
                    f"{waiting[0].describe()}: no worker started within "
                    f"{self._settings.timeout_s:g} s; run the same command to resume"
                )
            for actor, unit, outcome in self._finished(running):
                if outcome.error != "died":
                    self._actors[actor] = resources
                    idle.append(actor)
                elif unit is None:
                    raise InputError(f"runtime: a worker did not start: {outcome.message}")
                if unit is None or outcome.error is None:
                    continue
                raise_unless_retryable(outcome)
                if unit.id in ledger.committed_ids():
                    continue
                if attempts[unit.id] >= self._settings.attempts:
                    raise gave_up(unit.describe(), attempts[unit.id], outcome)
                waiting.append(unit)
        for actor, _ in running.values():  # still starting, and no longer needed
            ray.kill(actor)
        ledger.seal_full_segments()

    def gang(self, work: Work, ranks: int) -> Any:
        resources = self._settings.resources
        self._start(resources)
        for attempt in range(1, self._settings.attempts + 1):
            actors = self._gang_actors(resources, ranks)
            outcome = self._run_gang(work, actors)
            if outcome.error is None:
                return outcome.value
            raise_unless_retryable(outcome)
            if attempt == self._settings.attempts:
                raise gave_up(work.body, attempt, outcome)
        return None

    def blind_nodes(self, path: str) -> list[str]:
        """Addresses of nodes that could be given work but do not see the file at `path`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._start(self._settings.resources)
        asked = {}
        for node in ray.nodes():
            if node["Alive"] and _fits(node["Resources"], self._settings.resources):
                where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                options = {"num_cpus": 0, "scheduling_strategy": where}
                asked[node["NodeManagerAddress"]] = (
                    ray.remote(_sees).options(**options).remote(path)
                )
        return [address for address, seen in asked.items() if not ray.get(seen)]

    def close(self) -> None:
        if not self._started:
            return
        for actor in self._actors:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(actor)
        self._actors.clear()
        ray.shutdown()
        self._started = False

    # -- gangs -----------------------------------------------------------------------------

    def _gang_actors(self, resources: Resources, ranks: int) -> list[Any]:
        """As many ready actors as ranks, or, when time is up, as many as there are (at least 1)."""
        room = self._room(resources)
        wanted = min(ranks or room, room)
        actors = self._keep_shape(resources)[:wanted]
        starting = {}
        for _ in range(wanted - len(actors)):
            actor = self._new_actor(resources)
            starting[actor.ready.remote()] = (actor, None)
        deadline = time.monotonic() + self._settings.timeout_s
        while starting and (time.monotonic() < deadline or not actors):
            for actor, _, outcome in self._finished(starting):
                if outcome.error is None:
                    self._actors[actor] = resources
                    actors.append(actor)
                elif not starting and not actors:
                    raise InputError(f"runtime: no worker started: {outcome.message}")
        for actor, _ in starting.values():
            ray.kill(actor)
        return actors

    def _run_gang(self, work: Work, actors: list[Any]) -> Outcome:
        """Rank 0's outcome, or the first failure after which every rank was stopped."""
        try:
            address = ray.get(actors[0].free_address.remote())
        except RayActorError as error:
            self._actors.pop(actors[0], None)
            return Outcome(error="died", message=_first_line(error))
        timeout_s = self._settings.timeout_s
        running = {
            actor.run_rank.remote(work, rank, len(actors), address, timeout_s): (actor, rank)
            for rank, actor in enumerate(actors)
        }
        result = Outcome()
        while running:
            for _, rank, outcome in self._finished(running):
                if outcome.error is not None:
                    # Survivors hang in their collective until its time-out: stop them now.
                    for survivor in actors:
                        self._actors.pop(survivor, None)
                        ray.kill(survivor)
                    return outcome
                if rank == 0:
                    result = outcome
        return result

    # -- actors ----------------------------------------------------------------------------

    def _finished(self, running: dict[Any, Any]) -> Iterator[tuple[Any, Any, Outcome]]:
        """Calls that ended within a second, taken out of `running`; death is an outcome."""
        ready, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
        if not ready:
            ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        for future in ready:
            actor, label = running.pop(future)
            try:
                value = ray.get(future)
                outcome = value if isinstance(value, Outcome) else Outcome(value=value)
                self.busy_s += outcome.seconds
            except RayError as error:
                self._actors.pop(actor, None)
                with contextlib.suppress(RayError, ValueError):
                    ray.kill(actor)
                outcome = Outcome(error="died", message=_first_line(error))
            yield actor, label, outcome

    def _new_actor(self, resources: Resources) -> Any:
        options = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        paths = [path for path in sys.path if path]
        remote = ray.remote(**options)(Worker)
        return remote.remote(self._settings.threads, paths, resources.num_gpus > 0)

    def _keep_shape(self, resources: Resources) -> list[Any]:
        """Ready actors of this shape; others are stopped, so that nothing waits on them."""
        for actor, shape in list(self._actors.items()):
            if shape != resources:
                del self._actors[actor]
                ray.kill(actor)
        return list(self._actors)

    def _room(self, resources: Resources) -> int:
        """How many workers of this shape the cluster holds, at most `workers` of them."""
        rooms = [_fits(node["Resources"], resources) for node in ray.nodes() if node["Alive"]]
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
        common = {"logging_level": "ERROR", "log_to_driver": False}
        if settings.working_dir:
            common["runtime_env"] = {"working_dir": settings.working_dir}
        if settings.address is None:
            _own_token()
            ray.init(
                include_dashboard=settings.dashboard,
                dashboard_host="127.0.0.1",
                num_cpus=_logical_cpus(settings),
                num_gpus=None,
                configure_logging=True,
                **common,
            )
        else:
            _refuse_open_cluster(settings)
            try:
                ray.init(address=settings.address, **common)
            except (ConnectionError, RayError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"runtime.address: cannot join {settings.address}: {_first_line(error)}; "
                    "check the address and RAY_AUTH_TOKEN_PATH"
                ) from None
        self._started = True


def _logical_cpus(settings: RuntimeSettings) -> int | None:
    """CPUs of a cluster started here: the machine's, or more if the user asked for more workers."""
    if not settings.workers:
        return None
    return max(os.cpu_count() or 1, int(settings.workers * settings.num_cpus + 0.999))


def _own_token() -> None:
    """Token authentication for a cluster of our own, with a token that only this run knows."""
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _refuse_open_cluster(settings: RuntimeSettings) -> None:
    address = (settings.address or "").removeprefix("ray://")
    beyond = not address.startswith(LOOPBACK)
    if beyond and os.environ.get("RAY_AUTH_MODE") != "token" and not settings.insecure:
        raise InputError(
            f"runtime.address: {settings.address} is beyond this machine and RAY_AUTH_MODE is not "
            "'token': anyone who reaches it runs code as you; set both, or runtime.insecure=true"
        )


def _fits(node: dict[str, float], resources: Resources) -> int:
    counts = [
        int(node.get(name, 0.0) / amount + 1e-9)
        for name, amount in (("CPU", resources.num_cpus), ("GPU", resources.num_gpus))
        if amount > 0
    ]
    return min(counts) if counts else 1


def _sees(path: str) -> bool:
    return os.path.exists(path)


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
