"""The points task on a machine whose memory holds a few rows at once; training is not minded.

Begun as a program (CONFIG MEGABYTES OUT), it carries a run out in a process whose memory may grow
by so much.
"""

import resource
import sys
from dataclasses import dataclass

import torch
from torch import nn

from distinf.config import load
from distinf.engine.run import execute
from distinf.tasks.tensor_task import TensorTask
from tests.support import blobs_task
from tests.support.runs import silent

HUGE = 2.0  # of all its features


@dataclass(frozen=True)
class Crowded(blobs_task.Points):
    """fits: rows at once, 0 for any number; megabytes: that a row really takes in its loss; huge: a
    training row that no machine holds, 0 for none."""

    fits: int = 0
    megabytes: int = 0
    huge: int = 0


def task(settings: Crowded, seed: int) -> TensorTask:
    made = blobs_task.task(settings, seed)
    if settings.huge:
        made._data["train"]["x"][settings.huge] = HUGE

    def take_room(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
        rows = 0 if model.training else len(batch["x"])
        if 0 < settings.fits < rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        huge = bool((batch["x"] == HUGE).any())
        torch.empty(rows, 1 << 46 if huge else settings.megabytes << 20, dtype=torch.uint8)

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        take_room(model, batch)
        return blobs_task.loss(model, batch)

    def probabilities(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        take_room(model, batch)
        return model(batch["x"]).softmax(1)

    made.losses = {"cross-entropy": loss}
    made.classes, made.probabilities = lambda: ("odd", "even"), probabilities
    return made


if __name__ == "__main__":
    config = load(sys.argv[1], [f"out={sys.argv[3]}"])
    with open("/proc/self/statm") as pages:
        now = int(pages.read().split()[0]) * resource.getpagesize()
    limit = now + (int(sys.argv[2]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    execute(config, silent)
