"""What the steps of a unit took, for which estimators and in which blocks: kept with its record."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from distinf.gram.blocks import Block

TOOK = "took"  # in a record's summary


class Stopwatch:
    """Adds up wall and processor seconds of steps. A CUDA device is waited for at both ends."""

    def __init__(self, device: torch.device):
        self._device = device
        self._took: dict[tuple[tuple[str, ...], str], list[float]] = {}

    @contextmanager
    def step(self, estimators: Sequence[str], shares: Mapping[str, float]) -> Iterator[None]:
        """A step that all of these estimators need; `shares` by the name of a block, or by
        `joint_name`. Nothing is noted of a step that no estimator needs."""
        began = self._now()
        yield
        took = [now - then for now, then in zip(self._now(), began, strict=True)]
        if not estimators:
            return
        for name, share in shares.items():
            sums = self._took.setdefault((tuple(estimators), name), [0.0, 0.0])
            for k, seconds in enumerate(took):
                sums[k] += share * seconds

    def notes(self) -> list[dict[str, Any]]:
        """Plain: by estimators and block, seconds on the wall and of the processor."""
        return [
            {"estimators": list(estimators), "of": name, "wall_s": wall, "processor_s": processor}
            for (estimators, name), (wall, processor) in self._took.items()
        ]

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()


def joint_name(group: str) -> str:
    """What a step on a whole group is noted of; no block is called so."""
    return f"group {group}"


def by_width(blocks: Sequence[Block]) -> dict[str, float]:
    """Each block's share of a step that is taken on all of them at once."""
    total = sum(block.width for block in blocks)
    return {block.name: block.width / total for block in blocks}
