"""Vocabulary compression: it keeps the rows of tokens that occur (Vitel and Chhabra, app. A).

Token ids are renumbered in the data, in ascending order, those that only queries from a file of
their own have after all others; `kept[new] = old`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

LOW = 100  # a padding id below this keeps its number: RoBERTa counts positions from it


def kept_tokens(occurring: Iterable[np.ndarray], special: Iterable[int], pad: int) -> np.ndarray:
    """int64 [V'], ascending: ids that occur, the special ones, and those below a low `pad`."""
    below = np.arange(pad + 1 if pad < LOW else 0)
    parts = [*occurring, np.fromiter(special, dtype=np.int64), below, np.array([pad])]
    return np.unique(np.concatenate(parts).astype(np.int64))


def renumber(tokens: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The new ids of `tokens`, all of which are kept."""
    return np.searchsorted(kept, tokens)


def compress(model: Any, kept: np.ndarray) -> None:
    """Leave only the rows `kept` [V'] of the model's input embeddings, in place."""
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    rows = weight.detach()[torch.from_numpy(kept).to(weight.device)].clone()
    embedding.weight = nn.Parameter(rows, requires_grad=weight.requires_grad)
    embedding.num_embeddings = len(kept)
    if embedding.padding_idx is not None:
        (places,) = np.nonzero(kept == embedding.padding_idx)
        embedding.padding_idx = int(places[0]) if len(places) else None
    model.config.vocab_size = len(kept)
