"""What a plan needs to know of a task, without its data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Shapes:
    """What `plan` needs to know without data and without a download.

    flops_per_sample             of one forward pass
    activation_bytes_per_sample  kept for one backward pass
    recomputed_bytes_per_sample  where each layer keeps its input alone; 0: that is not known
    row_bytes                    stored per row, by split; 0 where the task's data are its own
    weight_bytes                 of all parameters; 0: four a parameter
    tokens_per_row               on average; 0 where rows have no lengths
    trained                      how many of the parameters are; 0: all
    largest                      entries of the largest parameter that is; 0: as if all were one
    kept_bytes                   of weights that a process keeps on its host beside each model
    lengths                      tokens of some rows, ascending; () where rows have no lengths
    assumption                   what of this is not known and assumed, for people
    """

    parameters: int
    flops_per_sample: float
    activation_bytes_per_sample: float
    row_bytes: Mapping[str, float] = field(default_factory=dict)
    weight_bytes: float = 0.0
    tokens_per_row: float = 0.0
    trained: int = 0
    largest: int = 0
    kept_bytes: float = 0.0
    recomputed_bytes_per_sample: float = 0.0
    lengths: tuple[int, ...] = ()
    assumption: str = ""

    @property
    def tuned(self) -> int:
        """How many parameters are trained."""
        return self.trained or self.parameters

    @property
    def forwards(self) -> dict[str, float]:
        """Arithmetic of the primitives in forward passes: gradients of activations cost as much as
        one, and so do those of weights, where they are trained; a Hessian product (jvp over grad)
        costs nine, and through frozen weights four."""
        trained = self.tuned / max(self.parameters, 1)
        gradient = 2.0 + trained
        whole = {"forward": 1.0, "train": gradient, "gradient": gradient}
        return {**whole, "product": 4.0 + 5.0 * trained}

    def activations(self, recomputed: bool = False) -> float:
        """Bytes of a sample that a backward pass keeps, with layers computed again if so."""
        found = self.recomputed_bytes_per_sample if recomputed else 0.0
        return found or self.activation_bytes_per_sample

    def padded(self, rows: float = math.inf) -> float:
        """Tokens of a row once it is padded to the longest of so many, drawn at random, over those
        that rows have on average; without a number, to the longest there is."""
        if not self.lengths:
            return 1.0
        shares = (np.arange(len(self.lengths) + 1) / len(self.lengths)) ** rows
        expected = float(np.diff(shares) @ np.array(self.lengths))
        return max(1.0, expected * len(self.lengths) / sum(self.lengths))

    @property
    def model_bytes(self) -> float:
        return self.weight_bytes or 4.0 * self.parameters
