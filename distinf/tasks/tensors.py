"""Columns of data as people give them (numpy, pandas, lists), made tensors."""

from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.errors import InputError

Columns = dict[str, Tensor]


def tensor_columns(split: str, columns: Any) -> Columns:
    """{name: Tensor [N, ...]} of one split; InputError, in one line, for what is no such thing.

    Numbers keep their type: float64 stays float64; Python's floats become torch's default.
    """
    if isinstance(columns, Tensor | np.ndarray) or not hasattr(columns, "items"):
        kind = type(columns).__name__
        raise InputError(f"task: data['{split}'] is a {kind}; give a dict of columns, name: tensor")
    found = {str(name): _tensor(split, str(name), values) for name, values in columns.items()}
    if not found:
        raise InputError(f"task: data has no '{split}' split")
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"task: columns of '{split}' differ in length: {lengths}")
    if not next(iter(lengths.values())):
        raise InputError(f"task: '{split}' has no rows")
    return found


def _tensor(split: str, name: str, values: Any) -> Tensor:
    where = f"task: column '{name}' of '{split}'"
    found = values if isinstance(values, Tensor) else _converted(where, values)
    if found.ndim == 0:
        raise InputError(f"{where} is a single number; give one for each row")
    return found


def _converted(where: str, values: Any) -> Tensor:
    kind = type(values).__name__
    if isinstance(values, str | bytes | Mapping | set) or not isinstance(values, Sized):
        raise InputError(
            f"{where} is a {kind}, not a tensor; give a number or an array for each row"
        )
    listed = values if isinstance(values, list | tuple) else None
    if listed and all(isinstance(value, Tensor) for value in listed):
        if len({value.shape for value in listed}) > 1:
            raise InputError(f"{where} has rows of different shapes; pad them to one")
        return torch.stack(list(listed))
    try:
        array = np.asarray(values)
        if array.dtype == object:  # pandas' columns of numbers, or lists in a column
            array = np.array([np.asarray(value).tolist() for value in array])
    except ValueError:
        raise InputError(f"{where} has rows of different lengths; pad them to one") from None
    if array.dtype.kind in "USO":
        raise InputError(
            f"{where} holds {_first_kind(array)}, not numbers; encode it first (texts by a "
            "tokenizer) and give the texts as notes"
        )
    if array.dtype.kind not in "biufc":
        raise InputError(f"{where} holds {array.dtype}, not numbers; give numbers")
    if listed and not isinstance(listed[0], np.ndarray):
        return torch.tensor(array.tolist())  # Python's own numbers get torch's types
    try:
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError:
        raise InputError(f"{where} holds {array.dtype}, which torch has not; convert it") from None


def _first_kind(array: np.ndarray) -> str:
    if array.dtype.kind in "US":
        return "texts"
    first = array.ravel()[0] if array.size else None
    return f"values such as {first!r:.40}"
