"""Supervised fine-tuning of a causal language model as a task: which of its rows made an output
better or worse?

The loss of a row is the mean over its scored tokens of minus their log-probability (Matelsky, Ungar
and Kording, Eq. 7), or the sum. Shapes: n rows of a batch, L its longest row in tokens.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distinf.digest import digest, sha256
from distinf.errors import InputError
from distinf.gram.settings import TrainSettings
from distinf.gram.task import Fit, Gang, Tell, no_one
from distinf.numerics.ekfac import sampled_labels
from distinf.numerics.layer_gradients import wide
from distinf.studies.language import together
from distinf.studies.language.adapters import adapt, initialise
from distinf.studies.language.causal import LETTERS, Assumed, CausalModel
from distinf.studies.language.identity import file_digest, model_digests, revision_of
from distinf.studies.language.known import KNOWN
from distinf.studies.language.peft_files import begin_from, peft_files, told
from distinf.studies.language.sizes import shapes_of
from distinf.studies.language.training import fit
from distinf.studies.sft.rows import Encoded, encoded, rows_of_file
from distinf.studies.sft.settings import SftSettings
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import Batch, Wording

RECIPE = "gram"
QUERIES = "data.queries"  # the setting that `distinf query --queries FILE` gives
CANDIDATES = "data.candidates"  # and --candidates FILE
UNSCORED = -100
WORDING = Wording(
    question="Which training rows made these outputs better or worse?", noun="rows", metric="loss"
)


def task(settings: SftSettings, seed: int) -> "Scored":
    """The factory that a configuration names: `distinf.studies.sft.task:task`."""
    return (Tuned if settings.fine_tune else Scored)(settings, seed)


class Scored:
    """Rows of two files, and a model that is scored as it is.

    A batch: input_ids, attention_mask and labels int64 [n, L], padded on the right; a label is the
    token at its own place, or -100 where it is not scored.
    """

    metric = "loss"
    reference: str | None = None
    axis: str | None = None
    wording = WORDING

    def __init__(self, settings: SftSettings, seed: int) -> None:
        self.settings, data = settings, settings.data
        for name in ("path", "queries"):
            if not getattr(data, name):
                told = "the training rows" if name == "path" else "the outputs that are asked about"
                way = " (--query FILE)" if name == "queries" else ""
                raise InputError(f"data.{name}: name the file of {told}{way}")
        self.starting_seed = self.training_seed = seed
        self.language = CausalModel(settings.model)
        self.losses = {"tokens": self.loss}
        train = "candidates" if data.candidates else "path"
        self._files = {
            split: (getattr(data, name), f"data.{name}")
            for split, name in (("train", train), ("evaluation", "queries"))
        }
        self._encoded: dict[str, Encoded] = {}

    @property
    def lacks_model(self) -> bool:
        """Its tokenizer is not here: the run can be planned, no more."""
        return isinstance(self.language.tokenizer, Assumed)

    def _rows(self, split: str) -> Encoded:
        if split not in self._encoded:
            path, setting = self._files[split]
            content = file_digest(path, setting)
            self._encoded[split] = encoded(
                self.language, self.settings.model, path, setting, content
            )
        return self._encoded[split]

    def rows(self, split: str) -> int:
        path, setting = self._files[split]
        form, columns = rows_of_file(path, setting, file_digest(path, setting))
        return len(columns[form[0]])

    def batch(self, split: str, ids: np.ndarray) -> Batch:
        rows = self._rows(split)
        chosen = np.asarray(ids, dtype=np.int64).tolist()
        longest = max((len(rows.tokens[row]) for row in chosen), default=0)
        shape = len(chosen), longest
        found = {
            "input_ids": torch.zeros(shape, dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, UNSCORED),
        }
        for place, row in enumerate(chosen):
            length = len(rows.tokens[row])
            found["input_ids"][place, :length] = torch.from_numpy(rows.tokens[row])
            found["attention_mask"][place, :length] = 1
            found["labels"][place, :length] = torch.from_numpy(rows.labels[row])
        return found

    def lengths(self, split: str) -> np.ndarray:
        """int64 [rows]: tokens of each row."""
        return np.array([len(tokens) for tokens in self._rows(split).tokens], dtype=np.int64)

    def numbers(self, split: str) -> np.ndarray:
        """int64 [rows]: from 0, as in the file."""
        return np.arange(self.rows(split))

    def describe(self, ids: np.ndarray) -> Sequence[Mapping[str, Any]]:
        """Of training rows: row, text, tokens scored, and the file's further columns."""
        return self._described("train", ids)

    def describe_queries(self, ids: np.ndarray) -> Sequence[Mapping[str, Any]]:
        """As `describe`."""
        return self._described("evaluation", ids)

    def _described(self, split: str, ids: np.ndarray) -> list[dict[str, Any]]:
        rows = self._rows(split)
        return [
            {"row": row, "text": rows.texts[row], "tokens": int((rows.labels[row] >= 0).sum())}
            | {name: values[row] for name, values in rows.notes.items() if name != "row"}
            for row in np.asarray(ids).tolist()
        ]

    def summary(self) -> dict[str, Any]:
        """How many rows were cut, and how many queries are training rows too."""
        texts = set(self._rows("train").texts)
        shared = sum(text in texts for text in self._rows("evaluation").texts)
        cut = {split: self._rows(split).truncated for split in self._files}
        return {"truncated": cut, "texts_shared_with_train": {"evaluation": shared}}

    def model(self) -> nn.Module:
        """The pretrained weights; new adapters from the seed alone, if they have none."""
        return self._adapted(self.language.model(frozen=self.settings.trained == "lora"))

    def skeleton(self) -> nn.Module:
        """The model's names and shapes on the meta device, from its configuration."""
        return self._skeleton

    @cached_property
    def _skeleton(self) -> nn.Module:
        return self._adapted(self.language.skeleton())

    def _adapted(self, model: nn.Module) -> nn.Module:
        settings = self.settings
        if settings.trained == "lora":
            adapt(model, settings.lora, getattr(torch, settings.model.dtype))
            if next(model.parameters()).device.type != "meta":
                initialise(model, self.starting_seed, "sft/weights")
                if settings.lora.adapter:
                    begin_from(model, settings.lora, settings.model.name)
        return model.eval()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n]: Eq. 7."""
        return self._of_rows(*token_losses(model, batch))

    def _of_rows(self, losses: Tensor, scored: Tensor) -> Tensor:
        total = losses.sum(1)
        return total / scored.sum(1) if self.settings.loss == "mean" else total

    def sampled_loss(self, model: nn.Module, batch: Batch, rows: np.ndarray, seed: int) -> Tensor:
        """[n]: the same, each scored token drawn from what the model says there of the row's own
        tokens before it (Grosse et al. 2023)."""
        logits, labels = _foretold(model, batch)
        drawn = sampled_labels(logits, torch.from_numpy(rows), seed)
        labels = torch.where(labels == UNSCORED, UNSCORED, drawn.to(labels.device))
        return self._of_rows(*_losses(logits, labels))

    def parts(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n, L - 1]: what each token adds to its row's loss; NaN where it is not scored."""
        losses, scored = token_losses(model, batch)
        if self.settings.loss == "mean":
            losses = losses / scored.sum(1, keepdim=True)
        return torch.where(scored, losses, torch.nan)

    def tokens(self, split: str, row: int) -> list[str]:
        """Of a row's `parts`: every token but the first, as a text of its own."""
        ids, tokenizer = self._rows(split).tokens[row][1:].tolist(), self.language.tokenizer
        return [tokenizer.decode([token]) for token in ids]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """loss. The model's mode is kept."""
        training = model.training
        model.eval()
        try:
            return {"loss": self.loss(model, batch)}
        finally:
            model.train(training)

    def optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

    @cached_property
    def _digests(self) -> dict[str, str]:
        settings = asdict(self.settings)
        files = {setting: file_digest(path, setting) for path, setting in self._files.values()}
        del settings["data"], settings["model"]["name"]
        settings["lora"] = told(self.settings.lora)
        found = model_digests(self.settings.model, KNOWN)
        model = {**found, **settings, "seed": self.starting_seed}
        return {
            name: sha256(json.dumps(content, sort_keys=True).encode())
            for name, content in {"data": files, "model": model}.items()
        } | revision_of(found)

    def digests(self) -> dict[str, str]:
        """Of the files and of the model."""
        return self._digests

    def shapes(self) -> Shapes:
        """From the model's configuration and the rows' lengths."""
        vocabulary = self.language.config.get_text_config().vocab_size
        found = shapes_of(
            self.skeleton(), self.lengths("train"), self.settings.model, vocabulary=vocabulary
        )
        told = f"no tokenizer is here: texts are assumed to have a token for {LETTERS} letters"
        return replace(found, assumption=told if self.lacks_model else "")


