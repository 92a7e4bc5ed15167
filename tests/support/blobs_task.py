"""A small task of a user's own: two classes of points, some training labels flipped."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from distinf.tasks.tensor_task import TensorTask


@dataclass(frozen=True)
class Points:
    rows: int = 240
    flipped: int = 24
    width: int = 12

    def __post_init__(self) -> None:
        if self.rows < 40:
            raise ValueError(f"rows: {self.rows} must be at least 40")


def points(count: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    centres = torch.where(labels[:, None] == 1, 1.0, -1.0)
    return {"x": centres + torch.randn(count, 4, generator=generator), "label": labels}


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return cross_entropy(model(batch["x"]), batch["label"], reduction="none")


def task(settings: Points, seed: int) -> TensorTask:
    train = points(settings.rows, seed + 1)
    train["label"][: settings.flipped] = 1 - train["label"][: settings.flipped]
    return TensorTask(
        model=lambda: nn.Sequential(
            nn.Linear(4, settings.width), nn.Tanh(), nn.Linear(settings.width, 2)
        ),
        data={"train": train, "evaluation": points(64, seed + 2)},
        losses={"cross-entropy": loss},
        seed=seed,
    )


def poisoned(settings: Points, seed: int) -> TensorTask:
    """The same with one training row whose gradient is not finite."""
    made = task(settings, seed)
    made._data["train"]["x"][7] = float("inf")
    return made


def normed(settings: Points, seed: int) -> TensorTask:
    """The same with batch statistics."""
    made = task(settings, seed)
    made._model = lambda: nn.Sequential(
        nn.Linear(4, settings.width), nn.BatchNorm1d(settings.width), nn.Tanh(),
        nn.Linear(settings.width, 2),
    )  # fmt: skip
    return made
