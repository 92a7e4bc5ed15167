"""Fine-tuning with the Hugging Face Trainer, in memory and without a word.

The kept weights are those of one epoch, which the queries choose (Vitel and Chhabra, app. A: the
least loss).
"""

import importlib.util
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError, install_command
from distinf.gram.settings import Epoch, TrainSettings
from distinf.gram.task import FIRST, Fit, Tell, no_one, selected_epoch
from distinf.microbatch import each_part, from_the_start, rows_at_once
from distinf.numerics.checkpointing import recompute_blocks
from distinf.numerics.precision import precision
from distinf.studies.language.adapters import trained_weights
from distinf.studies.language.pretrained import on_device
from distinf.studies.language.trainer_arguments import trainer_arguments
from distinf.tasks.task import Batch, PerSampleLoss

Collate = Callable[[Sequence[int]], dict[str, Tensor]]  # row numbers -> a padded batch
PIECE = 8
ROWS = "row_numbers"  # in a batch of training rows
MEASURED = {"query": "evaluation", "test": "test"}
COLUMNS = ("loss", "correct")  # of `evaluate`: their means are the loss and the accuracy


class Tunable(Protocol):
    """What is asked of a task that is fine-tuned here; batches have an attention_mask."""

    training_seed: int

    @property
    def losses(self) -> Mapping[str, PerSampleLoss]: ...
    def model(self) -> nn.Module: ...
    def batch(self, split: str, ids: np.ndarray) -> Batch: ...
    def lengths(self, split: str) -> np.ndarray: ...
    def numbers(self, split: str) -> np.ndarray: ...
    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Rows:
    """Row numbers of a split, and how a batch is made of them."""

    ids: np.ndarray
    collate: Collate


def fit(
    task: Tunable,
    kept: np.ndarray,
    recipe: TrainSettings,
    lr: float,
    device: torch.device,
    tell: Tell = no_one,
    measured: Sequence[str] = ("evaluation",),
) -> Fit:
    """Fine-tune the task's model on its training rows `kept` [n], its first loss, by AdamW.

    measured: splits that are evaluated after each epoch. InputError names the epoch in which the
    loss is no longer finite, or rows without a finite one before any training. tell(share of the
    steps done) is called after each.
    """
    if recipe.optimizer != "adamw" and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"train.optimizer: {recipe.optimizer} needs bitsandbytes: {install_command('llm')}"
        )
    model = on_device(task.model(), device)
    if recipe.checkpointing:
        recompute_blocks(model)
    # Queries and tests by length: less padding, and their means are the same in any order.
    ids = {split: np.argsort(task.lengths(split), kind="stable") for split in measured}
    ids["train"] = np.asarray(kept, dtype=np.int64)
    rows = {split: Rows(found, partial(task.batch, split)) for split, found in ids.items()}
    try:
        return _fine_tune(task, model, rows, recipe, lr, tell)
    except InputError:
        _refuse_rows_without_a_loss(task, ids["train"], recipe, device)
        raise


def _fine_tune(
    task: Tunable,
    model: nn.Module,
    rows: Mapping[str, Rows],
    recipe: TrainSettings,
    lr: float,
    tell: Tell,
) -> Fit:
    device = next(model.parameters()).device
    steps = math.ceil(len(rows["train"].ids) / recipe.batch_size) * recipe.epochs
    watch = _watch(tell, recipe.selected_epoch)
    seen = RowLosses(rows["train"].ids, recipe.epochs)
    with tempfile.TemporaryDirectory() as folder, own_randomness(device), _on(device):
        arguments = trainer_arguments(recipe, lr, task.training_seed, steps, folder, device)
        trainer = _trainer(task, seen, recipe.accumulation)(
            model=model,
            args=arguments,
            data_collator=_collate,
            train_dataset=_Tagged(_numbered(rows["train"])),
            eval_dataset={n: _Tagged(rows[s]) for n, s in MEASURED.items() if s in rows},
            compute_metrics=_metrics,
            callbacks=[watch],
        )
        _be_quiet(trainer)
        before = _loss_before(trainer, rows["train"])
        with precision("tf32" if recipe.precision == "tf32" else "float32", device):
            trainer.train()
    return Fit(watch.history, watch.best, watch.weights, seen.losses, before)


def _loss_before(trainer: Any, rows: Rows) -> float:
    """Of the first rows; random numbers go on as if it were not measured."""
    device, first = trainer.args.device, _Tagged(Rows(rows.ids[:FIRST], rows.collate))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        found = trainer.evaluate(first, metric_key_prefix="eval_before")
    return float(found["eval_before_mean"])


@torch.no_grad()
def _refuse_rows_without_a_loss(
    task: Tunable, kept: np.ndarray, recipe: TrainSettings, device: torch.device
) -> None:
    """InputError with the numbers of rows whose loss is not finite before any training."""
    model, bad = on_device(task.model(), device).eval(), []
    loss = next(iter(task.losses.values()))
    for ids in np.array_split(kept, math.ceil(len(kept) / recipe.evaluation_batch)):
        batch = {name: values.to(device) for name, values in task.batch("train", ids).items()}
        bad += ids[~torch.isfinite(loss(model, batch)).cpu().numpy()].tolist()
    if bad:
        numbers = task.numbers("train")[bad].tolist()
        raise InputError(
            f"train: the loss of {len(bad)} rows is not finite before any training (rows "
            f"{str(numbers[:5])[1:-1]}); leave them out"
        )


