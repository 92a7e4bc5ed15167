"""The protocol that both runtimes speak, and the settings that choose between them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from distinf.runtime.ledger import Ledger
from distinf.runtime.liveness import Limits
from distinf.runtime.machine import Node
from distinf.runtime.units import Unit


@dataclass(frozen=True)
class Resources:
    """What one worker holds; GPUs may be fractions."""

    num_cpus: float = 1.0
    num_gpus: float = 0.0


@dataclass(frozen=True)
class RuntimeSettings:
    """Where the work runs. Only threads and the kind of device can change a result's last bits,
    so only they are in the fingerprint.

    kind        ray, or local: everything in this process, one unit after the other
    workers     warm actors, which are also a gang's ranks; 0: as many as the cluster has room
                for, in CPUs, GPUs and memory
    num_cpus    of each worker
    num_gpus    of each worker, fractions too; a worker with any takes CUDA, the others the CPU
    threads     torch threads of a worker; more than one changes the order of sums
    address     of a cluster to join ("auto" finds one on this machine); null starts a local one
    attempts    at a unit, and at a gang, before the run stops
    timeout_s   for workers to start
    silent_s    a worker that does not answer for so long is stopped as a process, and a sum that
                all ranks are in for so long is hung: it is replaced, and its unit tried again
    unit_s      without a report of progress a unit, or a shard of a gang, is hung after three times
                the longest one so far (in proportion, if it has more rows than any), and not
                before this
    first_unit_s  the same before there is a first one to go by
    collective_timeout_s  for the slowest rank to arrive at a sum; a rank's death is seen at once,
                so this is for a rank that hangs, and must outlast one shard of one product
    dashboard   Ray's, of a cluster started here, on localhost: takes a dozen processes' start
    tensorboard  a folder for what TensorBoard shows: the losses of training, units a second of each
                stage; written by the run's driver. null: nothing
    working_dir  a folder to send to the workers of a joined cluster, where your own task lives
    insecure    True to join a cluster beyond this machine that has no token authentication
    """

    kind: str = "ray"
    workers: int = 0
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    threads: int = 1
    address: str | None = None
    attempts: int = 3
    timeout_s: float = 120.0
    silent_s: float = 22.0  # asked every 5 s: told within 30
    unit_s: float = 60.0
    first_unit_s: float = 7_200.0
    collective_timeout_s: float = 7_200.0
    dashboard: bool = False
    tensorboard: str | None = None
    working_dir: str | None = None
    insecure: bool = False

    @property
    def starts_cluster(self) -> bool:
        """Whether the run's cluster is its own, on this machine."""
        return self.kind == "ray" and self.address in (None, "local")

    def __post_init__(self) -> None:
        if self.kind not in ("ray", "local"):
            raise ValueError(f"kind: '{self.kind}' is neither 'ray' nor 'local'")
        if self.workers < 0 or self.threads < 1 or self.attempts < 1:
            raise ValueError("workers must be at least 0, threads and attempts at least 1")
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}: {value} must be 0 or more")

        for name in ("timeout_s", "silent_s", "unit_s", "first_unit_s", "collective_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be above 0")

    @property
    def limits(self) -> Limits:
        return Limits(self.silent_s, self.unit_s, self.first_unit_s)

    @property
    def resources(self) -> Resources:
        return Resources(self.num_cpus, self.num_gpus)


@dataclass(frozen=True)
class Work:
    """What a worker runs, as import paths and JSON: nothing is pickled.

    prepare  "module:function", called as prepare(context, device) -> state, once per worker
    body     "module:function", called as body(state, unit, attempt) in a pool, and as
             body(state, collective, attempt) in a gang; commits its own results
    attempt  a name that no other attempt at the same unit has
    """

    body: str
    prepare: str
    context: Mapping[str, Any]

    @property
    def title(self) -> str:
        """ "curvature", after the stage's module."""
        return self.body.partition(":")[0].rpartition(".")[2]


class Runtime(Protocol):
    """Two shapes of work over one set of warm workers. Both return when all is committed."""

    @property
    def busy_s(self) -> float:
        """Seconds that workers spent in bodies so far."""

    def pool(
        self, work: Work, units: Sequence[Unit], ledger: Ledger, resources: Resources | None = None
    ) -> None:
        """Map the body over the units that the ledger does not hold yet; retry those that fail.

        Each once (by id), on workers of the given (or usual) resources.
        """

    def gang(
        self, work: Work, ranks: int, ledger: Ledger | None = None, units: Sequence[Unit] = ()
    ) -> Any:
        """Run the body on every rank at once -> rank 0's JSON-able return value.

        If a rank dies all are stopped, and the gang starts again from what is committed; with a
        ledger, only attempts that committed nothing count against `attempts`.
        `ranks` is the most that can be used; 0 means as many as there are workers.
        `units`: are shared out among as many gangs as there are workers for (Collective.share);
        one that fails is stopped alone, and what is left shared out anew when all have ended.
        """

    def blind_nodes(self, path: str) -> list[str]:
        """Names of nodes that could be given work but do not see the file at `path`."""

    def nodes(self) -> list[Node]:
        """The machines that workers can run on; connects to their cluster."""

    def take(self, settings: RuntimeSettings) -> None:
        """For all workers that start from now on; of the same cluster."""

    def close(self) -> None:
        """Stop the workers, and the cluster if this runtime started it."""
