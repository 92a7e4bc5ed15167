"""Seconds that the check against one row at a time takes: on the quickstart and on MiniLM.

    python -m tests.benchmarks.bench_agreement

One torch thread, processor time, so that a busy machine changes it little. The quickstart's losses
are checked on a batch of the gradients stage and on targets one by one, MiniLM with LoRA and its
embedding (configs/noisy_labels/minilm.yaml, texts made here) on a batch of the gradients stage;
each is done once a run and worker. Beside it what a gradient of such a batch takes. Aim: 1 % of the
run or 2 s, whichever is more.
"""

import csv
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

from distinf.config import load
from distinf.gram.session import TRAIN, layout_of
from distinf.numerics.parameters import Layout
from distinf.tasks.methods import agree


def seconds(call: Callable[[], object]) -> float:
    began = process_time()
    call()
    return process_time() - began


class Made:
    """Generated rows, as a task reads stored ones."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def take(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[ids] for name, values in self.arrays.items()}


def quickstart() -> None:
    config = load("configs/quickstart.yaml")
    task: Any = config.identity
    model = task.model().eval()
    session: Any = config.session(".", torch.device("cpu"))
    settings = session.settings.gradients
    layout = Layout.of(model, session.settings.curvature.blocks)
    first, *others = task.losses
    kinds = [("train", first, settings.chunk)]
    kinds += [("evaluation", name, 1) for name in (first, *others)]
    for split, name, rows in kinds:
        count = max(task.rows_per_unit(split), settings.chunk)
        task.attach(split, Made(dict(task.generate(split, 0, count))))
        batch = task.batch(split, np.arange(settings.chunk))
        methods = (settings.chosen,)
        taken = seconds(
            partial(agree, model, task.losses[name], batch, layout, settings, methods, rows=rows)
        )
        print(f"quickstart, {split}, {name}, {rows} at once: {taken:.2f} s")


def minilm() -> None:
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.csv"
        with file.open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["text", "label"])
            for row in range(2000):
                words = random.choice(["good", "bad", "films", "and", "plain", "books"], 16)
                writer.writerow([f"{' '.join(words)} {row}", row % 2])
        config = load("configs/noisy_labels/minilm.yaml", [f"data.path={file}"])
        session: Any = config.session(folder, torch.device("cpu"))
        task = next(iter(session.tasks.values()))
        task.attach(task.prepare())
    model, settings = task.model().eval(), session.settings.gradients
    batch = task.batch(TRAIN, np.arange(32))
    loss, layout = next(iter(task.losses.values())), layout_of(model, settings)
    taken = seconds(lambda: agree(model, loss, batch, layout, settings, ("hooks",), rows=32))
    print(f"MiniLM, 32 rows of {batch['input_ids'].shape[1]} tokens at once: {taken:.2f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    quickstart()
    minilm()
