"""Fine-tuning adapters and head with the Hugging Face Trainer, in memory and without a word.

The kept weights are those of one epoch, which the queries choose (Vitel and Chhabra, app. A: the
least loss).
"""

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.gram.settings import Epoch, TrainSettings
from distinf.gram.task import METRICS, Fit, Tell, no_one, selected_epoch
from distinf.numerics.precision import precision
from distinf.studies.noisy_labels.models import trained_weights

Collate = Callable[[Sequence[int]], dict[str, Tensor]]  # row numbers -> a padded batch
PIECE = 8
ROWS = "row_numbers"  # in a batch of training rows
MEASURED = {"query": "evaluation", "test": "test"}


@dataclass(frozen=True)
class Rows:
    """Row numbers of a split, and how a batch is made of them."""

    ids: np.ndarray
    collate: Collate


def fine_tune(
    model: nn.Module,
    rows: Mapping[str, Rows],
    recipe: TrainSettings,
    lr: float,
    seed: int,
    tell: Tell = no_one,
) -> Fit:
    """Train `model` where it lies, in place; `rows` by split: train, evaluation and test.

    AdamW. InputError names the epoch in which the loss is no longer finite. tell(share of the steps
    done) is called after each.
    """
    device = next(model.parameters()).device
    steps = math.ceil(len(rows["train"].ids) / recipe.batch_size) * recipe.epochs
    watch = _watch(tell, recipe.selected_epoch)
    seen = RowLosses(rows["train"].ids, recipe.epochs)
    with tempfile.TemporaryDirectory() as folder, _own_randomness(device), _on(device):
        arguments = _arguments(recipe, lr, seed, steps, folder, device)
        trainer = _trainer(device, seen)(
            model=model,
            args=arguments,
            data_collator=_collate,
            train_dataset=_Tagged(_numbered(rows["train"])),
            eval_dataset={name: _Tagged(rows[split]) for name, split in MEASURED.items()},
            compute_metrics=_metrics,
            callbacks=[watch],
        )
        _be_quiet(trainer)
        with precision("tf32" if recipe.precision == "tf32" else "float32", device):
            trainer.train()
    return Fit(watch.history, watch.best, watch.weights, seen.losses)


class RowLosses:
    """Each training row's loss in the step of each epoch that took it, before that step.

    losses: fp32 [epochs, rows], rows as in `ids` (ascending); NaN where none was noted.
    """

    def __init__(self, ids: np.ndarray, epochs: int) -> None:
        self._ids, self._seen = ids, np.zeros(len(ids), dtype=np.int64)
        self.losses = np.full((epochs, len(ids)), np.nan, dtype=np.float32)

    def note(self, rows: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Of a batch or a piece of one: row numbers [n], logits [n, classes], labels [n]."""
        found = nn.functional.cross_entropy(logits.detach().float(), labels, reduction="none")
        places = np.searchsorted(self._ids, rows.cpu().numpy())
        self.losses[self._seen[places], places] = found.cpu().numpy()
        self._seen[places] += 1


def _numbered(rows: Rows) -> Rows:
    """Batches that have their rows' numbers in them."""
    return Rows(rows.ids, lambda ids: {**rows.collate(ids), ROWS: torch.tensor(ids)})


class _Tagged(torch.utils.data.Dataset):
    """Row numbers with their collate, so that one collator serves all splits."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows.ids)

    def __getitem__(self, position: int) -> tuple[Collate, int]:
        return self.rows.collate, int(self.rows.ids[position])


def _collate(samples: Sequence[tuple[Collate, int]]) -> dict[str, Tensor]:
    return samples[0][0]([row for _, row in samples])


def _metrics(prediction: Any) -> dict[str, float]:
    """Mean cross-entropy over all rows alike, whatever the batches; and accuracy."""
    logits = torch.from_numpy(np.asarray(prediction.predictions, dtype=np.float64))
    labels = torch.from_numpy(np.asarray(prediction.label_ids))
    loss = nn.functional.cross_entropy(logits, labels).item()
    return {"mean": loss, "accuracy": (logits.argmax(-1) == labels).double().mean().item()}


def _trainer(device: torch.device, seen: RowLosses) -> Any:
    """The Trainer, noting every training row's loss; on a CPU, one that computes a batch in pieces
    of rows of like length.

    The gradient is that of the batch's mean loss all the same, and less of it is padding.
    """
    from transformers import Trainer

    class Noting(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not model.training:
                return super().compute_loss(model, inputs, *args, **kwargs)
            numbers = inputs.pop(ROWS)
            loss, found = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
            seen.note(numbers, found.logits, inputs["labels"])
            return loss

    class Pieces(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not model.training:
                return super().compute_loss(model, inputs, *args, **kwargs)
            return sum(
                self._piece_loss(model, piece) * (len(piece["labels"]) / len(inputs["labels"]))
                for piece in pieces(inputs)
            )

        def _piece_loss(self, model: Any, piece: dict[str, Tensor]) -> Any:
            numbers, found = piece.pop(ROWS), model(**piece)
            seen.note(numbers, found.logits, piece["labels"])
            return found.loss

    return Pieces if device.type == "cpu" else Noting


def pieces(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The batch's rows by length, PIECE at a time, each piece padded to its own longest row."""
    lengths = batch["attention_mask"].sum(1)
    for rows in lengths.argsort(stable=True).split(PIECE):
        longest = int(lengths[rows[-1]])
        piece = {name: values[rows] for name, values in batch.items()}
        yield {n: v[:, :longest] if v.dim() == 2 else v for n, v in piece.items()}


def _watch(tell: Tell, rule: Epoch) -> Any:
    """A callback that keeps the history, and the weights of the selected epoch."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.history: dict[str, list[float]] = {name: [] for name in METRICS}
            self.best = 0
            self.weights: dict[str, np.ndarray] = {}

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell(state.global_step / state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self._note("train_loss", logs["loss"])

        def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            metrics = given["metrics"]
            name = next(name for name in MEASURED if f"eval_{name}_mean" in metrics)
            self._note(f"{name}_loss", metrics[f"eval_{name}_mean"])
            self._note(f"{name}_accuracy", metrics[f"eval_{name}_accuracy"])
            last = len(self.history[f"{name}_loss"]) - 1
            if name == "query" and selected_epoch(self.history, rule) == last:
                self.best, self.weights = last, trained_weights(given["model"])

        def _note(self, name: str, value: float) -> None:
            self.history[name].append(float(value))
            if not math.isfinite(value):
                epoch = len(self.history[name])
                raise InputError(
                    f"train: the {name.replace('_', ' ')} is {value} in epoch {epoch}; lower "
                    "train.lr (or train.lr_of for this dataset), or raise train.warmup"
                )

    return Watch()


def _arguments(
    recipe: TrainSettings, lr: float, seed: int, steps: int, folder: str, device: torch.device
) -> Any:
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.evaluation_batch,
        learning_rate=lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        lr_scheduler_type=_schedule(recipe),
        warmup_steps=math.ceil(recipe.warmup * steps),
        optim="adamw_torch",
        bf16=recipe.precision == "bfloat16",
        seed=seed,
        data_seed=seed,
        eval_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # never DataParallel over what else is visible
    return arguments


def _schedule(recipe: TrainSettings) -> str:
    return "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule


def _be_quiet(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """The Trainer seeds every generator there is; they are as before afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """This CUDA device is the one that the Trainer takes."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield
