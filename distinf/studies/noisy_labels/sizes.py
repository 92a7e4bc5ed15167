"""How long rows are, for plans."""

import numpy as np

from distinf.studies.language.pretrained import load_tokenizer
from distinf.studies.noisy_labels.files import read_table
from distinf.studies.noisy_labels.noise import generator
from distinf.studies.noisy_labels.settings import NoisyLabelSettings
from distinf.studies.noisy_labels.tokens import tokenised

SAMPLED = 256


def row_lengths(settings: NoisyLabelSettings) -> tuple[np.ndarray, str]:
    """Tokens of 256 rows of a file, or of rows of all lengths alike; and what is assumed then."""
    if not settings.data.path:
        longest = settings.model.max_length
        told = f"rows are assumed to be of 1 to {longest} tokens (model.max_length), all as often"
        return np.arange(1, longest + 1), told
    table = read_table(settings.data)
    rows = generator(0, "sizes").permutation(len(table.labels))[:SAMPLED]
    texts = [table.texts[row] for row in rows]
    (_, offsets), _ = tokenised(load_tokenizer(settings.model), texts, settings.model)
    return np.diff(offsets), ""
