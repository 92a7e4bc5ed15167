"""Fine-tuning by a gang and DeepSpeed: what `training.fit` does, on several devices at once.

The same order of rows, the same rates, the same AdamW: without dropout the weights are those of one
device but for rounding. Each rank takes its part of every batch. What is drawn comes from (seed,
step, rank), so that a training that is resumed ends in the bits of one that was not stopped.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distinf import microbatch
from distinf.errors import Interrupted
from distinf.gram.deepspeed import rows_at_once
from distinf.gram.settings import TrainSettings
from distinf.gram.task import Fit, Gang, Tell, selected_epoch
from distinf.numerics.checkpointing import recompute_blocks
from distinf.numerics.precision import precision
from distinf.numerics.randomness import number
from distinf.studies.language.saving import Saved
from distinf.studies.language.trainer_arguments import schedule_name
from distinf.studies.language.training import (
    COLUMNS,
    MEASURED,
    RowLosses,
    Tunable,
    not_finite,
    own_randomness,
)
from distinf.studies.language.zero import Zero, environment
from distinf.tasks.task import Batch
from distinf.tasks.warm import let_go

BEST = "best/"


def fit(
    task: Tunable,
    kept: np.ndarray,
    recipe: TrainSettings,
    lr: float,
    device: torch.device,
    tell: Tell,
    gang: Gang,
    measured: Sequence[str] = ("evaluation",),
) -> Fit:
    """As `training.fit`, on every rank; resumed from what was saved. The weights are rank 0's."""
    with (
        own_randomness(device),
        environment(gang.collective),
        precision("tf32" if recipe.precision == "tf32" else "float32", device),
    ):
        training = _Training(task, kept, recipe, lr, device, gang, measured)
        try:
            return training.carried_out(tell)
        finally:
            training.zero.close()


