"""Texts to tokens, too long ones cut or refused and counted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from distinf.errors import InputError
from distinf.studies.language.tokens import Ragged, ragged
from distinf.studies.language.tokens import packed_texts as packed_texts
from distinf.studies.noisy_labels.settings import ModelSettings


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
