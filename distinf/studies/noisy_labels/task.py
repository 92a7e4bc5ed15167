"""The noisy-labels study as a task: cells of a dataset and a seed, each with its own fine-tuning.

Shapes: n rows of a batch, L its longest row in tokens, N training rows, Q queries.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distinf.digest import digest, sha256
from distinf.errors import InputError
from distinf.gram.settings import StageSettings, TrainSettings
from distinf.gram.task import Fit, Gang, Tell, no_one
from distinf.studies.language import together
from distinf.studies.language.identity import file_digest, model_digests, revision_of
from distinf.studies.language.known import KNOWN
from distinf.studies.language.peft_files import peft_files, told
from distinf.studies.language.sizes import shapes_of
from distinf.studies.language.tokens import padded, text_at
from distinf.studies.language.training import fit
from distinf.studies.noisy_labels.cells import (
    Arrays,
    Cell,
    cells_of,
    choose_rows,
    file_classes,
    prepare_cell,
)
from distinf.studies.noisy_labels.classes import PAIR
from distinf.studies.noisy_labels.deviations import WORDING, deviations
from distinf.studies.noisy_labels.glue import HUB, Load, commit_of
from distinf.studies.noisy_labels.known import paper_name
from distinf.studies.noisy_labels.models import load_model, meta_model
from distinf.studies.noisy_labels.outputs import cross_entropy, logits_of, mean_states
from distinf.studies.noisy_labels.published import layers, methods
from distinf.studies.noisy_labels.settings import NoisyLabelSettings
from distinf.studies.noisy_labels.sizes import row_lengths
from distinf.studies.noisy_labels.splits import PARTS, SETTING
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import Batch, Wording

LATER = ("classes", "group", "queries", "candidates")  # change nothing where they are not given
RECIPE = "gram"
QUERIES = "data.queries"  # the setting that `distinf query --queries FILE` gives
CANDIDATES = "data.candidates"  # and --candidates FILE


class NoisyCell:
    """A dataset with a seed: tokenised rows that are attached, a classifier and its fine-tuning.

    A batch: input_ids and attention_mask int64 [n, L], padded on the right to the longest of its
    rows; labels int64 [n], of training rows with their flips. `load`: see glue.py.
    """

    metric = "loss"
    reference: str | None = None
    axis: str | None = None

    def __init__(self, settings: NoisyLabelSettings, cell: Cell, load: Load | None = None) -> None:
        self.settings = settings
        self.cell = cell
        self.starting_seed = self.training_seed = cell.seed
        self.losses = {"cross-entropy": cross_entropy}
        self._load = load
        self._arrays: Mapping[str, np.ndarray] = {}

    @property
    def wording(self) -> Wording:
        return WORDING

    def deviations(self, settings: StageSettings, entries: Mapping[str, int]) -> Sequence[str]:
        """Where a run with these settings is not what Vitel and Chhabra or their code did."""
        name = paper_name(self.settings.model.name)
        return deviations(self.settings, settings, name, entries)

    @property
    def published(self) -> tuple[Sequence[Any], Sequence[Any]]:
        """The numbers of Vitel and Chhabra (methods, layers) for this model; empty for another."""
        name = paper_name(self.settings.model.name)
        return (methods(name), layers(name)) if name else ((), ())

    def prepare(self) -> Arrays:
        """The cell's rows as arrays, listed in cells.py."""
        return prepare_cell(self.settings, self.cell, self._load)

    def attach(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = {name: np.asarray(values) for name, values in arrays.items()}

    def rows(self, split: str) -> int:
        """Of train, evaluation (the queries) or test; those asked for until they are attached."""
        if split not in PARTS:
            raise ValueError(f"split {split!r} must be one of {', '.join(PARTS)}")
        if self._arrays:
            return len(self._arrays[f"{split}_labels"])
        planned: int = getattr(self.settings.data, SETTING[split])
        return planned

    def batch(self, split: str, ids: np.ndarray) -> Batch:
        rows = np.asarray(ids, dtype=np.int64)
        arrays = self._attached()
        tokens = arrays[f"{split}_tokens"], arrays[f"{split}_offsets"]
        input_ids, mask = padded(tokens, rows, int(arrays["pad"][0]))
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(arrays[f"{split}_labels"][rows].astype(np.int64)),
        }

    def lengths(self, split: str) -> np.ndarray:
        """int64 [rows]: tokens of each row."""
        return np.diff(self._attached()[f"{split}_offsets"])

    def check(self) -> None:
        """InputError for a file that cannot give these rows, before anything is begun."""
        if self.settings.data.candidates:
            raise InputError("data.candidates: is for distinf query RUN --candidates FILE")
        if self.settings.data.path:
            choose_rows(self.settings, self.cell)

    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the model's outputs; of the file until rows are attached."""
        if self._arrays:
            packed = self._arrays["classes"], self._arrays["class_offsets"]
            return tuple(text_at(packed, place) for place in range(len(packed[1]) - 1))
        data = self.settings.data
        if data.path:
            return file_classes(data, file_digest(data.path))
        return data.named_classes or PAIR

    def numbers(self, split: str) -> np.ndarray:
        """int64 [rows]: each row's number in its source."""
        return self._attached()[f"{split}_rows"]

    def flipped(self) -> np.ndarray | None:
        """bool [N]: the training labels that were made wrong; None where none are, since a file's
        own wrong labels are not known."""
        data = self.settings.data
        known = data.flips and not data.candidates
        return self._attached()["train_flipped"].astype(bool) if known else None

    def given(self) -> np.ndarray:
        """int64 [N]: the training rows' labels with their flips, as places among the classes."""
        return self._attached()["train_labels"]

    def probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [n, classes]."""
        return logits_of(model, batch).softmax(-1)

    @torch.no_grad()
    def embeddings(self, model: nn.Module, batch: Batch) -> Tensor:
        """float32 [n, width]: the mean of the base's last hidden states over a row's tokens.

        Adapters that were not trained add nothing, so that of `model()` it is the frozen base's.
        """
        return mean_states(model, batch)

    def words(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all rows, and where each row begins."""
        arrays = self._attached()
        return arrays[f"{split}_tokens"], arrays[f"{split}_offsets"]

    def labels(self, split: str) -> np.ndarray:
        """int64 [rows]: as given, of training rows with their flips."""
        return self._attached()[f"{split}_labels"].astype(np.int64)

    def describe_queries(self, ids: np.ndarray) -> Sequence[Mapping[str, Any]]:
        """Of queries: row, id, text, label."""
        return self._described("evaluation", ids)

    def describe(self, ids: np.ndarray) -> Sequence[Mapping[str, Any]]:
        """Of training rows: row (its number in the source), id, text, label; with flips also
        clean_label, the file's own."""
        found = self._described("train", ids)
        if self.flipped() is not None:
            clean, classes = self._attached()["train_clean"], self.classes()
            for row, each in zip(np.asarray(ids).tolist(), found, strict=True):
                each["clean_label"] = classes[clean[row]]
        return found

    def _described(self, part: str, ids: np.ndarray) -> list[dict[str, Any]]:
        arrays, classes = self._attached(), self.classes()
        texts = arrays[f"{part}_text"], arrays[f"{part}_text_offsets"]
        names = arrays[f"{part}_ids"], arrays[f"{part}_id_offsets"]
        return [
            {
                "row": int(arrays[f"{part}_rows"][row]),
                "id": text_at(names, row),
                "text": text_at(texts, row),
                "label": classes[arrays[f"{part}_labels"][row]],
            }
            for row in np.asarray(ids).tolist()
        ]

    def summary(self) -> dict[str, Any]:
        """What is worth saying of the rows: how many, cut, empty, shared between splits; tokens
        kept; the share of the largest class, and classes that a part lacks; half
        characters replaced."""
        arrays = self._attached()
        vocabulary = arrays.get("vocabulary")
        return {
            "rows": {part: self.rows(part) for part in PARTS},
            "flipped": int(arrays["train_flipped"].sum()),
            "truncated": dict(zip(PARTS, arrays["truncated"].tolist())),
            "texts_shared_with_train": dict(zip(PARTS[1:], arrays["shared_texts"].tolist())),
            "replaced": int(arrays["replaced"][0]),
            "vocabulary": None if vocabulary is None else len(vocabulary),
            "largest_class": {part: self._largest_class(part) for part in PARTS},
            "absent_classes": {part: self._absent_classes(part) for part in PARTS},
            "empty": {
                part: int((np.diff(arrays[f"{part}_text_offsets"]) == 0).sum()) for part in PARTS
            },
        }

    def _largest_class(self, part: str) -> float:
        """Its share of the part's rows, before any noise."""
        labels = self._attached()[f"{part}_clean"]
        return float(np.bincount(labels).max() / len(labels))

    def _absent_classes(self, part: str) -> list[str]:
        """Classes that training rows or others have, and this part has not."""
        arrays = self._attached()
        there = np.unique(np.concatenate([arrays[f"{each}_clean"] for each in PARTS]))
        missing = np.setdiff1d(there, arrays[f"{part}_clean"])
        return [self.classes()[place] for place in missing]

    def model(self) -> nn.Module:
        """Initial adapters and head, from the cell's seed alone; needs attached rows."""
        arrays = self._attached()
        return load_model(
            self.settings.model,
            self.settings.lora,
            self.starting_seed,
            int(arrays["pad"][0]),
            arrays.get("vocabulary"),
            len(self.classes()),
        )

    def skeleton(self) -> nn.Module:
        """The model's names and shapes on the meta device, from its configuration."""
        vocabulary = self._arrays.get("vocabulary")
        size = None if vocabulary is None else len(vocabulary)
        return meta_model(self.settings.model, self.settings.lora, size, len(self.classes()))

    def fit(
        self, kept: np.ndarray, recipe: TrainSettings, device: torch.device, tell: Tell = no_one
    ) -> Fit:
        """Fine-tune from the initial state on the training rows `kept` [n]."""
        lr = recipe.lr_of.get(self.cell.dataset, recipe.lr)
        return fit(self, kept, recipe, lr, device, tell, measured=PARTS[1:])

    def exported(self, weights: Mapping[str, np.ndarray]) -> Mapping[str, bytes]:
        """Adapters and head as PEFT saves them."""
        settings = self.settings
        return peft_files(weights, settings.lora, settings.model.name, "SEQ_CLS")

    def fit_together(
        self, kept: np.ndarray, recipe: TrainSettings, device: torch.device, tell: Tell, gang: Gang
    ) -> Fit:
        """As `fit`, by a gang with DeepSpeed."""
        lr = recipe.lr_of.get(self.cell.dataset, recipe.lr)
        return together.fit(self, kept, recipe, lr, device, tell, gang, measured=PARTS[1:])

    def reseeded(self, seed: int, own_start: bool = False) -> "NoisyCell":
        """The same rows; the order of rows and dropout are another training's, and, where asked
        for, adapters and head start otherwise."""
        other = copy.copy(self)
        other.training_seed = int(digest([self.cell.seed, "training", seed])[:7], 16)
        other.starting_seed = other.training_seed if own_start else self.starting_seed
        return other

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """loss, and correct: 1 where the class is right, else 0. The model's mode is kept."""
        training = model.training
        model.eval()
        try:
            logits = logits_of(model, batch)
        finally:
            model.train(training)
        return {
            "loss": nn.functional.cross_entropy(logits, batch["labels"], reduction="none"),
            "correct": (logits.argmax(-1) == batch["labels"]).float(),
        }

    def optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

    def digests(self) -> dict[str, str]:
        """Of this cell's data, of the model, and of the cell itself."""
        data = asdict(self.settings.data)
        del data["datasets"]
        data = {k: v for k, v in data.items() if v or k not in LATER}
        for name in ("queries", "candidates"):
            if name in data:
                data[name] = file_digest(data[name], f"data.{name}")
        commit = "" if self.settings.data.path else commit_of(data["revision"])
        content = file_digest(data.pop("path")) if self.settings.data.path else f"hub {commit}"
        if data.get("candidates") == content:
            raise InputError("data.candidates: is the very file that the training rows are from")
        model = model_digests(self.settings.model, KNOWN)
        own = {"seed": self.cell.seed, "dataset": self.cell.dataset, "content": content, **data}
        changed = {**told(self.settings.lora), **asdict(self.settings.model)}
        del changed["name"]
        found = {"data": _digest(own), "model": _digest({**model, **changed})}
        found |= {"data_revision": f"{HUB}@{commit}"} if commit else {}
        return found | revision_of(model)

    def shapes(self) -> Shapes:
        """From the model's configuration, and from a sample of a file's rows."""
        if self._arrays:
            lengths, assumption = self.lengths("train"), ""
        else:
            lengths, assumption = row_lengths(self.settings)
        found = shapes_of(self.skeleton(), lengths, self.settings.model, PARTS)
        return replace(found, assumption=assumption)

    def _attached(self) -> Mapping[str, np.ndarray]:
        if not self._arrays:
            raise ValueError(f"no rows attached to {self.cell.name}; prepare and attach them first")
        return self._arrays


class NoisyLabels(NoisyCell):
    """All cells; by itself it stands for the first one."""

    def __init__(self, settings: NoisyLabelSettings, seed: int, load: Load | None = None) -> None:
        self._cells = cells_of(settings, seed)
        super().__init__(settings, self._cells[0], load)

    def cells(self) -> dict[str, NoisyCell]:
        """Each by its name, such as "qnli-3"."""
        return {cell.name: NoisyCell(self.settings, cell, self._load) for cell in self._cells}


def task(settings: NoisyLabelSettings, seed: int) -> NoisyLabels:
    """The factory that a configuration names: `distinf.studies.noisy_labels.task:task`."""
    return NoisyLabels(settings, seed)


def _digest(content: Mapping[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())
