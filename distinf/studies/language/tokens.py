"""Rows of different lengths in one array: tokens, and texts as bytes."""

from collections.abc import Sequence

import numpy as np

Ragged = tuple[np.ndarray, np.ndarray]  # values [total], offsets int64 [rows + 1]


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
