"""One measuring process: what a worker does with a model and its rows, timed.

Shape legend: N samples, P parameters in the layout, W directions that gradients are projected on.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.engine.session import prepare
from distinf.errors import DistinfError
from distinf.naming import CONFIG
from distinf.numerics.capture import finite_rows, flat_gradients
from distinf.numerics.curvature import hessian_product
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import Precision, precision
from distinf.runtime import Unit
from distinf.runtime.worker import Worker
from distinf.spectral.session import Session
from distinf.store import Rows, open_root
from distinf.tasks.task import SPLITS, Batch, GeneratingTask

ROWS_AT_ONCE = 24  # of a read, and of a batch that is made
UNITS = 240  # that rows are read from: hardly two of a read lie in one

Call = Callable[[int], Any]  # on a batch of n rows


class Memory:
    """Rows made for the measurement; an id beyond them is one of them again."""

    def __init__(self, columns: Mapping[str, np.ndarray]):
        self._columns = columns
        self._count = len(next(iter(columns.values())))

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[ids % self._count] for name, values in self._columns.items()}


class Meter:
    """The phases, each a method that returns {primitive: rate as a mapping}.

    One thread on a CPU is timed by the processor time that it used, so that other programs on the
    machine do not come into its rates; threads and GPUs are timed by the clock on the wall.
    """

    def __init__(self, session: Session, batches: Mapping[str, int], seconds: float, threads: int):
        self.session = session
        alone = threads == 1 and session.device.type == "cpu"
        self.now = time.process_time if alone else time.perf_counter
        self.settings = session.settings
        self.batches = batches
        self.seconds = seconds
        self._made: dict[str, dict[str, np.ndarray]] = {}

    # -- rows ------------------------------------------------------------------------------

    def generate(self) -> dict[str, Any]:
        """A unit of each split; the first one of all pays for the simulator's start."""
        task, found = self.session.task, {}
        assert isinstance(task, GeneratingTask)
        for split in SPLITS:
            rows = min(task.rows_per_unit(split), task.rows(split))
            began = self.now()
            self._made[split] = dict(task.generate(split, 0, rows))
            between = self.now()
            task.generate(split, 0, rows)
            first, again = between - began, self.now() - between
            found[f"generate {split}"] = _rate(0, again / rows, rows, max(0.0, first - again))
            task.attach(split, Memory(self._made[split]))
        return found

    def rows(self) -> dict[str, Any]:
        """Reading them back from a store, any row of many units and one after the other."""
        columns = self._made["train"]
        count = len(next(iter(columns.values())))
        unit = Unit("data", "plan", 0, count)
        chunk_rows = self.settings.data.chunk_rows
        record = self.session.commit(unit, "1-probe", columns, chunk_rows=chunk_rows)
        units = min(-(-self.session.task.rows("train") // count), UNITS)
        many = [(k * count, (k + 1) * count, record["manifest"]) for k in range(units)]
        stored = Rows(self.session.blobs, many)
        size = min(ROWS_AT_ONCE, count)
        order = np.random.default_rng(0)
        stored.take(np.arange(units) * count)  # which opens them
        at_random = self.mean(lambda n: stored.take(order.permutation(units * count)[:n]), size)
        in_order = self.mean(lambda n: stored.take(np.arange(n)), size)
        return {
            "random row": _rate(0, at_random / size, size),
            "row in order": _rate(0, in_order / size, size),
        }

    def batch(self) -> dict[str, Any]:
        """Rows in memory to a batch of tensors."""
        made = self.mean(lambda n: self._batch("train", n), ROWS_AT_ONCE)
        return {"batch": _rate(0, made / ROWS_AT_ONCE, ROWS_AT_ONCE)}

    def _batch(self, split: str, count: int) -> Batch:
        return self.session.batch(split, np.arange(count) % self.session.task.rows(split))

    # -- the model -------------------------------------------------------------------------

    def forward(self) -> dict[str, Any]:
        model = self.session.fresh_model().eval()

        def call(count: int) -> Any:
            with torch.no_grad():
                return self.session.task.evaluate(model, self._batch("evaluation", count))

        return self.timed("forward", call)

    def train(self) -> dict[str, Any]:
        model = self.session.fresh_model().train()
        settings = self.settings.train
        # So small a rate that the weights stay where they are.
        optimizer = self.session.task.optimizer(model.parameters(), 1e-12, 0.0)
        loss = next(iter(self.session.task.losses.values()))

        def call(count: int) -> None:
            model.zero_grad()
            with self._at(settings.precision):
                total = loss(model, self._batch("train", count)).sum() / count
                total.backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            torch.cat([grad.reshape(-1).double() for grad in grads])  # as ranks sum them
            optimizer.step()

        return self.timed("train", call)

    def product(self) -> dict[str, Any]:
        model, settings = self.session.fresh_model().eval(), self.settings.curvature
        layout = Layout.of(model, settings.blocks)
        vector_P = torch.full((layout.size,), layout.size**-0.5, device=self.session.device)
        loss = next(iter(self.session.task.losses.values()))

        def call(count: int) -> Tensor:
            batch = self._batch("train", count)
            with self._at(settings.precision):
                return hessian_product(model, loss, [batch], layout, settings.kind)(vector_P)

        return self.timed("product", call)

    def gradient(self) -> dict[str, Any]:
        model, settings = self.session.fresh_model().eval(), self.settings
        layout = Layout.of(model, settings.curvature.blocks)
        losses = self.session.task.losses
        width = settings.curvature.keep + settings.targets.count * len(losses)
        directions_WP = torch.full((width, layout.size), 1e-3, device=self.session.device)
        loss = next(iter(losses.values()))
        chunk, method = settings.gradients.chunk, settings.gradients.chosen

        def call(count: int) -> Any:
            batch = self._batch("train", count)
            with self._at(settings.gradients.precision):
                grads_NP = flat_gradients(model, loss, batch, layout, chunk=chunk, method=method)
            finite_N = finite_rows(grads_NP)
            safe_NP = torch.where(finite_N[:, None], grads_NP, 0.0)
            return safe_NP @ directions_WP.T, safe_NP.double().square().sum(1)

        return self.timed("gradient", call)

    def _at(self, kind: Precision) -> contextlib.AbstractContextManager[None]:
        if kind == "float32" and self.session.device.type == "cpu":
            return contextlib.nullcontext()
        return precision(kind, self.session.device)

    # -- what is stored --------------------------------------------------------------------

    def model(self) -> dict[str, Any]:
        """Building it and loading its weights."""
        weights = self.session.fresh_model().state_dict()
        seconds = self.mean(lambda _: self.session.fresh_model().load_state_dict(weights), 1)
        return {"model": _rate(0, seconds, 1)}

    def commit(self) -> dict[str, Any]:
        """A unit of five small arrays."""
        arrays = {name: np.zeros((64, 8), dtype=np.float32) for name in "abcde"}
        return {"commit": _rate(0, self._commits("probe", arrays, repeats=3), 1)}

    def checkpoint(self) -> dict[str, Any]:
        """Model and optimizer, an array for each tensor: two moments as Adam and LAMB have them."""
        weights = self.session.fresh_model().state_dict()
        arrays = {name: value.cpu().numpy() for name, value in weights.items()}
        moments = {f"{n}.{k}": v for n, v in arrays.items() for k in (1, 2) if v.size > 1}
        seconds = self._commits("checkpoint", {**arrays, **moments}, repeats=1)
        return {"checkpoint": _rate(0, seconds, 1)}

    def _commits(self, name: str, arrays: Mapping[str, np.ndarray], repeats: int) -> float:
        """Mean seconds of a commit: it waits for the disk, so the wall's, but not for a core."""
        cpu, began = time.process_time(), time.perf_counter() - _waited_s()
        for place in range(repeats):
            self.session.commit(Unit(name, "plan", place, place + 1), "1-probe", arrays)
        took = time.perf_counter() - _waited_s() - began
        return max(took, time.process_time() - cpu) / repeats

    # -- timing ----------------------------------------------------------------------------

    def timed(self, name: str, call: Call) -> dict[str, Any]:
        """Seconds of a call and of a sample, from calls on one row and on the run's batch.

        A batch that would take long is cut down.
        """
        call(1)  # what is made once, and the first pages of memory
        one = self.mean(call, 1, self.seconds / 4)
        size = max(1, min(self.batches[name], int(self.seconds / 2 / one)))
        many = self.mean(call, size) if size > 1 else one
        sample = (many - one) / (size - 1) if size > 1 else one
        if sample <= 0:  # noise, or a batch costs no more than a row
            sample = many / size
        rate = _rate(max(0.0, many - sample * size), sample, self.batches[name])
        return {name: rate}

    def mean(self, call: Call, size: int, seconds: float | None = None) -> float:
        """Mean seconds of a call, over as many as fit `seconds`, two at least if that is little."""
        limit = self.seconds if seconds is None else seconds
        first = self._clock(call, size)
        if first > limit:
            return first
        found, patience = [self._clock(call, size)], time.perf_counter() + 4 * limit
        while sum(found) < limit and time.perf_counter() < patience:
            found.append(self._clock(call, size))
        return mean(found)

    def _clock(self, call: Call, size: int) -> float:
        began = self.now()
        call(size)
        if self.session.device.type == "cuda":
            torch.cuda.synchronize()
        return self.now() - began


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _waited_s() -> float:
    """How long this process's threads waited for a core (Linux's run-queue statistics; else 0)."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that ended
            total += int(file.read_text().split()[1])
    return total / 1e9


def _rate(call: float, sample: float, batch: float, first: float = 0.0) -> dict[str, float]:
    return {"call": call, "sample": sample, "batch": batch, "first": first}


def main() -> None:
    """Read a job from stdin, say how it started, then carry out each phase that is asked for."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a task prints is not an answer
    for answer in _answers():
        print(json.dumps(answer), file=out, flush=True)


def _answers() -> Iterator[dict[str, Any]]:
    meter: Meter | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if meter is None:
                meter = _start(message)
                yield {"cpu": time.process_time(), "bytes": _peak_bytes()}
            else:
                cpu, wall = time.process_time(), time.perf_counter()
                answer = getattr(meter, message["phase"])()
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                yield {**answer, "cpu": cpu, "wall": wall, "bytes": _peak_bytes()}
        except Exception as error:
            what = str(error).strip().splitlines() or [""]
            told = isinstance(error, DistinfError)
            yield {"error": what[0] if told else f"measuring: {type(error).__name__}: {what[0]}"}


def _start(job: Mapping[str, Any]) -> Meter:
    worker = Worker(job["threads"], gpus=job["gpus"])
    worker.ready()
    open_root(job["context"]["root"]).put(CONFIG, b"")  # a folder without one is no run's
    session: Any = prepare(job["context"], worker.device())
    meter = Meter(session, job["batches"], job["seconds"], job["threads"])
    _ = session.task
    return meter
