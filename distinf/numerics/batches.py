"""What a batch may be, and its samples: how many there are, some of them, and as a list of tensors.

A batch is a tensor, or a Mapping (a tokenizer's output), tuple, list or dataclass of such, nested
or not. Every tensor or array of one dimension or more has the samples along dim 0, and a list of
texts has one for each sample. What is beside them (None, a flag, a number, a tensor without
dimensions) belongs to all samples alike. Anything else is refused, a list of such things too, which
may be one for each sample: who counts rows on what is no sample axis gives gradients of something
else.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset

from distinf.errors import InputError

Batch = Any  # as above; dict[str, Tensor] in a task
Leaf = Any  # a Tensor, an array, or a list of texts

MOST_LOOKED_AT = 1 << 26  # entries of a tensor whose rows' lengths are counted
SHARED: tuple[type, ...] = (str, bytes, bool, int, float, complex, type(None), Enum, np.generic)
SHARED += (torch.Size, torch.dtype, torch.device)


def rows(batch: Batch) -> int:
    """Number of samples N, the same in all leaves; InputError where they differ."""
    lengths = {path: len(leaf) for path, leaf in leaves(batch)}
    if not lengths:
        raise InputError(
            "the batch holds no samples; give tensors with the samples along dim 0, in a dict, "
            "tuple, list or dataclass"
        )
    first, count = next(iter(lengths.items()))
    for path, length in lengths.items():
        if length != count:
            raise InputError(
                f"{first} has {count} rows, but {path} has {length}; give every tensor one row per "
                "sample, and put what all samples share into the loss (functools.partial)"
            )
    return count


def take(batch: Batch, index: slice | Sequence[int]) -> Batch:
    """The samples `index`, in its order, in containers of the same types."""
    places = index if isinstance(index, slice) else list(index)

    def taken(_: str, leaf: Leaf) -> Leaf:
        if not isinstance(leaf, list):
            return leaf[places]
        return leaf[places] if isinstance(places, slice) else [leaf[place] for place in places]

    return mapped(batch, taken)


def looked_at(batch: Batch, most: int) -> list[int]:
    """`most` rows to look at, or all: evenly from the first to the last, the longest
    and the shortest among them. A loss may mix its rows in a way that equal lengths hide."""
    count = rows(batch)
    if count <= most:
        return list(range(count))
    even = torch.linspace(0, count - 1, most, dtype=torch.float64).long().tolist()
    lengths = lengths_of(batch)
    extremes = {int(lengths.argmax()), int(lengths.argmin())}
    inner = [place for place in even[1:-1] if place not in extremes]
    kept = inner[: most - len({even[0], even[-1], *extremes})]
    return sorted({even[0], *kept, *extremes, even[-1]})


def lengths_of(batch: Batch) -> Tensor:
    """fp32 [N]: of every row, how many of its entries are not 0, or how long its texts are."""
    count = rows(batch)
    lengths = torch.zeros(count)
    for _, leaf in leaves(batch):
        if not isinstance(leaf, Tensor):
            lengths += torch.tensor([float(len(text)) for text in leaf])
        elif leaf.numel() <= MOST_LOOKED_AT:
            lengths += (leaf != 0).reshape(count, -1).sum(1).cpu()
    return lengths


def copied(batch: Batch) -> Batch:
    """The same with tensors of its own: a loss may change its batch in place."""
    return mapped(batch, lambda _, leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def as_tensors(batch: Batch, dtype: torch.dtype | None = None) -> Batch:
    """The batch with arrays as tensors, and no tensor that torch.inference_mode() made.

    An array of integers becomes int64, one of floating-point numbers `dtype`, the model's: numpy's
    own defaults are others. Tensors keep their types.
    """

    def usable(path: str, leaf: Leaf) -> Leaf:
        if isinstance(leaf, np.ndarray):
            return _from_array(path, leaf, dtype)
        if isinstance(leaf, Tensor) and leaf.is_meta:
            raise InputError(f"{path} is on the meta device, without values; give a real tensor")
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    return mapped(batch, usable)


def split(batch: Batch) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Batch]]:
    """The tensors that have samples, and the way back to a batch from as many others.

    For torch.func's transforms, which know few containers. InputError for texts.
    """
    found = dict(leaves(batch))
    for path, leaf in found.items():
        if isinstance(leaf, list):
            raise InputError(f"{path} is a list of texts, which vmap can't take; use method='loop'")

    def rebuilt(tensors: Sequence[Tensor]) -> Batch:
        given = dict(zip(found, tensors, strict=True))
        return mapped(batch, lambda path, _: given[path])

    return list(found.values()), rebuilt


def mapped(batch: Batch, change: Callable[[str, Leaf], Any], path: str = "batch") -> Batch:
    """The batch with `change(path, leaf)` for each leaf that has samples; the rest is kept."""
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "UO":
        batch = batch.tolist()  # of texts, or refused
    if isinstance(batch, Tensor | np.ndarray):
        if isinstance(batch, Tensor):
            _refuse_kind(path, batch)
        return change(path, batch) if batch.ndim else batch
    if isinstance(batch, SHARED):
        return batch
    if isinstance(batch, Mapping):
        return _like(batch, {k: mapped(v, change, f"{path}[{k!r}]") for k, v in batch.items()})
    if is_dataclass(batch) and not isinstance(batch, type):
        return _with_fields(batch, change, path)
    if isinstance(batch, list | tuple) and not isinstance(batch, PackedSequence):
        return _sequence(batch, change, path)
    raise InputError(f"{path} is a {type(batch).__name__}; {_remedy(batch)}")


def leaves(batch: Batch) -> Iterator[tuple[str, Leaf]]:
    """Path and content of each leaf that has samples, in order."""
    found: list[tuple[str, Leaf]] = []
    mapped(batch, lambda path, leaf: found.append((path, leaf)))
    return iter(found)


def _sequence(values: Sequence[Any], change: Callable[[str, Leaf], Any], path: str) -> Any:
    if values and all(isinstance(value, str) for value in values):
        return change(path, list(values))
    held: list[str] = []

    def noted(at: str, leaf: Leaf) -> Any:
        held.append(at)
        return change(at, leaf)

    found = [mapped(value, noted, f"{path}[{k}]") for k, value in enumerate(values)]
    named = hasattr(values, "_fields")
    if not held and not named and any(value is not None for value in values):
        raise InputError(
            f"{path} is a {type(values).__name__} of {_kinds(values)}; give a tensor or texts if "
            "there is one per sample, and put what all samples share into the loss "
            "(functools.partial)"
        )
    if isinstance(values, list):
        return found
    return type(values)(*found) if named else type(values)(found)  # type: ignore[call-arg]


def _kinds(values: Sequence[Any]) -> str:
    if all(isinstance(value, bool | int | float) for value in values):
        return "numbers"
    return " and ".join(sorted({type(value).__name__ for value in values}))


def _with_fields(batch: Any, change: Callable[[str, Leaf], Any], path: str) -> Any:
    made = copy.copy(batch)
    for field in fields(batch):
        value = mapped(getattr(batch, field.name), change, f"{path}.{field.name}")
        object.__setattr__(made, field.name, value)  # frozen ones too
    return made


def _like(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """`values` in a mapping of the same type (with its attributes), where it can be had."""
    if type(batch) is dict:
        return values
    try:
        made: Any = copy.copy(batch)
        for key, value in values.items():
            made[key] = value
    except Exception:  # whatever a read-only mapping says to that
        return values
    return made  # type: ignore[no-any-return]


def _from_array(path: str, array: np.ndarray, dtype: torch.dtype | None) -> Tensor:
    try:
        tensor = torch.from_numpy(np.array(array))
    except (TypeError, ValueError):
        raise InputError(
            f"{path} is an array of {array.dtype}; give numbers, or a list of texts"
        ) from None
    if tensor.is_floating_point():
        return tensor.to(dtype)
    return tensor.long() if array.dtype.kind == "i" else tensor


def _refuse_kind(path: str, leaf: Tensor) -> None:
    kinds = {"nested": leaf.is_nested, "sparse": leaf.layout != torch.strided}
    for kind, there in {**kinds, "quantised": leaf.is_quantized}.items():
        if there:
            raise InputError(
                f"{path} is a {kind} tensor; give a dense one with the samples along dim 0 (padded "
                "where they differ in length)"
            )


def _remedy(value: Any) -> str:
    if isinstance(value, DataLoader):
        return "loop over it and give its batches one at a time"
    if isinstance(value, Dataset):
        return "give a batch of its items, as torch.utils.data.default_collate makes one"
    if isinstance(value, PackedSequence):
        return "give the padded tensor and the lengths, and pack them inside the loss"
    if isinstance(value, Iterator):
        return "collect it, and give one tensor with the samples along dim 0"
    if hasattr(value, "to_numpy"):
        return "give its numbers, as .to_numpy() has them"
    return "give tensors, in a dict, tuple, list or dataclass"
