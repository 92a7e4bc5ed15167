"""Per-sample gradients.

Shape legend: N samples, P parameters in the layout.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from distinf.errors import InputError
from distinf.numerics.curvature import (
    Batch,
    Loss,
    applied,
    evaluating,
    per_sample,
    rows,
    sum_gradient,
)
from distinf.numerics.hooks import hook_gradients
from distinf.numerics.parameters import Layout

Method = Literal["vmap", "loop", "hooks"]


def per_sample_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    blocks: str = "all",
    *,
    chunk: int = 32,
    method: Method = "vmap",
) -> dict[str, Tensor]:
    """{parameter name: [N, entries]}: each sample's gradient of `loss(model, batch) -> [N]`.

    blocks: "all", "lora" or a regex on parameter names. The model runs in evaluation mode. `chunk`
    samples are differentiated at once; "loop" takes one at a time, for layers that vmap cannot
    pass (quantised ones); "hooks" is the fastest for the layers that it knows (hooks.py: linear,
    convolutions, norms), which see the samples along their first dimension. Non-finite gradients
    come back as they are: see finite_rows.
    """
    layout = Layout.of(model, blocks)
    grads_NP = flat_gradients(model, loss, batch, layout, chunk=chunk, method=method)
    return {name: grads_NP[:, span] for name, span in layout.spans.items()}


def flat_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    layout: Layout,
    *,
    chunk: int = 32,
    method: Method = "vmap",
) -> Tensor:
    """[N, P]: per-sample gradients in layout order, as per_sample_gradients makes them."""
    if method not in METHODS or chunk < 1:
        raise InputError(f"method {method!r} must be one of {[*METHODS]}, and chunk {chunk} >= 1")
    count = rows(batch)
    gradients = METHODS[method]
    parts = [
        gradients(model, loss, tree_map(lambda x, s=start: x[s : s + chunk], batch), layout)
        for start in range(0, count, chunk)
    ]
    empty = layout.gather(model).new_empty((0, layout.size))
    return torch.cat([empty, *parts])


def _vectorised(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    values = applied(model, loss)
    parameters = layout.parameters(model)

    def sample_loss(parameters: dict[str, Tensor], sample: Batch) -> Tensor:
        single = tree_map(lambda x: x[None], sample)
        return per_sample(values(parameters, single), single)[0]

    with evaluating(model):
        try:
            grads = vmap(grad(sample_loss), in_dims=(None, 0))(parameters, batch)
        except RuntimeError as error:
            raise InputError(
                f"vectorised per-sample gradients failed ({str(error).splitlines()[0]}); "
                "use method='loop'"
            ) from error
    return torch.cat([grads[name].flatten(1) for name in layout.names], dim=1)


def _one_by_one(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    samples = [tree_map(lambda x, i=i: x[i : i + 1], batch) for i in range(rows(batch))]
    return torch.stack([sum_gradient(model, loss, sample, layout) for sample in samples])


METHODS: dict[str, Callable[[nn.Module, Loss, Batch, Layout], Tensor]] = {
    "vmap": _vectorised,
    "loop": _one_by_one,
    "hooks": hook_gradients,
}


def finite_rows(gradients: Tensor | dict[str, Tensor]) -> Tensor:
    """bool [N]: which samples have finite gradients in every block; quarantine the others."""
    blocks = list(gradients.values()) if isinstance(gradients, dict) else [gradients]
    return torch.stack([torch.isfinite(block).flatten(1).all(1) for block in blocks]).all(0)
