"""How long rows are, for plans."""

import numpy as np

from distinf.studies.language.pretrained import load_tokenizer
from distinf.studies.noisy_labels.files import read_table
from distinf.studies.noisy_labels.noise import generator
from distinf.studies.noisy_labels.settings import NoisyLabelSettings
from distinf.studies.noisy_labels.tokens import tokenised

SAMPLED = 256


def tokens_per_row(settings: NoisyLabelSettings, lengths: np.ndarray | None) -> float:
    """Mean of `lengths` where they are known; of 256 rows of a file; half of max_length."""
    if lengths is not None:
        return float(lengths.mean())
    if not settings.data.path:
        return settings.model.max_length / 2
    table = read_table(settings.data)
    rows = generator(0, "sizes").permutation(len(table.labels))[:SAMPLED]
    texts = [table.texts[row] for row in rows]
    (_, offsets), _ = tokenised(load_tokenizer(settings.model), texts, settings.model)
    return float(np.diff(offsets).mean())
