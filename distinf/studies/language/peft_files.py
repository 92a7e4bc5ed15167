"""Adapters in the files of PEFT: written, and begun from.

PEFT prefixes a model's names by `base_model.model.` and leaves out the adapter's own, "default".
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.errors import InputError
from distinf.store.regular import read_given
from distinf.studies.language.identity import file_digest
from distinf.studies.language.pretrained import ADAPTER
from distinf.studies.language.settings import LoraSettings

CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
PREFIX, OWN = "base_model.model.", ".default."


def peft_files(
    weights: Mapping[str, np.ndarray], lora: LoraSettings | None, base: str, task: str
) -> Mapping[str, bytes]:
    """Trained weights by the model's names -> files by name; without adapters the weights alone."""
    from safetensors.numpy import save

    if lora is None:
        return {"model.safetensors": save(dict(weights))}
    adapted = {name.split(".lora_")[0] for name in weights if ".lora_" in name}
    config = {
        "peft_type": "LORA", "task_type": task, "base_model_name_or_path": base,
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
        "target_modules": sorted(adapted), "inference_mode": True, "bias": "none",
        "modules_to_save": sorted({n.split(".")[0] for n in weights if ".lora_" not in n}) or None,
    }  # fmt: skip
    saved = {PREFIX + name.replace(OWN, "."): values for name, values in weights.items()}
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: save(saved)}


def told(lora: LoraSettings) -> dict[str, Any]:
    """Its settings, the adapter by its content."""
    found = asdict(lora)
    if lora.adapter:
        found["adapter"] = file_digest(str(Path(lora.adapter, WEIGHTS)), "lora.adapter")
    else:
        del found["adapter"]
    return found


@torch.no_grad()
def begin_from(model: nn.Module, lora: LoraSettings, base: str) -> None:
    """Put the adapter's weights in place of the drawn ones; InputError where it is of another base
    model or of other settings. A head that it lacks stays as drawn."""
    config, tensors = _read(lora.adapter)
    where = f"lora.adapter: {lora.adapter}"
    of = config.get("base_model_name_or_path") or base
    if Path(of).name != Path(base).name:
        raise InputError(f"{where} is of the model {of}, not of model.name={base}; give its own")
    for name, own in (("r", lora.rank), ("lora_alpha", lora.alpha)):
        if config.get(name, own) != own:
            setting = {"r": "rank", "lora_alpha": "alpha"}[name]
            raise InputError(
                f"{where} has {name}={config[name]:g}; set lora.{setting}={config[name]:g}"
            )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    names = {PREFIX + name.replace(OWN, "."): name for name in trained}
    strange = sorted(tensors.keys() - names.keys())
    lacking = sorted(name for name in names.keys() - tensors.keys() if ".lora_" in name)
    if strange or lacking:
        told_of = f"has {strange[0]}, which" if strange else f"lacks {lacking[0]}, which"
        has = "is not adapted" if strange else "is adapted"
        raise InputError(
            f"{where} {told_of} {has} in {base} with lora.targets="
            f"{','.join(lora.targets) or '()'}; give an adapter of this model, or its lora.targets"
        )
    for key, values in tensors.items():
        parameter = trained[names[key]]
        if values.shape != parameter.shape:
            raise InputError(
                f"{where}: {key} is {[*values.shape]}, where {base} has {[*parameter.shape]}; give "
                "an adapter of this model"
            )
        parameter.copy_(values)


def _read(folder: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        config = json.loads(read_given(Path(folder, CONFIG)))
        found = load(read_given(Path(folder, WEIGHTS)))
    except OSError as error:
        raise InputError(
            f"lora.adapter: {error.filename}: {error.strerror}; give a folder with {CONFIG} and "
            f"{WEIGHTS}"
        ) from None
    except (ValueError, SafetensorError) as error:
        raise InputError(f"lora.adapter: {folder} is no adapter of PEFT ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"lora.adapter: {folder}/{CONFIG} is no adapter's configuration")
    return config, found