class Tuned(Scored):
    """The same rows; the model is fine-tuned on them, and again on fewer."""

    def fit(
        self, kept: np.ndarray, recipe: TrainSettings, device: torch.device, tell: Tell = no_one
    ) -> Fit:
        """Fine-tune from the initial state on the training rows `kept` [n]."""
        _refuse_accuracy(recipe)
        return fit(self, kept, recipe, recipe.lr, device, tell)

    def exported(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
        """Adapters as PEFT saves them; of a model that is trained whole, its weights."""
        settings = self.settings
        lora = settings.lora if settings.trained == "lora" else None
        return peft_files(weights, lora, settings.model.name, "CAUSAL_LM")

    def fit_together(
        self, kept: np.ndarray, recipe: TrainSettings, device: torch.device, tell: Tell, gang: Gang
    ) -> Fit:
        """As `fit`, by a gang with DeepSpeed."""
        _refuse_accuracy(recipe)
        return together.fit(self, kept, recipe, recipe.lr, device, tell, gang)

    def reseeded(self, seed: int, own_start: bool = False) -> "Tuned":
        """The same rows in another order, with other dropout and, where asked for, other adapters
        to start from."""
        other = copy.copy(self)
        other.losses = {"tokens": other.loss}
        other.training_seed = int(digest([self.training_seed, "training", seed])[:7], 16)
        other.starting_seed = other.training_seed if own_start else self.starting_seed
        return other


def _refuse_accuracy(recipe: TrainSettings) -> None:
    if recipe.selected_epoch == "best_query_accuracy":
        raise InputError(
            "train.selected_epoch: best_query_accuracy is for classes; take least_query_loss or "
            "last"
        )


def token_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """([n, L - 1] minus log-probability of every token but the first, 0 where it is not scored;
    which are scored)."""
    return _losses(*_foretold(model, batch))


def _foretold(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(logits [n, L - 1, V] of every token but the first, their labels). Causal models look at no
    padding on the right, so there is no mask."""
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    return wide(logits), batch["labels"][:, 1:]


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    losses = nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=UNSCORED, reduction="none"
    )
    return losses, labels != UNSCORED
