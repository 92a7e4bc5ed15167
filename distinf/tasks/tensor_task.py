"""A task from tensors that fit in memory: your own model in ten lines."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distinf.digest import sha256
from distinf.errors import InputError
from distinf.tasks.notes import placed, truth, with_notes
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import SPLITS, Batch, PerSampleLoss, Wording
from distinf.tasks.tensors import tensor_columns


class TensorTask:
    """Splits are dicts of tensors whose first dimension is the row.

    model      () -> nn.Module; called under `seed`, so its initial weights are reproducible
    data       {"train": {name: Tensor [N, ...]}, "evaluation": {...}}; numpy arrays, pandas columns
               and lists of numbers become tensors
    losses     {name: loss(model, batch) -> [N]}; the first is the training loss
    metric     (model, batch) -> [N], what should go down (default: the training loss)
    optimizer  (parameters, lr=…, weight_decay=…) -> optimizer (default: torch.optim.AdamW)
    shared_rows  True where evaluation rows may be training rows too; else a run refuses them
    notes      {column: values [N]} of the training rows for people: texts, labels, probabilities;
               by place (an index of pandas plays no part)
    flipped    bool [N], or zeros and ones: training rows whose label is known to be wrong, to see
               how many are found
    correct    (model, batch) -> bool [N]: rank and vote count evaluation rows that the model gets
               right (default: all)
    probabilities  (model, batch) -> [N, classes], summing to 1: the report then suggests a label
               for every training row, and about how many are wrong; needs `labels`
    labels     int [N]: the class of each training row, from 0, as it is labelled
    classes    the classes' names (default: their numbers)
    """

    reference: str | None = None
    axis: str | None = None
    metric = "metric"
    criteria: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {}

    def __init__(
        self,
        model: Callable[[], nn.Module],
        data: Mapping[str, Mapping[str, Any]],
        losses: Mapping[str, PerSampleLoss],
        metric: PerSampleLoss | None = None,
        seed: int = 0,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
        shared_rows: bool = False,
        notes: Mapping[str, Any] | None = None,
        flipped: Any = None,
        correct: PerSampleLoss | None = None,
        probabilities: PerSampleLoss | None = None,
        labels: Any = None,
        classes: Sequence[str] | None = None,
    ):
        missing = [split for split in SPLITS if split not in data]
        if missing:
            raise InputError(f"task: data has no '{missing[0]}' split")
        if not losses:
            raise InputError("task: give at least one per-sample loss")
        self.losses = dict(losses)
        self.wording = Wording(metric=next(iter(losses)) if metric is None else "metric")
        self._model = model
        self._data = {split: tensor_columns(split, columns) for split, columns in data.items()}
        self._metric = metric or next(iter(losses.values()))
        self._seed = seed
        self._optimizer = optimizer
        self._shared_rows = shared_rows
        self._notes = self._placed(notes)
        self._flipped = None if flipped is None else truth("flipped", flipped)
        self._correct = correct
        self._probabilities = probabilities
        self._labels, self._classes = _labelling(probabilities, labels, classes)
        if labels is not None:
            self._refuse_length("labels", len(self._labels))
        if self._flipped is not None:
            self._refuse_length("flipped", len(self._flipped))

    def _placed(self, notes: Any) -> dict[str, Sequence[Any]]:
        if notes is None:
            return {}
        if not hasattr(notes, "items"):
            kind = type(notes).__name__
            raise InputError(f"task: notes is a {kind}; give columns by name, {{name: values}}")
        found: dict[str, Sequence[Any]] = {}
        for key, values in notes.items():
            name = str(key)
            if name in found:
                raise InputError(f"task: two notes are called '{name}'; call each otherwise")
            found[name] = placed(name, values)
            self._refuse_length(name, len(found[name]))
        return found

    def _refuse_length(self, name: str, count: int) -> None:
        rows = self.rows("train")
        if count != rows:
            raise InputError(f"task: '{name}' has {count} values for {rows} training rows")

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return self._model()

    def rows(self, split: str) -> int:
        return len(next(iter(self._data[split].values())))

    def batch(self, split: str, ids: np.ndarray) -> Batch:
        index = torch.from_numpy(np.asarray(ids, dtype=np.int64))
        return {name: values[index] for name, values in self._data[split].items()}

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        # A loss may differentiate by its inputs; a metric of one's own need not.
        is_loss = any(self._metric is loss for loss in self.losses.values())
        with torch.enable_grad() if is_loss else nullcontext():
            found = {"metric": self._metric(model, batch)}
        return found if self._correct is None else {**found, "correct": self._correct(model, batch)}

    def describe(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """For each training row its number and the notes on it."""
        return [
            with_notes({"row": row}, {name: values[row] for name, values in self._notes.items()})
            for row in np.asarray(ids).tolist()
        ]

    def flipped(self) -> np.ndarray | None:
        """bool [N], or None where no wrong label is known."""
        return self._flipped

    def classes(self) -> Sequence[str] | None:
        """Their names; None where no probabilities are told."""
        return self._classes

    def given(self) -> np.ndarray:
        """int64 [N]: the training rows' labels."""
        return self._labels

    def probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        """[n, classes]."""
        assert self._probabilities is not None, "classes() is None: there are none"
        return self._probabilities(model, batch)

    def optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return self._optimizer(parameters, lr=lr, weight_decay=weight_decay)

    def digests(self) -> Mapping[str, str]:
        """As a Task's. InputError if rows of evaluation are rows of training."""
        if not self._shared_rows:
            self._refuse_shared_rows()
        found = {
            f"data.{split}.{name}": _digest(values)
            for split, columns in self._data.items()
            for name, values in columns.items()
        }
        state = self.model().state_dict().values()
        return found | {"model": sha256("".join(map(_digest, state)).encode())}

    def _refuse_shared_rows(self) -> None:
        """Equal rows: in every column that both splits have, equal to the last bit."""
        train, evaluation = (self._data[split] for split in SPLITS)
        names = sorted(train.keys() & evaluation.keys())
        if not names:
            return
        first: dict[bytes, int] = {}
        for row, content in enumerate(_row_digests([train[name] for name in names])):
            first.setdefault(content, row)
        digests = _row_digests([evaluation[name] for name in names])
        pairs = [(row, first[content]) for row, content in enumerate(digests) if content in first]
        if pairs:
            shown = ", ".join(f"{row} = training row {twin}" for row, twin in pairs[:3])
            more = ", …" if len(pairs) > 3 else ""
            raise InputError(
                f"task: {len(pairs)} of {self.rows('evaluation')} evaluation rows are training "
                f"rows too ({shown}{more}); leave them out of one split, or say shared_rows=True "
                "if that is meant"
            )

    def shapes(self) -> Shapes:
        model = self.model().eval()
        try:
            flops, kept = self._forward_costs(model, FlopCounterMode(display=False))
        except RuntimeError:  # torch's counter passes no loss that differentiates by its inputs
            flops, kept = self._forward_costs(model, None)
        parameters = sum(p.numel() for p in model.parameters())
        trained = [p.numel() for p in model.parameters() if p.requires_grad]
        return Shapes(
            parameters=parameters,
            flops_per_sample=2.0 * parameters if flops is None else flops,
            activation_bytes_per_sample=kept,
            trained=sum(trained),
            largest=max(trained, default=0),
        )

    def _forward_costs(
        self, model: nn.Module, counter: FlopCounterMode | None
    ) -> tuple[float | None, float]:
        """(operations, or None without a counter; bytes kept for one backward pass) of a row."""
        batch = self.batch("train", np.arange(1))
        kept: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel() * tensor.element_size())
            return tensor

        with (
            counter or nullcontext(),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            next(iter(self.losses.values()))(model, batch)
        return float(counter.get_total_flops()) if counter else None, float(sum(kept))


def _labelling(
    probabilities: PerSampleLoss | None, labels: Any, classes: Sequence[str] | None
) -> tuple[np.ndarray, Sequence[str] | None]:
    """(labels int64 [N], classes' names), or (none, None) where there are no probabilities."""
    if probabilities is None or labels is None:
        if probabilities is not None or labels is not None or classes is not None:
            raise InputError(
                "task: probabilities and labels come together (classes may name them); give both, "
                "or leave all three out"
            )
        return np.empty(0, dtype=np.int64), None
    values = placed("labels", labels)
    found = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min(initial=0) < 0:
        raise InputError("task: labels must be one whole number a training row, from 0")
    names = [str(k) for k in range(found.max(initial=0) + 1)] if classes is None else classes
    if found.max(initial=0) >= len(names):
        raise InputError(f"task: label {found.max()} has no name among {len(names)} classes")
    return found.astype(np.int64), list(map(str, names))


def _row_digests(columns: Sequence[Tensor]) -> Iterator[bytes]:
    """16 bytes a row, of all its columns' types, shapes and bytes."""
    head = "".join(f"{values.dtype} {tuple(values.shape[1:])} " for values in columns).encode()
    plain = [values.detach().cpu().contiguous() for values in columns]
    wide = [values[:, None] if values.ndim == 1 else values.flatten(1) for values in plain]
    bytes_NB = [values.view(torch.uint8).numpy() for values in wide]
    for parts in zip(*bytes_NB):
        content = hashlib.blake2b(head, digest_size=16)
        for part in parts:
            content.update(part)
        yield content.digest()


def _digest(values: Any) -> str:
    plain = values.detach().cpu().contiguous()
    head = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    return sha256(head, plain.view(-1).view(torch.uint8).numpy().tobytes())
