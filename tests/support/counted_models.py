"""The noisy-labels task; each process of a run notes when it reads pretrained weights."""

import os
from typing import Any

import transformers

from distinf.studies.noisy_labels import NoisyLabels, NoisyLabelSettings

NOTES = "DISTINF_TEST_LOADS"  # in the environment: the file with a line, the process's id, for each
kind = transformers.AutoModelForSequenceClassification
real = kind.from_pretrained.__func__


def noted(cls: Any, *args: Any, **kwargs: Any) -> Any:
    with open(os.environ[NOTES], "a") as file:
        file.write(f"{os.getpid()}\n")
    return real(cls, *args, **kwargs)


kind.from_pretrained = classmethod(noted)  # type: ignore[assignment]


def task(settings: NoisyLabelSettings, seed: int) -> NoisyLabels:
    return NoisyLabels(settings, seed)
