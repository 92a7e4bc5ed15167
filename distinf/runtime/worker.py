"""What happens on a worker, in both runtimes: prepare once, run a body, say how it went."""

import contextlib
import ctypes
import importlib
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from distinf.digest import digest
from distinf.errors import (
    CorruptionError,
    DistinfError,
    InputError,
    InternalError,
    Interrupted,
)
from distinf.microbatch import MICROBATCHES, is_out_of_memory
from distinf.runtime import faults
from distinf.runtime.activity import HERE, UNIT
from distinf.runtime.process_group import join_group, leave_group
from distinf.runtime.protocol import Work
from distinf.runtime.units import Unit

LOG = logging.getLogger("distinf")  # the command line shows what is said here
HALF = "it is tried again with half as many rows at once"
DEVICE_LOST = "CUDA error"  # after one, a process gets nothing else from its device
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Outcome:
    """How one call ended. `error` is the name of a class that the caller raises again.

    message  what happened and where in the code, alike if it happens again
    whose    of an error of no such class: the user's, ours, or one that may pass
    tried    where the worker tried once more, row by row, and found the row: what failed on it
    lowered  microbatches that did not fit its memory: rows at once as set, and as taken
    out_of_memory  memory ran out; less_may_fit: with several rows at once
    """

    value: Any = None
    error: str | None = None
    message: str = ""
    whose: faults.Whose = "passing"
    tried: str = ""
    trace: str = ""
    where: str = ""
    seconds: float = 0.0
    is_killed_for_memory: bool = False
    out_of_memory: bool = False
    less_may_fit: bool = False
    lowered: Mapping[str, tuple[int, int]] = field(default_factory=dict)


RAISABLE: dict[str, type[DistinfError]] = {
    cls.__name__: cls for cls in (InputError, CorruptionError, Interrupted)
}


