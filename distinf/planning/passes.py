"""Speeds of a run of the Gram recipe: its model's passes over rows, timed here or by a roofline."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from distinf.errors import DistinfError, InputError
from distinf.gram.session import TRAIN, Session, layout_of
from distinf.gram.task import Measured, Prepared
from distinf.gram.train import step_passes
from distinf.numerics.capture import block_gradients
from distinf.planning.devices import COMPUTE_SHARE, Device
from distinf.planning.speeds import BUSY, BUSY_NOTE, NO_GPU, WORKER_S, Rate, Speeds
from distinf.planning.staging import SpeedsOf
from distinf.runtime import RuntimeSettings
from distinf.tasks.task import Task, error_context

ROWS = 32  # that are timed, drawn evenly from the training rows
PIECE = 8  # of them at once, where they have lengths
SECONDS = 2.0  # for each kind of pass
SIDE = 1_024  # of the products that stand for the linear algebra


def measured_passes(session: Session, runtime: RuntimeSettings) -> SpeedsOf:
    """Seconds a row of a forward pass, a training step and a gradient, on the first cell's rows,
    at the share of a core that this process has.

    Raises InputError if the rows or the model cannot be had here; --gpu or --gflops need neither.
    """
    if runtime.num_gpus and not torch.cuda.is_available():
        raise InputError(NO_GPU.format(runtime.num_gpus))
    alone, before = runtime.threads == 1 and not runtime.num_gpus, torch.get_num_threads()
    torch.set_num_threads(runtime.threads)
    try:
        task = _with_rows(next(iter(session.tasks.values())))
        watch = _Watch()
        rates = _rates(session, task, watch, PIECE if not runtime.num_gpus else ROWS)
        flops = 2.0 * SIDE**3 / watch.seconds(_matrix_product())
    finally:
        torch.set_num_threads(before)
    notes = [
        f"speeds measured here on one process of {runtime.threads} thread(s), {ROWS} rows a batch"
    ]
    share = watch.share if alone else 1.0
    if share < BUSY:
        notes.append(BUSY_NOTE.format(share))
    start_s = 0.0 if runtime.kind == "local" else Speeds.start_s / share
    speeds = Speeds(
        flops, rates, start_s=start_s, worker_s=WORKER_S / share, share=share, notes=tuple(notes)
    )
    return lambda _: speeds


def _with_rows(task: Task) -> Task:
    if isinstance(task, Prepared):
        try:
            with error_context("prepare()"):
                task.attach(task.prepare())
        except DistinfError as error:
            raise InputError(
                f"plan: nothing to measure with ({error}); name a GPU (--gpu h100) or a rate "
                "(--gflops 50)"
            ) from None
    return task


def _rates(session: Session, task: Task, watch: "_Watch", most: int) -> dict[str, Rate]:
    with error_context("model()"):
        model = task.model()
    ids = np.linspace(0, task.rows(TRAIN) - 1, min(ROWS, task.rows(TRAIN))).astype(np.int64)
    batches = [task.batch(TRAIN, part) for part in _pieces(task, ids, most)]
    loss = next(iter(task.losses.values()))
    layout = layout_of(model, session.settings.gradients)

    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                loss(model.eval(), batch)

    def step() -> None:
        model.zero_grad()
        for batch in batches:
            loss(model.train(), batch).sum().backward()

    def gradients() -> None:
        for batch in batches:
            block_gradients(model, loss, batch, layout)

    calls = {"forward": forward, "train": step, "gradient": gradients}
    return {
        name: Rate(0.0, watch.seconds(call) / len(ids), len(ids)) for name, call in calls.items()
    }


def _pieces(task: Task, ids: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows of like length together, as the stages take them; of other tasks all at once."""
    if not isinstance(task, Measured):
        return [ids]
    by_length = ids[np.argsort(np.asarray(task.lengths(TRAIN))[ids], kind="stable")]
    return [by_length[a : a + most] for a in range(0, len(ids), most)]


class _Watch:
    """Times calls, and how much of a core they had."""

    def __init__(self) -> None:
        self._cpu = self._wall = 0.0

    @property
    def share(self) -> float:
        return min(1.0, self._cpu / self._wall)

    def seconds(self, call: Callable[[], object]) -> float:
        """The median of as many calls as fit, after a first one."""
        call()
        times: list[float] = []
        while not times or sum(times) < SECONDS:
            began, cpu = time.perf_counter(), time.process_time()
            call()
            times.append(time.perf_counter() - began)
            self._cpu, self._wall = self._cpu + time.process_time() - cpu, self._wall + times[-1]
        return sorted(times)[len(times) // 2]


def _matrix_product() -> Callable[[], object]:
    first = torch.randn(SIDE, SIDE, dtype=torch.float64)  # as products of gradients are taken
    return lambda: torch.mm(first, first)


def roofline_passes(session: Any, gpu: Device) -> SpeedsOf:
    """The same by arithmetic alone, at a share of the GPU's peak in each stage's precision."""
    settings = session.settings
    shapes = next(iter(session.outline.cells.values())).shapes
    precision = {"train": settings.train.precision, "gradient": settings.gradients.precision}
    dtype = getattr(getattr(next(iter(session.tasks.values())), "settings", None), "model", None)
    wide = "bfloat16" if getattr(dtype, "dtype", "") == "bfloat16" else "float32"
    rates = {}
    again = settings.gradients.checkpointing
    forwards_of = {"forward": 1.0, "train": step_passes(settings.train, shapes)}
    for name, forwards in {**forwards_of, "gradient": 2.0 + again}.items():
        chosen = precision.get(name, settings.train.precision)
        peak = gpu.peak("bfloat16" if "bfloat16" in (chosen, wide) else chosen)
        seconds = forwards * shapes.flops_per_sample / (peak * COMPUTE_SHARE)
        rates[name] = Rate(0.0, seconds)
    note = (
        f"estimate for {gpu.name} ({gpu.sheet}): arithmetic at {COMPUTE_SHARE:.0%} of peak, rows "
        "at their mean length, and in training padded to the longest of a pass; not measured on "
        "this GPU"
    )
    notes = tuple(filter(None, (note, shapes.assumption)))
    speeds = Speeds(flops=gpu.peak("float64") * COMPUTE_SHARE, rates=rates, notes=notes)
    return lambda _: speeds
