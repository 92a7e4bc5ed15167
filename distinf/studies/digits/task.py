"""The study "digits": small networks on MNIST, as in the benchmarks of data attribution.

The protocol of dattri (Deng et al. 2024) for MNIST: multinomial logistic regression or a small
perceptron on 5,000 training and 500 test digits, trained with SGD.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.studies.digits.files import read
from distinf.tasks.task import Batch
from distinf.tasks.tensor_task import TensorTask

CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """Images of handwritten digits from files, and a network that tells them apart.

    train, evaluation  files of images and labels: .csv (pixels, then the label), .npz (x and y) or
                       IDX; nothing is downloaded
    train_rows, evaluation_rows  so many of each file, from the first on (0: all)
    model     linear (one layer without bias: multinomial logistic regression) or mlp (128 and 64
              units, ReLU, dropout 0.1)
    momentum  of SGD, the optimizer
    mean, deviation  pixels from 0 to 1 are shifted and divided by these
    """

    train: str
    evaluation: str
    train_rows: int = 0
    evaluation_rows: int = 0
    model: Literal["linear", "mlp"] = "linear"
    momentum: float = 0.0
    mean: float = 0.1307
    deviation: float = 0.3081

    def __post_init__(self) -> None:
        for name in ("train", "evaluation"):
            object.__setattr__(self, name, os.path.abspath(getattr(self, name)))
            if getattr(self, f"{name}_rows") < 0:
                raise ValueError(f"{name}_rows: {getattr(self, f'{name}_rows')} must be 0 or more")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: {self.momentum} must lie in [0, 1)")
        if not self.deviation > 0:
            raise ValueError(f"deviation: {self.deviation} must be above 0")


class CrossEntropy:
    """Per-sample cross entropy, split at the logits."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.from_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def from_outputs(self, outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch["label"], reduction="none")


def task(settings: Digits, seed: int) -> TensorTask:
    """The task; InputError for files that are not there, or hold something else."""
    train, evaluation = (_split(settings, name) for name in ("train", "evaluation"))
    pixels = train["x"].shape[1]
    if evaluation["x"].shape[1] != pixels:
        raise InputError(
            f"settings.evaluation: images of {evaluation['x'].shape[1]} pixels, but those of "
            f"settings.train have {pixels}"
        )
    made = TensorTask(
        model=partial(network, settings.model, pixels),
        data={"train": train, "evaluation": evaluation},
        losses={"cross-entropy": CrossEntropy()},
        seed=seed,
        optimizer=partial(torch.optim.SGD, momentum=settings.momentum),
        probabilities=lambda model, batch: model(batch["x"]).softmax(-1),
        labels=train["label"].numpy(),
        classes=[str(digit) for digit in range(CLASSES)],
        notes={"digit": train["label"].tolist()},
    )
    made.criteria = {"first": first}
    return made


def first(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """[E]: a gap that is largest for the first rows, so that targets are those and no choice."""
    rows = len(columns["metric"])
    return np.arange(rows, 0, -1).astype(np.float64)


def network(kind: str, pixels: int) -> nn.Module:
    """Its weights are torch's own initial ones."""
    if kind == "linear":
        return nn.Linear(pixels, CLASSES, bias=False)
    return nn.Sequential(
        nn.Linear(pixels, 128), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, CLASSES),
    )  # fmt: skip


def _split(settings: Digits, name: str) -> dict[str, Tensor]:
    images, labels = read(getattr(settings, name), f"settings.{name}")
    rows = getattr(settings, f"{name}_rows") or len(labels)
    if rows > len(labels):
        raise InputError(
            f"settings.{name}_rows: {rows} is more than the {len(labels)} digits of settings.{name}"
        )
    scaled = (images[:rows].astype(np.float32) / 255 - settings.mean) / settings.deviation
    return {"x": torch.from_numpy(scaled), "label": torch.from_numpy(labels[:rows])}