def resolve(path: str) -> Callable[..., Any]:
    """The function at "module:function"; InputError naming what is not there."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise
        raise InputError(
            f"task: no module '{module_name}'; run from the folder that holds it or install it"
        ) from None
    try:
        found: Callable[..., Any] = getattr(module, name)
        return found
    except AttributeError:
        own = [k for k, v in vars(module).items() if getattr(v, "__module__", "") == module_name]
        has = ", ".join(own[:6]) or "nothing of its own"
        raise InputError(f"task: module '{module_name}' has no '{name}' (it has {has})") from None


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back: the next product wants it again.

    Measured on a Hessian product of a wide convolutional network: without this a sixth of its time
    goes into faulting the same pages in again. Peak memory does not change. Nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, 32 << 20)):
        mallopt(option, value)


class Worker:
    """One warm worker. Keeps the state of the last context it prepared.

    A state may have `culprit(error) -> str`: what of its last work fails with such an error when
    it is tried row by row ("loss 'a' failed on training row 77 at …"), or "". And
    `memory_settings(stage) -> [setting]`: what may be lowered where memory runs out in a stage.
    """

    STOPS: tuple[type[BaseException], ...] = (KeyboardInterrupt,)  # they end this process too

    def __init__(self, threads: int = 1, paths: Sequence[str] = (), gpus: float = 0.0):
        self._threads = threads
        self._paths = list(paths)
        self._gpus = gpus
        self._key = ""
        self._state: Any = None

    def ready(self) -> str:
        """Set up this process -> the name of the host."""
        torch.set_num_threads(self._threads)
        keep_freed_memory()
        HERE.gpus = self._gpus
        # The same bytes on the same hardware, and products to float32's precision on CUDA too.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        sys.path.extend(path for path in self._paths if path not in sys.path)
        return socket.gethostname()

    def device(self) -> torch.device:
        """CUDA for a worker that holds a GPU where there is one, else the CPU."""
        if self._gpus > 0 and torch.cuda.is_available():
            return torch.device("cuda", 0)  # the runtime shows a worker only its own devices
        return torch.device("cpu")

    def run(self, work: Work, unit: Unit, attempt: int, halvings: int = 0) -> Outcome:
        """The body on one unit, in a pool.

        halvings  how many workers that were at it were killed for memory
        """
        name = f"{attempt}-{uuid.uuid4().hex[:8]}"

        def call() -> Any:
            state = self._prepared(work)
            MICROBATCHES.begin(halvings)
            return resolve(work.body)(state, unit, name)

        with HERE.doing(UNIT):
            return self._guard(call, work.title)

    def run_rank(
        self, work: Work, rank: int, size: int, address: str, timeout_s: float, halvings: int = 0,
        share: Sequence[str] | None = None,
    ) -> Outcome:  # fmt: skip
        """The body as one rank of a gang; share: see Collective."""

        def call() -> Any:
            shared = self.device().type == "cpu" or self._gpus < 1  # NCCL wants a GPU for each rank
            backend = "gloo" if shared else "nccl"
            collective = join_group(rank, size, address, backend=backend, timeout_s=timeout_s)
            collective.share = share
            try:
                name, state = f"g-{uuid.uuid4().hex[:8]}", self._prepared(work)
                MICROBATCHES.forget()  # what ranks compute together they cut alike
                MICROBATCHES.begin(halvings)
                return resolve(work.body)(state, collective, name)
            finally:
                leave_group()

        HERE.forget()
        with HERE.doing(UNIT):
            return self._guard(call, work.title)

    def _prepared(self, work: Work) -> Any:
        key = digest([work.prepare, dict(work.context)])
        if key != self._key:
            self._key, self._state = "", None
            MICROBATCHES.forget()
            self._state = resolve(work.prepare)(work.context, self.device())
            self._key = key
        return self._state

    def _guard(self, call: Callable[[], Any], stage: str) -> Outcome:
        """Whatever the call raises is an outcome: `sys.exit` in a task is no end of a worker."""
        where = f"{socket.gethostname()} (pid {os.getpid()})"
        began = time.perf_counter()
        try:
            value, seconds = call(), time.perf_counter() - began
            lowered = MICROBATCHES.lowered
            return Outcome(value=value, where=where, seconds=seconds, lowered=lowered)
        except self.STOPS:
            raise
        except BaseException as error:
            return self._failed(error, where, stage)

    def _failed(self, error: BaseException, where: str, stage: str) -> Outcome:
        trace = faults.full_trace(error)
        kind = next((n for n, cls in RAISABLE.items() if isinstance(error, cls)), None)
        if kind is not None:
            # One of ours may stand for the task's: what a method of gradients cannot pass, say.
            tried = self._culprit(error) if kind == "InputError" and error.__context__ else ""
            message = f"task: {tried}" if tried else faults.text(error, most=2_000)
            return Outcome(error=kind, message=message, trace=trace, where=where)
        whose = faults.whose(error)
        message = faults.told(error)
        short = is_out_of_memory(error)
        if short:
            message += self._memory_advice(stage)
        tried = self._culprit(error) if whose == "user" and DEVICE_LOST not in message else ""
        less = short and MICROBATCHES.less_may_fit
        found = Outcome(None, "Exception", message, whose, tried, trace, where)
        return replace(found, out_of_memory=short, less_may_fit=less)

    def _memory_advice(self, stage: str) -> str:
        """; lower train.batch_size, or runtime.workers"""
        alone = MICROBATCHES.alone
        told = f" with one row at once (as {alone} was lowered to)" if alone else ""
        names: list[str] = []
        with contextlib.suppress(Exception):
            asked = self._state.memory_settings(stage)
            names = [name for name in asked if name != alone]
        return f"{told}; lower {', '.join([*names, 'runtime.workers'])}"

    def _culprit(self, error: BaseException) -> str:
        with contextlib.suppress(Exception, SystemExit):
            return str(getattr(self._state, "culprit", lambda _: "")(error))
        return ""


def tell_lowered(outcome: Outcome, told: set[str]) -> None:
    """Say of each setting and size once that memory ran out on a worker; `told` remembers."""
    for setting, (asked, taken) in outcome.lowered.items():
        line = f"out of memory: {asked} rows at once by {setting} are {taken}"
        if line not in told:
            told.add(line)
            LOG.warning("warning: %s on %s; the results agree", line, outcome.where)


def raise_if_final(
    what: str, outcome: Outcome, before: Outcome | None, attempt: int, attempts: int
) -> None:
    """Raise in the caller what another attempt cannot mend, and the last attempt's failure.

    before  how the attempt before this one failed
    """
    if outcome.error in RAISABLE:
        raise RAISABLE[outcome.error](outcome.message)
    again = bool(outcome.tried) if before is None else faults.alike(before.message, outcome.message)
    last = attempt >= attempts
    if outcome.whose != "passing" and again and (last or before is not None):
        raise _lasting(what, outcome)
    if last:
        raise _gave_up(what, attempts, outcome)


def _lasting(what: str, outcome: Outcome) -> DistinfError:
    """The error for what came twice in the same way; the trace rides along for logs."""
    error: DistinfError
    if outcome.whose == "user":
        error = InputError(f"task: {outcome.tried or f'{what} failed {outcome.message}'}")
    else:
        error = InternalError(
            f"{what} failed twice {outcome.message}; this is a bug of distinf, please report it"
        )
    error.add_note(outcome.trace)
    return error


def _gave_up(what: str, attempts: int, outcome: Outcome) -> Interrupted:
    """The error for a unit or gang whose attempts are used up; the trace rides along for logs."""
    error = Interrupted(
        f"{what} failed on {outcome.where or 'a worker that died'} (attempt {attempts} of "
        f"{attempts}): {outcome.message}; run the same command to resume"
    )
    error.add_note(outcome.trace)
    return error


def free_address(host: str) -> str:
    """host:port on this node that is free at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
