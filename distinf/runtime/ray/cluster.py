"""A Ray cluster: started here or joined, what is in it, and its end."""

import atexit
import contextlib
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distinf.errors import ClusterEnded, InputError, Interrupted
from distinf.runtime.address import close_to_others, refuse_open, refuse_silent, resolved
from distinf.runtime.machine import (
    Node,
    cpus_here,
    processes_killed_for_memory,
    seen_on_node,
)
from distinf.runtime.protocol import Resources, RuntimeSettings

LOG = logging.getLogger("distinf")  # the command line shows what is said here
ASKED_S = 10.0  # that a node may take for an answer
PARTS = ("gcs_server", "raylet")
BUSY = "timed out during startup"  # Ray's words, where a machine does too much else


def connect(settings: RuntimeSettings) -> None:
    """Start the cluster that the settings name here, or join it; InputError if that cannot be."""
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
        what = f"join {settings.address}"
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
            reason = aside().rpartition("GCS server: ")[2].strip() or one_line(error)
            if BUSY in str(error):
                raise Interrupted(
                    f"runtime: cannot {what} ({reason[:400]}); run the same command to resume"
                ) from None
            raise InputError(f"runtime: cannot {what}: {_with_remedy(reason[:400])}") from None


def _with_remedy(reason: str) -> str:
    if "Version mismatch" in reason:
        return f"{reason}; install the same Ray and Python here and on its nodes"
    if "token" in reason.lower():
        return f"{reason}; set RAY_AUTH_TOKEN_PATH to the file with the cluster's token"
    return reason


def leave() -> None:
    """And end it, if it was started here. Of one that died Ray's own ways would wait for a part."""
    if dead_part() is None:
        ray.shutdown()
        return
    atexit.unregister(ray_worker.shutdown)
    ray_worker._global_node.kill_all_processes(check_alive=False, allow_graceful=False)
    ray_worker._global_node = None


def nodes() -> list[Node]:
    """Machines of the cluster; several of Ray's nodes on one machine are one."""
    found: dict[str, Node] = {}
    for node, (machine, memory, sizes) in answers(alive(), seen_on_node):
        count = int(node["Resources"].get("GPU", 0.0))
        gpus = (*sizes[:count], *[None] * (count - len(sizes)))
        cpus = node["Resources"].get("CPU", 0.0)
        before = found.get(machine, Node(node["NodeName"], 0.0, memory))
        found[machine] = replace(before, cpus=before.cpus + cpus, gpus=before.gpus + gpus)
    return list(found.values())


def room_for(resources: Resources) -> int:
    """How many workers of this shape it holds; InputError if none."""
    refuse_ruins()
    room = sum(fits(node["Resources"], resources) for node in alive())
    if room < 1:
        raise InputError(
            f"runtime: no node has {resources.num_cpus:g} CPUs and {resources.num_gpus:g} GPUs "
            "for one worker; lower runtime.num_cpus or runtime.num_gpus"
        )
    return room


def _unsaid(*_: Any, **__: Any) -> None:
    """In the place of what prints the last lines of a dead part's log on this screen."""


def dead_part() -> str | None:
    """Of a cluster that this process started, the part that is dead and that it cannot be without.

    Ray itself would wait for it, and then end this process with a line of C++.
    """
    node = ray_worker._global_node
    parts = node.all_processes if node is not None else {}
    for name in PARTS:
        if any(part.process.poll() is not None for part in parts.get(name, ())):
            return name
    return None


def refuse_ruins() -> None:
    part = dead_part()
    if part is not None:
        raise ClusterEnded(
            f"runtime: the Ray cluster of this run has ended ({part} died); run the same command "
            "to resume"
        )


def _read_environment() -> None:
    """Of the environment what Ray read when it was imported, as a task may have done before us."""
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    if not is_token_auth_enabled():
        raise InputError(
            "runtime: this Ray starts no cluster with token authentication, and others could run "
            "code in it; set runtime.kind=local, or install the Ray that distinf names"
        )


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


def alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def answers(
    nodes: Sequence[dict[str, Any]], function: Callable[..., Any], *arguments: Any
) -> list[tuple[dict[str, Any], Any]]:
    """Each node with what the function returns there; without those that are lost meanwhile."""
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
            if is_unfit(error):
                told = f"runtime: {node['NodeName']} cannot work: {one_line(error)}"
                raise InputError(told) from None
    return found


def killed_for_memory(node_id: str) -> int | None:
    """What `processes_killed_for_memory` says on this node; None where it cannot be asked."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    asked = ray.remote(processes_killed_for_memory).options(
        num_cpus=0, scheduling_strategy=where, max_retries=0
    )
    try:
        return ray.get(asked.remote(), timeout=ASKED_S)  # type: ignore[no-any-return]
    except RayError:
        return None


def _logical_cpus(settings: RuntimeSettings) -> int:
    """CPUs of a cluster started here: the machine's, or more if the user asked for more workers."""
    return max(cpus_here(), int(settings.workers * settings.num_cpus + 0.999))


def fits(node: dict[str, float], resources: Resources) -> int:
    counts = [
        int(node.get(name, 0.0) / amount + 1e-9)
        for name, amount in (("CPU", resources.num_cpus), ("GPU", resources.num_gpus))
        if amount > 0
    ]
    return min(counts) if counts else 1


def is_unfit(error: RayError) -> bool:
    """Raised where the work was to run, not a death: another try would end the same way."""
    raised = isinstance(error, RayTaskError | RuntimeEnvSetupError)
    return raised or bool(getattr(error, "actor_init_failed", False))


def one_line(error: BaseException) -> str:
    """What Ray has to say, without its identifiers; of a traceback, the error at its end."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayError) and is_unfit(error):
        lines = lines[-1:]
    told = " ".join(line.strip() for line in lines if not line.startswith("\t"))
    return told.partition(" Some common causes")[0][:400] or type(error).__name__
