"""Low-rank adapters (LoRA, arXiv 2106.09685) on a model's linear layers and full convolutions.

A layer's weight W becomes W + B A, of which only A and B are trained. A convolution's kernel
is taken as a matrix [outputs, inputs x kernel]; depthwise and grouped convolutions stay as they
are, and so do biases and norms.

Shape legend: O outputs of a layer, I its inputs (times the kernel's entries), R the rank.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from distinf.errors import InputError
from distinf.numerics.randomness import uniform


class LowRank(nn.Module):
    """weight -> weight + B A, with lora_A [R, I] given and lora_B zero.

    lora_B is kept flat, [O R]: LAMB scales a matrix's step by the matrix's norm, which would leave
    it next to zero for good, and gives vectors a plain step.
    """

    def __init__(self, weight: Tensor, down_RI: Tensor) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(down_RI.to(weight))
        self.lora_B = nn.Parameter(weight.new_zeros(len(weight) * len(down_RI)))

    def forward(self, weight: Tensor) -> Tensor:
        up_OR = self.lora_B.view(len(weight), -1)
        change = (up_OR @ self.lora_A).view(weight.shape)
        # The sum then has the weight's memory format, and convolutions keep to the same kernel.
        return weight + torch.empty_like(weight).copy_(change)


def add_adapters(model: nn.Module, rank: int, seed: int) -> list[nn.Parameter]:
    """Put adapters into `model`, freeze all else -> the parameters to train, in layer order.

    Every nn.Linear and every nn.Conv2d with groups=1 gets one, of at most `rank` and of no more
    than the layer's own rank. A is uniform on ±1/sqrt(I), from (seed, layer's name) alone, and B
    zero: the model computes what it did. Their names in named_parameters() end in lora_A and
    lora_B. Raises InputError if there is no such layer, or adapters already.
    """
    if rank < 1:
        raise InputError(f"adapter rank {rank} must be at least 1")
    layers = [(name, module) for name, module in model.named_modules() if _adaptable(module)]
    if not layers:
        raise InputError("adapters go on nn.Linear and nn.Conv2d (groups=1), and there is neither")
    for name, module in layers:
        if parametrize.is_parametrized(module, "weight"):
            raise InputError(f"the weight of '{name}' is parametrized already; merge that first")
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for name, module in layers:
        weight = module.get_parameter("weight")
        outputs, inputs = len(weight), prod(weight.shape[1:])
        least = min(rank, outputs, inputs)
        values = uniform(seed, f"adapter {name}", least * inputs) / inputs**0.5
        adapter = LowRank(weight, values.view(least, inputs))
        parametrize.register_parametrization(module, "weight", adapter)
        trained += [adapter.lora_A, adapter.lora_B]
    return trained


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
