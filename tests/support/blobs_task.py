"""A small task of a user's own: two classes of points, some training labels flipped."""

from dataclasses import dataclass
from functools import partial

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


def stepped(settings: Points, seed: int) -> TensorTask:
    """The same trained by SGD with momentum."""
    made = task(settings, seed)
    made._optimizer = partial(torch.optim.SGD, momentum=0.5)
    return made


def dropped(settings: Points, seed: int) -> TensorTask:
    """The same with dropout."""
    made = task(settings, seed)
    made._model = lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
    return made


class Drifting(nn.Linear):
    """A layer that counts its calls in training, and adds a little for each from the second on."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls.add_(1)
        return super().forward(x) * (1 + 0.5 * (self.calls - 1).clamp(0) / 10)


def drifting(settings: Points, seed: int) -> TensorTask:
    """The same with a layer that is another one at every step."""
    made = task(settings, seed)
    made._model = Drifting
    return made


def same_points(settings: Points, seed: int) -> TensorTask:
    """The same with points that do not follow from the seed; only the start of the model does."""
    made = task(settings, 0)
    made._seed = seed
    return made