class _Training:
    def __init__(
        self, task: Tunable, kept: np.ndarray, recipe: TrainSettings, lr: float,
        device: torch.device, gang: Gang, measured: Sequence[str],
    ) -> None:  # fmt: skip
        self.task, self.kept, self.recipe, self.device = task, kept, recipe, device
        self.gang, self.collective, self.measured = gang, gang.collective, measured
        self.saved = Saved(gang.blobs, gang.folder)
        self.per_epoch = math.ceil(len(kept) / recipe.batch_size)
        self.steps = self.per_epoch * recipe.epochs
        self.loss = next(iter(task.losses.values()))
        self.history: dict[str, list[float]] = {}
        self.best_weights: dict[str, Tensor] = {}
        self.step_losses: list[float] = []
        self.seen = RowLosses(kept, recipe.epochs)
        self.rate = _rates(recipe, lr, self.steps)
        self.begun, about = self._agreed()
        let_go()  # DeepSpeed takes the weights apart: no other model may share them
        model = task.model()
        let_go()
        if recipe.checkpointing:
            recompute_blocks(model)
        if self.begun:
            self._load_weights(model)
        self.zero = Zero(model, _undecayed(model), recipe, device, self.collective)
        if self.begun:
            self.history, self.step_losses = about["history"], about["step_losses"]
            self._restore()

    def carried_out(self, tell: Tell) -> Fit:
        every = self.recipe.checkpoint_every
        for step in range(self.begun, self.steps):
            self._step(step)
            tell((step + 1) / self.steps)
            if (step + 1) % self.per_epoch == 0:
                self._end_epoch()
            if (step + 1) % every == 0 and step + 1 < self.steps:
                self._save(step + 1)
        best = selected_epoch(self.history, self.recipe.selected_epoch)
        weights = {name: values.numpy() for name, values in self.best_weights.items()}
        return Fit(self.history, best, weights, self.seen.losses)

    def _step(self, step: int) -> None:
        epoch, place = divmod(step, self.per_epoch)
        size = self.recipe.batch_size
        rows = self.kept[self._order(epoch)[place * size : (place + 1) * size]]
        at_once = microbatch.rows_at_once("train.batch_size", rows_at_once(self.recipe))
        noted: list[Tensor] = []
        self.zero.engine.train()
        torch.manual_seed(number(self.task.training_seed, f"step {step} of {self.collective.rank}"))

        def loss(piece: tuple[np.ndarray, bool]) -> Tensor:
            ids, counted = piece
            losses = self.loss(self.zero.engine, self._batch("train", ids))
            if counted:
                noted.append(
                    torch.stack([torch.from_numpy(ids), losses.detach().double().cpu()], 1)
                )
            weight = self.collective.size / len(rows) if counted else 0.0
            return losses.sum() * weight

        self.zero.step(self.rate(step), self._pieces(rows, at_once), loss)
        found = torch.cat(noted) if noted else torch.zeros(0, 2, dtype=torch.float64)
        every = self.collective.all_gather(found.to(self.device)).cpu()
        self.seen.note(every[:, 0].long(), every[:, 1])
        self.step_losses.append(float(every[:, 1].mean()))
        if not math.isfinite(self.step_losses[-1]):
            raise not_finite("train_loss", self.step_losses[-1], epoch + 1)

    def _order(self, epoch: int) -> np.ndarray:
        """[rows] of an epoch, as the Trainer has them."""
        draw = torch.Generator().manual_seed(self.task.training_seed + epoch)
        return torch.randperm(len(self.kept), generator=draw).numpy()

    def _pieces(self, rows: np.ndarray, at_once: int) -> list[tuple[np.ndarray, bool]]:
        """This rank's part of the rows, at most `at_once` together, and whether they count: ranks
        have as many pieces, one that has no row left takes another's for nothing."""
        pieces = []
        for start in range(0, len(rows), at_once * self.collective.size):
            some = rows[start : start + at_once * self.collective.size]
            own = np.array_split(some, self.collective.size)[self.collective.rank]
            pieces.append((own, True) if len(own) else (some[:1], False))
        return pieces

    def _batch(self, split: str, ids: np.ndarray) -> Batch:
        return {n: v.to(self.device) for n, v in self.task.batch(split, ids).items()}

    def _end_epoch(self) -> None:
        self._note("train_loss", sum(self.step_losses) / len(self.step_losses))
        self.step_losses = []
        for name, split in MEASURED.items():
            if split in self.measured:
                for column, value in self._means(split).items():
                    self._note(f"{name}_{'accuracy' if column == 'correct' else column}", value)
        last = len(self.history["query_loss"]) - 1
        if selected_epoch(self.history, self.recipe.selected_epoch) == last:
            keeps = self.collective.rank == 0  # all gather, tensor by tensor
            self.best_weights = {n: v for n, v in self.zero.weights() if keeps}

    def _note(self, name: str, value: float) -> None:
        self.history.setdefault(name, []).append(value)
        if not math.isfinite(value):
            raise not_finite(name, value, len(self.history[name]))

    def _means(self, split: str) -> dict[str, float]:
        """Of COLUMNS, over all rows alike."""
        self.zero.engine.eval()
        found: list[Tensor] = []
        names: list[str] = []
        by_length = np.argsort(self.task.lengths(split), kind="stable")
        setting, most = "train.evaluation_batch", self.recipe.evaluation_batch
        for ids, counted in self._pieces(by_length, microbatch.rows_at_once(setting, most)):
            with torch.no_grad():
                columns = self.task.evaluate(self.zero.engine, self._batch(split, ids))
            names = [name for name in COLUMNS if name in columns]
            if counted:
                found.append(torch.stack([columns[name].double() for name in names], 1))
        own = torch.cat(found) if found else torch.zeros(0, len(names), dtype=torch.float64)
        means = self.collective.all_gather(own.to(self.device)).mean(0)
        return dict(zip(names, means.tolist(), strict=True))

    # -- what is saved -------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        about = {"history": self.history, "step_losses": self.step_losses}
        if self.collective.rank == 0:
            self.saved.put(step, self._state(), about)
        else:
            for _ in self.zero.state():  # each tensor is gathered from all
                pass

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.zero.state()
        yield "row_losses", torch.from_numpy(self.seen.losses)
        yield from ((f"{BEST}{name}", values) for name, values in self.best_weights.items())

    def _agreed(self) -> tuple[int, Mapping[str, Any]]:
        """The step from which on to train; every rank must see the same."""
        step, about = self.saved.index()
        steps = self.collective.all_gather(torch.tensor([step], device=self.device))
        if len(set(steps.tolist())) > 1:
            raise Interrupted(
                f"train: ranks see other checkpoints in {self.gang.folder} ({steps.tolist()}); run "
                "the same command to resume"
            )
        return step, about

    def _load_weights(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, values in self.saved.tensors():
                if name in parameters:
                    parameters[name].copy_(values)

    def _restore(self) -> None:
        ids = self.kept[:1]

        def state() -> Iterator[tuple[str, Tensor]]:
            for name, values in self.saved.tensors():
                if name == "row_losses":
                    self.seen.resume(values.numpy())
                elif name.startswith(BEST):
                    if self.collective.rank == 0:
                        self.best_weights[name.removeprefix(BEST)] = values
                else:
                    yield name, values

        self.zero.restore(
            state(),
            self.begun,
            lambda: self.loss(self.zero.engine, self._batch("train", ids)).sum(),
        )


def _rates(recipe: TrainSettings, lr: float, steps: int) -> Any:
    """step -> the Trainer's learning rate."""
    from transformers import get_scheduler

    unused = torch.optim.SGD([torch.zeros(1)], lr=lr)
    warmup = math.ceil(recipe.warmup * steps)
    schedule = get_scheduler(
        schedule_name(recipe), unused, num_warmup_steps=warmup, num_training_steps=steps
    )
    return lambda step: lr * schedule.lr_lambdas[0](step)


def _undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters that the Trainer spares weight decay: biases and norms."""
    from transformers import Trainer

    decayed = Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    return {name for name, _ in model.named_parameters()} - set(decayed)
