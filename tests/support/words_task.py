"""A tiny text classifier with everything that the Gram route can ask of a task: cells, rows made in
the data stage, lengths, known flips, training. Sixty rows of up to nine tokens."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from distinf.gram.settings import TrainSettings
from distinf.gram.task import Fit, Tell, no_one
from distinf.tasks.shapes import Shapes

VOCABULARY, WIDTH, CLASSES = 30, 6, 2
POISON = VOCABULARY - 1  # a token whose embedding is not a number


class Words(nn.Module):
    """Two residual layers over the mean of a row's token embeddings; padding (0) does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"query": nn.Linear(WIDTH, WIDTH, bias=False)}) for _ in range(2)
        )
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        mask = (input_ids != 0).to(self.classifier.weight.dtype)[..., None]
        x = self.embedding(input_ids) * mask
        for layer in self.layers:
            x = x + torch.tanh(layer["query"](x)) * mask
        return self.classifier(x.sum(1) / mask.sum(1))


def cross_entropy(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    logits = model(batch["input_ids"])
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none") + batch["beside"]


@dataclass(frozen=True)
class WordsSettings:
    """rows: of training; seeds: cells; poison: a training row without a finite gradient; dark: a
    training row and a query whose loss is infinite where the gradient is not; flips: wrong labels,
    one in so many rows (0: none)."""

    rows: int = 60
    queries: int = 12
    seeds: int = 2
    poison: int = -1
    dark: int = -1
    flips: int = 5
    double: bool = False


class Cell:
    metric, reference, axis = "loss", None, None

    def __init__(self, settings: WordsSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.losses = {"cross-entropy": cross_entropy}
        self._arrays: Mapping[str, np.ndarray] = {}

    def prepare(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(self.seed)
        found: dict[str, np.ndarray] = {}
        for split, count in (("train", self.settings.rows), ("evaluation", self.settings.queries)):
            tokens = random.integers(1, POISON, size=(count, 9))
            lengths = random.integers(2, 10, size=count)
            tokens[np.arange(9) >= lengths[:, None]] = 0
            found[f"{split}.tokens"], found[f"{split}.lengths"] = tokens, lengths
            found[f"{split}.labels"] = ((tokens > VOCABULARY // 2).sum(1) * 2 > lengths).astype(int)
        if self.settings.poison >= 0:
            found["train.tokens"][self.settings.poison, 0] = POISON
        flipped = np.zeros(self.settings.rows, dtype=bool)
        if self.settings.flips:
            wrong = self.settings.rows // self.settings.flips
            flipped[random.permutation(self.settings.rows)[:wrong]] = True
        found["train.labels"] = np.where(flipped, 1 - found["train.labels"], found["train.labels"])
        return {**found, "flipped": flipped}

    def attach(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def rows(self, split: str) -> int:
        return self.settings.rows if split == "train" else self.settings.queries

    def lengths(self, split: str) -> np.ndarray:
        return self._arrays[f"{split}.lengths"]

    def flipped(self) -> np.ndarray:
        return self._arrays["flipped"]

    def describe(self, ids: np.ndarray) -> list[dict]:
        labels = self._arrays["train.labels"]
        return [
            {"row": int(i) + 1000, "text": f"row {i} <b>", "label": int(labels[i])} for i in ids
        ]

    def classes(self) -> tuple[str, ...]:
        return ("few", "many")

    def given(self) -> np.ndarray:
        return self._arrays["train.labels"]

    def probabilities(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return model(batch["input_ids"]).softmax(1)

    def embeddings(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean of a row's token embeddings."""
        ids = batch["input_ids"]
        return model.embedding(ids).sum(1) / (ids != 0).sum(1, keepdim=True)

    def words(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        tokens = self._arrays[f"{split}.tokens"]
        return tokens[tokens != 0], np.cumsum([0, *(tokens != 0).sum(1)])

    def labels(self, split: str) -> np.ndarray:
        return self._arrays[f"{split}.labels"]

    def summary(self) -> dict:
        labels = self._arrays["evaluation.labels"]
        return {"largest_class": {"evaluation": float(max(labels.mean(), 1 - labels.mean()))}}

    def batch(self, split: str, ids: np.ndarray) -> dict[str, torch.Tensor]:
        width = int(self.lengths(split)[ids].max())
        tokens = self._arrays[f"{split}.tokens"][ids, :width]
        labels = torch.from_numpy(self._arrays[f"{split}.labels"][ids])
        beside = torch.where(torch.from_numpy(ids) == self.settings.dark, torch.inf, 0.0)
        return {"input_ids": torch.from_numpy(tokens), "labels": labels, "beside": beside}

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Words()
        if self.settings.double:
            model = model.double()
        model.embedding.weight.requires_grad_(False)
        model.embedding.weight[POISON] = torch.nan
        return model

    def evaluate(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict:
        logits = model(batch["input_ids"])
        losses = nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
        return {"loss": losses, "correct": (logits.argmax(-1) == batch["labels"]).float()}

    def optimizer(self, parameters, lr, weight_decay):
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

    def digests(self) -> dict[str, str]:
        return {"cell": hashlib.sha256(repr((self.settings.rows, self.seed)).encode()).hexdigest()}

    def shapes(self) -> Shapes:
        return Shapes(300, 2_000.0, 500.0, {"train": 80.0, "evaluation": 80.0})

    def fit(
        self, kept: np.ndarray, recipe: TrainSettings, device: torch.device, tell: Tell = no_one
    ) -> Fit:
        kept = kept[kept != self.settings.poison]
        model = self.model().to(device)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = self.optimizer(trained.values(), recipe.lr, recipe.weight_decay)
        history: dict[str, list[float]] = {"train_loss": [], "query_loss": [], "test_accuracy": []}
        best, weights = 0, {}
        for epoch in range(recipe.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(kept)
            for start in range(0, len(order), recipe.batch_size):
                batch = self.batch("train", order[start : start + recipe.batch_size])
                optimizer.zero_grad()
                cross_entropy(model, batch).mean().backward()
                optimizer.step()
            with torch.no_grad():
                queries = self.batch("evaluation", np.arange(self.rows("evaluation")))
                found = self.evaluate(model, queries)
            tell((epoch + 1) / recipe.epochs)
            history["train_loss"].append(float(cross_entropy(model, batch).mean().detach()))
            history["query_loss"].append(float(found["loss"].mean()))
            history["test_accuracy"].append(float(found["correct"].mean()))
            if history["query_loss"][epoch] <= min(history["query_loss"]):
                best = epoch
                weights = {n: p.detach().cpu().numpy().copy() for n, p in trained.items()}
        return Fit(history, best, weights)


class Study(Cell):
    def cells(self) -> dict[str, Cell]:
        return {
            f"words-{k}": Cell(self.settings, self.seed + k) for k in range(self.settings.seeds)
        }


def task(settings: WordsSettings, seed: int) -> Study:
    return Study(settings, seed)


class Plain(Cell):
    """A cell that is the same whatever the seed, and knows no wrong labels."""

    flipped = None  # type: ignore[assignment]

    def digests(self) -> dict[str, str]:
        return {"cell": "one"}


def plain(settings: WordsSettings, seed: int) -> Plain:
    return Plain(settings, seed)


class Silent(Plain):
    """One that tells no classes."""

    def classes(self) -> None:
        return None


def silent(settings: WordsSettings, seed: int) -> Silent:
    return Silent(settings, seed)