class RowLosses:
    """Each training row's loss in the step of each epoch that took it, before that step.

    losses: fp32 [epochs, rows], rows as in `ids` (ascending); NaN where none was noted.
    """

    def __init__(self, ids: np.ndarray, epochs: int) -> None:
        self._ids, self._seen = ids, np.zeros(len(ids), dtype=np.int64)
        self.losses = np.full((epochs, len(ids)), np.nan, dtype=np.float32)

    def note(self, rows: Tensor, losses: Tensor) -> None:
        """Of a batch or a piece of one: row numbers [n], losses [n]."""
        places = np.searchsorted(self._ids, rows.cpu().numpy())
        self.losses[self._seen[places], places] = losses.detach().float().cpu().numpy()
        self._seen[places] += 1

    def resume(self, losses: np.ndarray) -> None:
        """With what another one had noted."""
        self.losses, self._seen = losses.copy(), np.isfinite(losses).sum(0)


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
    """Mean loss, and accuracy where there is one, over all rows alike, whatever the batches."""
    means = np.asarray(prediction.predictions, dtype=np.float64).mean(0)
    return dict(zip(("mean", "accuracy"), means.tolist()))


def _trainer(task: Tunable, seen: RowLosses, accumulation: int) -> Any:
    """The Trainer by the task's own losses, noting every training row's; on a CPU it computes a
    batch in pieces of rows of like length: less padding, and the gradient of its mean loss."""
    from transformers import Trainer

    loss = next(iter(task.losses.values()))

    class ByRows(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            """The batch's mean loss, its gradient in .grad: of fewer rows at a time, one backward
            pass each, where that is set or memory runs out."""
            self._whole = len(inputs[ROWS])
            self._noted: list[tuple[Tensor, Tensor]]

            def step() -> Tensor:
                self._noted, fit = [], rows_at_once("train.batch_size", self._whole)
                rows = min(fit, math.ceil(self._whole / accumulation))
                if rows == self._whole:
                    return super(ByRows, self).training_step(model, dict(inputs), *args, **kwargs)
                model.zero_grad()
                parts = pieces(inputs, rows)
                each = [super(ByRows, self).training_step(model, part) for part in parts]
                return torch.stack(each).sum()

            total = from_the_start(step, "train.batch_size")
            for numbers, losses in self._noted:
                seen.note(numbers, losses)
            return total

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            on_cpu = inputs[ROWS].device.type == "cpu"
            return sum(
                self._summed(model, piece) / self._whole
                for piece in (pieces(inputs) if on_cpu else [inputs])
            )

        def _summed(self, model: Any, piece: dict[str, Tensor]) -> Tensor:
            numbers = piece.pop(ROWS)
            losses = loss(model, piece)
            self._noted.append((numbers, losses.detach()))
            return losses.sum()

        def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            """(mean loss, columns [n, 1 or 2], a column in place of labels)."""
            found = _evaluated(task, model, self._prepare_inputs(inputs))
            return found[:, 0].mean(), found, found[:, 0]

    return ByRows


@torch.no_grad()
def _evaluated(task: Tunable, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """[n, 1 or 2]: the task's COLUMNS of a batch, of fewer rows at a time where memory runs out."""

    def columns(rows: range) -> Tensor:
        mine = {name: values[rows.start : rows.stop] for name, values in inputs.items()}
        found = task.evaluate(model, mine)
        return torch.stack([found[name].double() for name in COLUMNS if name in found], 1)

    every = range(len(inputs["attention_mask"]))
    return torch.cat([part for _, part in each_part(every, columns, "train.evaluation_batch")])


def pieces(batch: Mapping[str, Tensor], size: int = PIECE) -> Iterator[dict[str, Tensor]]:
    """The batch's rows by length, `size` at a time, each piece padded to its own longest row."""
    lengths = batch["attention_mask"].sum(1)
    for rows in lengths.argsort(stable=True).split(size):
        longest = int(lengths[rows[-1]])
        piece = {name: values[rows] for name, values in batch.items()}
        yield {n: v[:, :longest] if v.dim() == 2 else v for n, v in piece.items()}


def _watch(tell: Tell, rule: Epoch) -> Any:
    """A callback that keeps the history, and the weights of the selected epoch."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.history: dict[str, list[float]] = {}
            self.best = 0
            self.weights: dict[str, np.ndarray] = {}

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell(state.global_step / state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self._note("train_loss", logs["loss"])

        def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            metrics = given["metrics"]
            name = next((name for name in MEASURED if f"eval_{name}_mean" in metrics), None)
            if name is None:
                return  # before any training
            self._note(f"{name}_loss", metrics[f"eval_{name}_mean"])
            if f"eval_{name}_accuracy" in metrics:
                self._note(f"{name}_accuracy", metrics[f"eval_{name}_accuracy"])
            last = len(self.history[f"{name}_loss"]) - 1
            if name == "query" and selected_epoch(self.history, rule) == last:
                self.best, self.weights = last, trained_weights(given["model"])

        def _note(self, name: str, value: float) -> None:
            self.history.setdefault(name, []).append(float(value))
            if not math.isfinite(value):
                raise not_finite(name, value, len(self.history[name]))

    return Watch()


def not_finite(name: str, value: float, epoch: int) -> InputError:
    return InputError(
        f"train: the {name.replace('_', ' ')} is {value} in epoch {epoch}; lower train.lr (or "
        "train.lr_of for this dataset), or raise train.warmup"
    )


def _be_quiet(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
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
