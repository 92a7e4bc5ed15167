"""The order of a model's parameters in one flat vector, and the way there and back.

Shape legend: P parameters in the layout.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from distinf.errors import InputError

LORA = re.compile(r"(^|\.)lora_")


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the parameters that a flat vector of length `size` stands for."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(
        cls, model: nn.Module, blocks: str = "all", *, embeddings: bool = False, real: bool = True
    ) -> "Layout":
        """Trainable parameters in `named_parameters` order, filtered by `blocks`.

        `blocks` is "all", "lora" (names with a `lora_` component), or a regex searched in the
        dotted name. A shared parameter appears once, under its first name; one without entries is
        left out. With `embeddings`, also the weight of the input embedding, trainable or not: of
        `model.get_input_embeddings()`, or of the only nn.Embedding. Raises InputError if nothing
        matches, for a parameter that has no shape yet or, where `real`, is complex, and for a model
        of torch.jit.script.
        """
        pattern = _pattern(blocks)
        if isinstance(model, torch.jit.RecursiveScriptModule):
            raise InputError(
                "a scripted model's parameters can't be looked up by name; put it into a plain "
                "module: torch.nn.Sequential(model)"
            )
        inputs = _input_embedding(model) if embeddings else None
        everything = list(model.named_parameters())
        trainable = [(name, p) for name, p in everything if p.requires_grad]
        chosen = []
        for name, p in everything:
            if p is inputs or (p.requires_grad and pattern.search(name)):
                _refuse_odd(name, p, real)
                if p.numel():
                    chosen.append((name, p.shape))
        if not chosen:
            example = f"such as {trainable[0][0]!r}" if trainable else "none of them"
            raise InputError(
                f"blocks {blocks!r} matches no trainable parameter "
                f"({len(trainable)} are trainable, {example}); change the regex or unfreeze them"
            )
        return cls(tuple(name for name, _ in chosen), tuple(shape for _, shape in chosen))

    @property
    def size(self) -> int:
        """P, the length of the flat vector."""
        return sum(self.lengths)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each parameter, in order."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def spans(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector."""
        ends = [0]
        for length in self.lengths:
            ends.append(ends[-1] + length)
        return {name: slice(*span) for name, span in zip(self.names, pairwise(ends), strict=True)}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One vector [P] from a tensor per name; KeyError if a name is missing."""
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector [P], one per name and in the parameter's shape."""
        if vector.shape != (self.size,):
            raise InputError(
                f"a vector of shape {tuple(vector.shape)} does not fit a layout of {self.size} "
                "parameters; was it made with other blocks?"
            )
        parts = vector.split(self.lengths)
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def gather(self, model: nn.Module) -> Tensor:
        """The model's present values as a new vector [P]."""
        return self.flatten(self.parameters(model))

    def parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's own parameters of this layout, detached (no copy)."""
        return {name: model.get_parameter(name).detach() for name in self.names}

    def scatter_(self, model: nn.Module, vector: Tensor) -> None:
        """Write a vector [P] into the model's parameters, in place."""
        values = self.unflatten(vector)
        with torch.no_grad():
            for name in self.names:
                model.get_parameter(name).copy_(values[name])


def _refuse_odd(name: str, parameter: Tensor, real: bool) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise InputError(
            f"parameter {name!r} has no shape yet (a lazy layer): run the model once on a batch"
        )
    if real and parameter.is_complex():
        raise InputError(
            f"parameter {name!r} is complex, which only per_sample_gradients and influence take: "
            "keep its real and imaginary parts as two parameters, or leave it out of the blocks"
        )


def _input_embedding(model: nn.Module) -> Tensor:
    """The weight of the model's input embedding."""
    try:
        weight = model.get_input_embeddings().weight  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        found = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
        if len(found) != 1:
            raise InputError(
                f"embeddings asks for the input embedding, but the model has {len(found)} "
                "nn.Embedding layers; give it a method get_input_embeddings(), or leave it out"
            ) from None
        weight = found[0]
    if not any(weight is parameter for parameter in model.parameters()):
        raise InputError(
            "embeddings asks for the input embedding, but the weight of the model's "
            "get_input_embeddings() is no parameter of it; leave it out"
        )
    assert isinstance(weight, Tensor)
    return weight


def _pattern(blocks: str) -> re.Pattern[str]:
    if blocks == "all":
        return re.compile("")
    if blocks == "lora":
        return LORA
    try:
        return re.compile(blocks)
    except re.error as error:
        raise InputError(f"blocks {blocks!r} is not a valid regex: {error}") from error
