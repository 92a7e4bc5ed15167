"""Speeds of a run of the empirical recipe: one row tuned on, and what is measured after it, timed
here by the stages' own code or by a roofline."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from distinf.empirical import base, tuning
from distinf.empirical.session import Outline, Session
from distinf.empirical.task import TRAIN, Based, places, relations
from distinf.engine.running import together
from distinf.errors import InputError
from distinf.planning.devices import (
    BANDWIDTH_SHARE,
    COMPUTE_SHARE,
    LAUNCH_S,
    Device,
    longer,
)  # fmt: skip
from distinf.planning.speeds import BATCHES, NO_GPU, OTHER_FLOPS, Rate, Speeds
from distinf.planning.staging import SpeedsOf
from distinf.runtime import RuntimeSettings
from distinf.tasks.task import error_context

SECONDS = 1.0  # for each kind of work
PATIENCE = 4.0  # of SECONDS; what takes longer the first time is not done again
BASE_S = 3.0  # of the training of a base, the rest by the share that it tells
# Times that all weights go through memory: of a step by AdamW (restored, gradients and two moments
# written and read), and of a derivative.
WEIGHTS_MOVED = {"step": 14.0, "forward": 1.0, "derivative": 4.0, "prompted": 1.0}


def measured_steps(session: Session, runtime: RuntimeSettings) -> SpeedsOf:
    """Seconds of the run and of each variation, on a row whose matrix is of about the mean size.

    Of one thread on a CPU processor time is meant. Raises InputError if the model cannot be had.
    """
    if runtime.num_gpus and not torch.cuda.is_available():
        raise InputError(NO_GPU.format(runtime.num_gpus))
    alone, before = runtime.threads == 1 and not runtime.num_gpus, torch.get_num_threads()
    clock = time.process_time if alone else time.perf_counter
    rates = {}
    torch.set_num_threads(runtime.threads)
    try:
        for each in together(session):
            assert isinstance(each, Session)
            rates[id(each.outline)] = _rates(each, clock)
            each.forget_cached()
    finally:
        torch.set_num_threads(before)
    note = f"speeds measured here on one process of {runtime.threads} thread(s), a row of each run"
    note += ", by its processor's time" if alone else ""
    plain = Speeds(flops=OTHER_FLOPS, notes=(note,))
    return lambda outline: replace(plain, rates=rates[id(outline)])


def _rates(session: Session, clock: Callable[[], float]) -> dict[str, Rate]:
    began, settings = clock(), session.settings.tune
    with error_context("model()"):
        model = base.ready(session, session.model_of(session.task))
    found = {"model": Rate(0.0, clock() - began)}
    if isinstance(session.task, Based):
        found["base"] = Rate(0.0, _base_s(session, session.task, clock))
    measured_N = session.outline.measured_N
    row = int(np.abs(measured_N - measured_N.mean()).argmin())
    losses, ids = base.evaluation(session, model, places(relations(session.task, TRAIN))[row])
    start = tuning.start_of(session, model)

    def forward() -> None:
        with torch.no_grad():
            losses(start)

    def prompted() -> None:
        tuning.after_prompt(session, model, row, losses, ids)

    def step() -> None:
        tuning.tuned_on(session, model, [row])

    def derivative() -> None:
        tuning.first_order(losses, start, tuning.tuned_on(session, model, [row]).parameters)

    with base.measuring(session, model):
        found["forward"] = Rate(0.0, _seconds(forward, clock) / measured_N[row])
        if settings.optimizer == tuning.PROMPT:
            found["prompted"] = Rate(0.0, _seconds(prompted, clock) / measured_N[row])
            return found
        one = _seconds(step, clock)
        found["step"] = Rate(0.0, one, first=one * tuning.TRIED * settings.steps)
        if settings.first_order:
            whole = _seconds(derivative, clock)
            found["derivative"] = Rate(0.0, max(0.0, whole - one) / measured_N[row])
    return found


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """The median of as many calls as fit, after a first one."""
    times: list[float] = []
    while len(times) < 2 or sum(times[1:]) < SECONDS:
        began = clock()
        call()
        times.append(clock() - began)
        if times[0] > PATIENCE * SECONDS:
            return times[0]
    return float(np.median(times[1:]))


class _Enough(Exception):
    pass


def _base_s(session: Session, task: Based, clock: Callable[[], float]) -> float:
    """What base() takes, by how far it comes in a while."""
    began, last = clock(), (0.0, 0.0)

    def tell(share: float) -> None:
        nonlocal last
        last = (share, clock() - began)
        if share > 0 and last[1] > BASE_S:
            raise _Enough

    with error_context("base()"):
        try:
            task.base(session.device, tell)
        except _Enough:
            return last[1] / last[0]
    return clock() - began


def roofline_steps(session: Session, gpu: Device) -> SpeedsOf:
    """The same by arithmetic and by the weights' way through memory, whichever is longer."""

    def speeds_of(outline: Outline) -> Speeds:
        settings, shapes = outline.settings.tune, outline.shapes
        forward = shapes.flops_per_sample / (gpu.peak(settings.precision) * COMPUTE_SHARE)
        weights = 4.0 * shapes.parameters / (gpu.bandwidth * BANDWIDTH_SHARE)
        rows = max(1, min(settings.evaluation_batch, outline.most))
        rates = {}
        for name, passes in tuning.FORWARDS.items():
            launch = LAUNCH_S["train" if name == "step" else "forward"]
            at_once = 1 if name == "step" else rows
            moved = WEIGHTS_MOVED[name] * weights
            rate = longer(0.0, passes * forward, moved / at_once)
            rates[name] = rate.plus(BATCHES, launch / at_once)
        note = (
            f"estimate for {gpu.name} ({gpu.sheet}): roofline at {COMPUTE_SHARE:.0%} of peak "
            f"FLOP/s and {BANDWIDTH_SHARE:.0%} of memory bandwidth, texts at their mean length; "
            "training a base is left out; not measured on this GPU"
        )
        return Speeds(flops=gpu.peak("float32") * COMPUTE_SHARE, rates=rates, notes=(note,))

    return speeds_of
