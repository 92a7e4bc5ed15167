"""What a training unit stores, as arrays by name: of the model what is not frozen, and its
optimizer's state."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.tasks.checkpoint import unfrozen


def model_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {f"model.{k}": v.detach().cpu().numpy() for k, v in unfrozen(model).items()}


def load_model(model: nn.Module, stored: Mapping[str, np.ndarray]) -> None:
    state = {name: torch.from_numpy(np.array(stored[f"model.{name}"])) for name in unfrozen(model)}
    model.load_state_dict(state, strict=False)  # what is frozen is as the task made it


def optimizer_arrays(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in _entries(optimizer.state.get(parameter, {}))
    }


def _entries(state: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield key, value.detach().cpu().numpy()
        elif isinstance(value, (int, float)):
            yield key, np.asarray(value, dtype=np.float64)
        else:
            raise InputError(f"task: optimizer state '{key}' is neither a tensor nor a number")


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, np.ndarray]
) -> None:
    """State by parameter name; a number comes back as int or float, a tensor as a tensor."""
    for name, parameter in model.named_parameters():
        prefix = f"optimizer.{name}."
        found = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
        for key, value in found.items():
            if value.ndim == 0 and value.dtype == np.float64:
                number = float(value)
                optimizer.state[parameter][key] = int(number) if number.is_integer() else number
            else:
                tensor = torch.from_numpy(np.array(value)).to(parameter.device)
                if tensor.shape == parameter.shape:  # strides too: sums follow memory order
                    tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
                optimizer.state[parameter][key] = tensor
