"""What each element of a sample adds to the sample's influence.

Where a sample's loss is a sum over elements (a slot's over its resource elements, a sentence's over
its tokens), its score x_q . g_i = x_q . sum_e grad loss_ie is one too, and a single forward-mode
derivative of the elements' losses along x_q gives every term of it.

Shape legend: P parameters in the layout, N samples of a batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jvp

from distinf.errors import InputError
from distinf.numerics.batches import Batch, rows
from distinf.numerics.curvature import Parameters, twice_differentiable
from distinf.numerics.losses import applied
from distinf.numerics.parameters import Layout

Parts = Callable[[nn.Module, Batch], Tensor]  # -> [N, ...]


def element_shares(
    model: nn.Module, parts: Parts, batch: Batch, layout: Layout, direction_P: Tensor
) -> Tensor:
    """[N, ...]: direction . gradient of each element's part of the loss, in evaluation mode.

    `parts(model, batch)` -> [N, ...] are the elements' losses, NaN where an element has none; it is
    NaN here too. Summed over a sample's elements: direction . the sample's gradient. For direction
    x_q = (H + damping)^-1 g_q that is the sample's classic score, > 0 meaning that it helps.
    Forward mode: not thread-safe in torch. Raises InputError if `parts` are not per sample.
    """
    values = applied(model, parts)
    parameters = layout.parameters(model)
    direction = layout.unflatten(direction_P)
    tangents = {
        name: torch.empty_like(value).copy_(direction[name]) for name, value in parameters.items()
    }

    def forward(parameters: Parameters) -> Tensor:
        return values(parameters, batch)  # type: ignore[no-any-return]

    with twice_differentiable(model), torch.no_grad():
        found = jvp(forward, (parameters,), (tangents,))
    losses, shares = found[0], found[1]
    if losses.ndim < 2 or len(losses) != rows(batch):
        raise InputError(
            f"parts() returned shape {tuple(losses.shape)} for {rows(batch)} samples; return the "
            "loss of each element, [N, ...]"
        )
    return torch.where(torch.isnan(losses), torch.nan, shares)
