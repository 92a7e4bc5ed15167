"""What a run shows in TensorBoard, written by its driver alone: how fast each stage goes, and the
curves of its units (Stage.curves) as they are committed."""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from threading import Event
from typing import Any

from distinf.engine import running
from distinf.errors import DistinfError, InputError
from distinf.runtime import Part, Unit
from distinf.saying import alongside

EVERY_S = 5.0


def refuse_missing() -> None:
    """InputError where TensorBoard's writer is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "runtime.tensorboard: TensorBoard is not installed here: pip install tensorboard; or "
            "leave it out"
        )


def watching(inner: running.Watcher, session: Any, folder: str) -> running.Watcher:
    """`inner`, and event files in `folder` of every stage of the session's run."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(os.path.expanduser(folder))
    of = {running.part_of(*each).title: each for each in running.parts(session)}

    def follow(title: str, units: Sequence[Unit], done: Callable[[], float], over: Event) -> None:
        each, stage = of[title]
        going, shown, before, at = True, set[str](), done(), time.monotonic()
        while going:
            going = not over.wait(EVERY_S)
            now, later = done(), time.monotonic()
            rate = (now - before) / max(later - at, 1e-3)
            writer.add_scalar(f"units a second/{title}", rate, int(now))
            before, at = now, later
            with suppress(DistinfError, OSError):  # who needs the unit says what is wrong with it
                ready = each.ledger(stage.name).committed_ids() - shown
                for unit in (unit for unit in units if unit.id in ready):
                    shown.add(unit.id)
                    for name, values in stage.curves(each, unit).items():
                        for step, value in enumerate(values, start=unit.start):
                            writer.add_scalar(f"{title}/{name}", value, step)
            writer.flush()

    @contextmanager
    def watch(part: Part, units: Sequence[Unit], done: Callable[[], float]) -> Iterator[None]:
        with inner(part, units, done), alongside(partial(follow, part.title, units, done)):
            yield

    return watch
