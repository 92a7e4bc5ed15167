"""Per-sample gradients.

Shape legend: N samples, P parameters in the layout.
"""

from collections.abc import Callable, Iterator, Sequence
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
from distinf.numerics.hooks import block_gradients, hook_gradients
from distinf.numerics.parameters import Layout
from distinf.numerics.projection import TwoSided
from distinf.numerics.sparse import SparseRows

Method = Literal["vmap", "loop", "hooks"]


def per_sample_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    blocks: str = "all",
    *,
    chunk: int = 32,
    method: Method | None = None,
    embeddings: bool = False,
    project: TwoSided | None = None,
) -> dict[str, Tensor | SparseRows]:
    """{parameter name: [N, entries]}: each sample's gradient of `loss(model, batch) -> [N]`.

    blocks: "all", "lora" or a regex on parameter names. The model runs in evaluation mode. `chunk`
    samples are differentiated at once. method: "vmap"; "loop", one at a time, for layers that vmap
    cannot pass (quantised ones); "hooks", the fastest for the layers that it knows (hooks.py:
    linear, convolutions, norms, embeddings), which see the samples along their first dimension.

    `embeddings` adds the input embedding, frozen or not; `project` makes linear layers' weights
    [N, p * p]. Either takes the hooks (else None is vmap), where an embedding's gradients are
    SparseRows and all are float32 at least. Non-finite gradients come back as they are: see
    finite_rows.
    """
    layout = Layout.of(model, blocks, embeddings=embeddings)
    hooked = embeddings or project is not None
    method = method or ("hooks" if hooked else "vmap")
    _check(method, chunk)
    if method != "hooks":
        if hooked:
            raise InputError(f"embeddings and project need method='hooks', not {method!r}")
        grads_NP = flat_gradients(model, loss, batch, layout, chunk=chunk, method=method)
        return {name: grads_NP[:, span] for name, span in layout.spans.items()}
    parts = [
        block_gradients(model, loss, part, layout, project=project)
        for part in [*_chunks(batch, chunk)] or [batch]
    ]
    return {name: _cat([part[name] for part in parts]) for name in layout.names}


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
    _check(method, chunk)
    gradients = METHODS[method]
    parts = [gradients(model, loss, part, layout) for part in _chunks(batch, chunk)]
    return torch.cat([layout.gather(model).new_empty((0, layout.size)), *parts])


def _check(method: str, chunk: int) -> None:
    if method not in METHODS or chunk < 1:
        raise InputError(f"method {method!r} must be one of {[*METHODS]}, and chunk {chunk} >= 1")


def _chunks(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, rows(batch), size):
        yield tree_map(lambda x, s=start: x[s : s + size], batch)


def _cat(parts: Sequence[Tensor | SparseRows]) -> Tensor | SparseRows:
    sparse = [part for part in parts if isinstance(part, SparseRows)]
    return SparseRows.cat(sparse) if sparse else torch.cat([*parts])  # type: ignore[list-item]


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


def finite_rows(gradients: Tensor | SparseRows | dict[str, Tensor | SparseRows]) -> Tensor:
    """bool [N]: which samples have finite gradients in every block; quarantine the others."""
    blocks = list(gradients.values()) if isinstance(gradients, dict) else [gradients]
    found = [
        b.finite() if isinstance(b, SparseRows) else torch.isfinite(b).flatten(1).all(1)
        for b in blocks
    ]
    return torch.stack(found).all(0)
