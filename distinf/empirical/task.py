"""What the empirical recipe asks of a task beyond `tasks.task.Task`, all of it optional."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch


@runtime_checkable
class Based(Protocol):
    """A task whose model is trained on something else first, once, in the run."""

    def base(self, device: torch.device, tell: Callable[[float], None]) -> Mapping[str, np.ndarray]:
        """Its weights, by name as in model().state_dict(); tell(share done) now and then."""


@runtime_checkable
class Related(Protocol):
    """A task that can say how rows of both splits belong together."""

    def relations(self, split: str) -> Mapping[str, np.ndarray]:
        """Columns [rows]: "sample", int, the same of a sample wherever it is; and, where there are
        such, "group", str, its class; "level", str, how it was disturbed, "" for not at all."""
