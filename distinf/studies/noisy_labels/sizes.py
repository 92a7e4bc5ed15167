"""What a row costs, for plans: from the model's shapes and the rows' lengths."""

import math
from typing import Any

import numpy as np
from torch import nn

from distinf.studies.noisy_labels.files import read_table
from distinf.studies.noisy_labels.models import load_tokenizer
from distinf.studies.noisy_labels.noise import generator
from distinf.studies.noisy_labels.settings import ModelSettings, NoisyLabelSettings
from distinf.studies.noisy_labels.splits import PARTS
from distinf.studies.noisy_labels.tokens import tokenised
from distinf.tasks.task import Shapes

SAMPLED = 256
BYTES_PER_TOKEN = 5  # of text, for what is stored beside its tokens
QUANTISED = {"8bit": 1.0, "4bit": 0.5625}  # of bitsandbytes: 4 bits, and a scale for 64 of them
SCALARS = 64  # bytes of labels, numbers and offsets of a row


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


def shapes_of(model: Any, tokens: float, settings: NoisyLabelSettings) -> Shapes:
    """Of a model on any device, also meta.

    A row of T tokens: 2 T FLOPs per weight of its linear layers and 4 T^2 H per layer for the
    attention; kept for a backward pass are the inputs and outputs of linear layers and norms and
    the attention's weights.
    """
    config = model.config.get_text_config()
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.dim() == 2]
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    weights = sum(math.prod(m.weight.shape) for m in linear)
    widths = sum(sum(m.weight.shape) for m in linear)
    widths += sum(2 * sum(p.shape[0] for p in m.parameters(recurse=False)) for m in norms)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    itemsize = 2 if settings.model.dtype == "bfloat16" else 4
    attention = 4.0 * tokens**2 * config.hidden_size * layers
    kept = tokens * widths + 2.0 * layers * heads * tokens**2
    row = tokens * (8 + BYTES_PER_TOKEN) + SCALARS
    return Shapes(
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_sample=2.0 * tokens * weights + attention,
        activation_bytes_per_sample=itemsize * kept,
        row_bytes=dict.fromkeys(PARTS, row),
        weight_bytes=sum(_weight_bytes(m, settings.model) for m in model.modules()),
        tokens_per_row=tokens,
    )


def _weight_bytes(module: nn.Module, settings: ModelSettings) -> float:
    """Of a module's own parameters: 16 or 32 bits, fewer where its linear layer is quantised."""
    own = sum(p.numel() for p in module.parameters(recurse=False))
    plain = 2.0 if settings.dtype == "bfloat16" else 4.0
    base = getattr(module, "base_layer", None) is None and isinstance(module, nn.Linear)
    return own * (QUANTISED.get(settings.quantise, plain) if base else plain)
