"""Texts to tokens, too long ones cut or refused and counted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from distinf.errors import InputError
from distinf.studies.noisy_labels.settings import ModelSettings

Ragged = tuple[np.ndarray, np.ndarray]  # values [total], offsets int64 [rows + 1]


def tokenised(
    tokenizer: Any, texts: Sequence[tuple[str, ...]], settings: ModelSettings
) -> tuple[Ragged, int]:
    """((ids int64, offsets), how many rows were cut to max_length)."""
    columns = [list(column) for column in zip(*texts)]
    encoded = tokenizer(*columns, truncation=False, padding=False, verbose=False)["input_ids"]
    long = [row for row, ids in enumerate(encoded) if len(ids) > settings.max_length]
    if long and settings.too_long == "refuse":
        raise InputError(
            f"model.max_length: {len(long)} rows have more than {settings.max_length} tokens, the "
            f"first starts {texts[long[0]][0][:40]!r}; raise max_length or set too_long: truncate"
        )
    if long:
        cut = tokenizer(
            *[[column[row] for row in long] for column in columns],
            truncation=True,
            max_length=settings.max_length,
            padding=False,
            verbose=False,
        )["input_ids"]
        for row, ids in zip(long, cut):
            encoded[row] = ids
    return ragged([np.asarray(ids, dtype=np.int64) for ids in encoded]), len(long)


def ragged(parts: Sequence[np.ndarray]) -> Ragged:
    """The parts one after another, and where each begins."""
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.concatenate(parts), offsets


def packed_texts(texts: Sequence[str]) -> Ragged:
    """UTF-8 bytes, uint8."""
    return ragged([np.frombuffer(text.encode(), dtype=np.uint8) for text in texts])


def text_at(packed: Ragged, row: int) -> str:
    values, offsets = packed
    return values[offsets[row] : offsets[row + 1]].tobytes().decode()


def padded(tokens: Ragged, rows: np.ndarray, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) int64 [n, longest of these rows], padded on the right."""
    values, offsets = tokens
    lengths = (offsets[1:] - offsets[:-1])[rows]
    positions = np.arange(lengths.max(initial=0))
    mask = positions < lengths[:, None]
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = values[(offsets[rows][:, None] + positions)[mask]]
    return ids, mask.astype(np.int64)
