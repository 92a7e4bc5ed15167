"""A pretrained classifier with low-rank adapters and a new head, the rest frozen."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.errors import InputError
from distinf.gram.blocks import HEAD_NAMES
from distinf.numerics.randomness import number
from distinf.studies.language.adapters import adapt, initialise
from distinf.studies.language.known import KNOWN
from distinf.studies.language.peft_files import begin_from
from distinf.studies.language.pretrained import base_of, loading, own, positions, refuse_other_files
from distinf.studies.language.quantised import quantisation, stay_differentiable
from distinf.studies.language.settings import LoraSettings
from distinf.studies.noisy_labels.classes import PAIR
from distinf.studies.noisy_labels.settings import ModelSettings
from distinf.studies.noisy_labels.vocabulary import compress


def load_config(settings: ModelSettings, classes: int = len(PAIR)) -> Any:
    """The model's configuration, with a head of so many classes."""
    with loading(settings) as (transformers, where, options):
        config = transformers.AutoConfig.from_pretrained(where, **_head(classes), **options)
    longest = positions(config.get_text_config())
    if longest is not None and settings.max_length > longest:
        raise InputError(
            f"model.max_length: {settings.max_length} is more than the {longest} positions of "
            f"{settings.name}; lower it"
        )
    return config


def _head(classes: int) -> dict[str, Any]:
    """What a configuration says of the head, whatever a checkpoint's own one was for."""
    return {"num_labels": classes, "problem_type": "single_label_classification"}


def load_model(
    settings: ModelSettings,
    lora: LoraSettings,
    seed: int,
    pad: int,
    kept: np.ndarray | None = None,
    classes: int = len(PAIR),
) -> nn.Module:
    """The classifier in its initial state, which depends on the seed alone.

    Its frozen weights are those of all models of these settings (pretrained.base_of); they are
    quantised by CUDA where there is one, and then stay there. pad: the id of the padding token
    in the data; kept: int64 [V'], the tokens whose embeddings stay (vocabulary.py). A checkpoint's
    own head is never used: it may be one of other classes.
    """
    load_config(settings, classes)
    model = own(base_of(settings, classes, lambda: _base(settings, classes)), HEAD_NAMES)
    if kept is not None:
        compress(model, kept)
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number(seed, "noisy_labels/model"))
        adapt(model, lora, getattr(torch, settings.dtype), HEAD_NAMES)
    initialise(model, seed, "noisy_labels/weights")
    if lora.adapter:
        begin_from(model, lora, settings.name)
    made: nn.Module = model.eval()
    return made


def _base(settings: ModelSettings, classes: int) -> nn.Module:
    """The checkpoint's classifier, whole; a head that it lacks is drawn alike every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number(0, "noisy_labels/model"))
        with loading(settings) as (transformers, where, options):
            model, told = transformers.AutoModelForSequenceClassification.from_pretrained(
                where,
                dtype=getattr(torch, settings.dtype),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_head(classes),
                **quantisation(settings),
                **options,
            )
        inside = f"{model.base_model_prefix}."  # beside it, and as its pooler, is the head
        refuse_other_files(
            settings, model, told, lambda name: not name.startswith(inside) or ".pooler." in name
        )
    stay_differentiable(model, settings)
    base: nn.Module = model
    return base


def shapes_config(settings: ModelSettings, classes: int = len(PAIR)) -> Any:
    """The model's configuration; of some also without a network (language/known.py)."""
    if settings.name not in KNOWN:
        return load_config(settings, classes)
    import transformers

    kind, values = KNOWN[settings.name]
    return transformers.AutoConfig.for_model(kind, **_head(classes), **values)


def meta_model(
    settings: ModelSettings,
    lora: LoraSettings,
    vocabulary: int | None = None,
    classes: int = len(PAIR),
) -> nn.Module:
    """The adapted classifier with shapes and no values: needs its configuration only.

    vocabulary: how many tokens' embeddings are left. One model for the same settings, whose
    embedding is that of the last call.
    """
    model, whole = _adapted_shapes(settings, lora, classes)
    embedding: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
    embedding.weight = nn.Parameter(whole if vocabulary is None else whole[:vocabulary], False)
    return model


@lru_cache(maxsize=2)  # seconds for a large model, and every cell asks
def _adapted_shapes(
    settings: ModelSettings, lora: LoraSettings, classes: int
) -> tuple[nn.Module, torch.Tensor]:
    config = shapes_config(settings, classes)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        with loading(settings) as (transformers, _, options):
            model = transformers.AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=options["trust_remote_code"]
            )
        adapt(model, lora, torch.float32, HEAD_NAMES)
    model.is_quantized = settings.quantise != "none"
    return model, model.get_input_embeddings().weight.detach()
