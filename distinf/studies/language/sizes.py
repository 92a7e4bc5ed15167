"""What a row costs, for plans: from the model's shapes and the rows' lengths."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from distinf.studies.language.settings import Pretrained
from distinf.tasks.shapes import Shapes

BYTES_PER_TOKEN = 5  # of text, for what is stored beside its tokens
# Of bitsandbytes: 4 bits, and a scale for 64 of them, which double quantisation has in 8 bits.
QUANTISED = {"8bit": 1.0, "4bit": 0.5625, "double": 0.516}
SAMPLED = 256  # lengths, of all
SCALARS = 64  # bytes of labels, numbers and offsets of a row


def shapes_of(
    model: Any, lengths: Sequence[float] | np.ndarray, settings: Pretrained,
    stored: Sequence[str] = (), vocabulary: int = 0,
) -> Shapes:  # fmt: skip
    """Of a model on any device, also meta, and rows of these lengths in tokens; `stored`: splits
    whose rows the run stores; `vocabulary`: of which a loss foretells every token, 0 for none.

    A row of T tokens, their mean: 2 T FLOPs per weight of its linear layers and 4 T^2 H per layer
    for the attention; kept for a backward pass are the inputs and outputs of linear layers and
    norms and the attention's weights. Of a token that is foretold three numbers in 32 bits for each
    of the vocabulary (measured: 3.0): its logits, their logarithmic softmax and a gradient.
    """
    config, tokens = model.config.get_text_config(), float(np.mean(lengths))
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.dim() == 2]
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    weights = sum(math.prod(m.weight.shape) for m in linear)
    widths = sum(sum(m.weight.shape) for m in linear)
    widths += sum(2 * sum(p.shape[0] for p in m.parameters(recurse=False)) for m in norms)
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    itemsize = 2 if settings.dtype == "bfloat16" else 4
    attention = 4.0 * tokens**2 * config.hidden_size * layers
    kept = tokens * widths + 2.0 * layers * heads * tokens**2
    again = kept / layers + tokens * config.hidden_size * layers  # a layer, and all their inputs
    beyond = 3.0 if itemsize == 2 else 2.0  # logits in 32 bits are among the outputs
    foretold = 4.0 * beyond * tokens * vocabulary
    row = tokens * (8 + BYTES_PER_TOKEN) + SCALARS
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    return Shapes(
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_sample=2.0 * tokens * weights + attention,
        activation_bytes_per_sample=itemsize * kept + foretold,
        recomputed_bytes_per_sample=itemsize * again + foretold,
        row_bytes=dict.fromkeys(stored, row),
        weight_bytes=sum(_weight_bytes(m, settings) for m in model.modules()),
        tokens_per_row=tokens,
        lengths=_quantiles(lengths),
        trained=sum(trained),
        largest=max(trained, default=0),
    )


def _quantiles(lengths: Sequence[float] | np.ndarray) -> tuple[int, ...]:
    """Some of them, ascending, the longest among them."""
    ordered = np.sort(np.asarray(lengths))[::-1]
    return tuple(map(int, ordered[:: -(-len(ordered) // SAMPLED)][::-1]))


def _weight_bytes(module: nn.Module, settings: Pretrained) -> float:
    """Of a module's own parameters: 16 or 32 bits, fewer where its linear layer is quantised."""
    own = sum(p.numel() for p in module.parameters(recurse=False))
    plain = 2.0 if settings.dtype == "bfloat16" else 4.0
    base = getattr(module, "base_layer", None) is None and isinstance(module, nn.Linear)
    kind = "double" if settings.double_quantise else settings.quantise
    return own * (QUANTISED.get(kind, plain) if base else plain)
