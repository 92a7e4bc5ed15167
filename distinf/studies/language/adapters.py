"""Low-rank adapters in a pretrained model, and which of its weights are trained.

Adapters are injected into the model itself, so names stay the model's own, such as
`bert.encoder.layer.0.attention.self.query.lora_A.default.weight` and `classifier.weight`.
"""

import difflib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.randomness import number
from distinf.studies.language.settings import LoraSettings

QUERY_VALUE = (
    ("query", "value"),  # BERT, RoBERTa
    ("q_proj", "v_proj"),  # Llama, Mistral, Qwen
    ("q_lin", "v_lin"),  # DistilBERT
    ("qkv_proj",),  # Phi-3
    ("c_attn",),  # GPT-2
)


def adapt(model: Any, lora: LoraSettings, dtype: torch.dtype, heads: Sequence[str] = ()) -> None:
    """Add the adapters, in place; they and the modules `heads` at the top can be trained, all else
    is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=adapted_layers(model, lora.targets, heads),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Conv1D's transposed weights, which peft sees to
        inject_adapter_in_model(config, model)
    # peft's own, since transformers' add_adapter can ask for a peft that is not out yet. Its mark
    # is set all the same: the Trainer refuses quantised weights without it.
    model._hf_peft_config_loaded = True
    for name, parameter in model.named_parameters():
        trained = ".lora_" in name or name.split(".")[0] in heads
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.to(dtype)


def adapted_layers(
    model: nn.Module, targets: Sequence[str], heads: Sequence[str] = ()
) -> list[str]:
    """Full names of the layers called `targets`, those of `heads` aside."""
    last = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if _is_linear(module) and name.split(".")[0] not in heads
    }
    known = sorted(set(last.values()))
    if not targets:
        targets = next((names for names in QUERY_VALUE if {*names} <= {*known}), ())
        if not targets:
            raise InputError(
                "lora.targets: this architecture's query and value projections are not known; "
                f"name layers among {', '.join(known)}"
            )
    for target in targets:
        if target not in known:
            near = difflib.get_close_matches(target, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"
            raise InputError(f"lora.targets: the model has no layer '{target}'; {hint}")
    return [name for name, end in last.items() if end in targets]


@torch.no_grad()
def initialise(model: Any, seed: int, purpose: str) -> None:
    """What is trained from (seed, purpose), the same on every device and for every dtype.

    A: Kaiming-uniform as peft's; B: 0; the head: normal with the model's initializer_range, biases
    0. Drawn in float32 on the CPU.
    """
    draw = torch.Generator().manual_seed(number(seed, purpose))
    std = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        values = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=draw)
        elif ".lora_B." not in name and not name.endswith("bias"):
            values.normal_(0.0, std, generator=draw)
        parameter.copy_(values)


def trained_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """The trainable parameters, copied; bfloat16 ones as float32, which holds them exactly."""
    return {
        name: parameter.detach().float().cpu().numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
