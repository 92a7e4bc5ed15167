"""Texts packed into batches, and the loss of their tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

A_PASS = 20  # tokens that cost what it costs to have all weights through memory, about


def of_like_lengths(lengths: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Start and end of batches, of at most so many, of texts sorted by length: those that cost
    least, each text being read to the end of its batch's longest."""
    best = [(0, 0)]  # what the first texts cost, and where the last of their batches starts
    for stop, longest in enumerate(lengths, 1):
        starts = range(max(0, stop - most), stop)
        best.append(min((best[k][0] + (stop - k) * longest + A_PASS, k) for k in starts))
    found, stop = [], len(lengths)
    while stop:
        found.append((best[stop][1], stop))
        stop = best[stop][1]
    return found[::-1]


def packed(rows: Sequence[Sequence[tuple[list[int], list[int]]]]) -> dict[str, Tensor]:
    """{tokens [B, K, L], scored [B, K, L]}: of each text a prefix that is read, and what is scored;
    of the very first token nothing foretells it. Causal models look at no padding on the right."""
    texts = max(len(row) for row in rows)
    longest = max(len(prefix) + len(text) for row in rows for prefix, text in row)
    tokens = torch.zeros(len(rows), texts, longest, dtype=torch.long)
    scored = torch.zeros(len(rows), texts, longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        for k, (prefix, text) in enumerate(row):
            stop = len(prefix) + len(text)
            tokens[i, k, :stop] = torch.tensor(prefix + text)
            scored[i, k, max(len(prefix), 1) : stop] = True
    return {"tokens": tokens, "scored": scored}


def token_loss(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    drawn: Callable[[Tensor, Tensor | slice], Tensor] | None = None,
    kept: Mapping[str, Any] | None = None,
) -> Tensor:
    """[B]: Eq. 7, over all scored tokens of a row's texts; or of tokens that are drawn in their
    places, by logits [T, L - 1, V] and which T of the B * K texts they are of.

    kept  what the model has read before every text, by `kept_of`"""
    count, most = batch["tokens"].shape[:2]
    tokens, scored = batch["tokens"].flatten(0, 1), batch["scored"].flatten(0, 1)
    # of several rows, not all have as many texts; a row by itself, as in vmap, has no others
    texts = scored.any(1) if count > 1 else slice(None)
    rows = torch.arange(count, device=tokens.device).repeat_interleave(most)[texts]
    given = kept or {"use_cache": False}
    logits = model(input_ids=tokens[texts], **given).logits[:, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    foretold = tokens[texts, 1:] if drawn is None else drawn(logits, texts)
    lost = nn.functional.cross_entropy(logits.transpose(1, 2), foretold, reduction="none")
    each = (lost * scored[texts, 1:]).sum(1)
    return each.new_zeros(count).index_add(0, rows, each) / batch["scored"].sum((1, 2))
