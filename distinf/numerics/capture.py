"""Per-sample gradients.

Shape legend: N samples, P parameters in the layout.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from distinf.errors import InputError
from distinf.numerics.batches import Batch, as_tensors, rows, split, take
from distinf.numerics.curvature import (
    Loss,
    applied,
    evaluating,
    per_sample,
    refuse_unusable,
    refuse_without_gradient,
    sum_gradient,
)
from distinf.numerics.hooks import block_gradients, hook_gradients
from distinf.numerics.parameters import Layout
from distinf.numerics.projection import TwoSided
from distinf.numerics.sparse import SparseRows

Method = Literal["vmap", "loop", "hooks"]


@torch.inference_mode(False)
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
    finite_rows. A complex parameter's are complex, dL/dRe + i dL/dIm.

    `batch`: tensors with the samples along dim 0, or arrays or lists of texts, in any containers
    (batches.py). Raises InputError where their numbers of rows differ, and for a loss that
    depends on none of the parameters.
    """
    layout = Layout.of(model, blocks, embeddings=embeddings, real=False)
    refuse_unusable(model, layout)
    batch = as_tensors(batch, model.get_parameter(layout.names[0]).dtype.to_real())
    hooked = embeddings or project is not None
    method = method or ("hooks" if hooked else "vmap")
    _check(method, chunk)
    if method != "hooks":
        if hooked:
            raise InputError(f"embeddings and project need method='hooks', not {method!r}")
        found = _flat_blocks(model, loss, batch, layout, chunk=chunk, method=method)
    else:
        parts = [
            block_gradients(model, loss, part, layout, project=project)
            for part in [*_chunks(batch, chunk)] or [batch]
        ]
        found = {name: _cat([part[name] for part in parts]) for name in layout.names}
    if rows(batch) and not any(_some(block) for block in found.values()):
        refuse_without_gradient(model, loss, _chunks(batch, chunk), layout)
    return found


def _flat_blocks(
    model: nn.Module, loss: Loss, batch: Batch, layout: Layout, **how: Any
) -> dict[str, Tensor | SparseRows]:
    """Slices of flat_gradients; of a real parameter real, where another one is complex."""
    grads_NP = flat_gradients(model, loss, batch, layout, **how)
    found: dict[str, Tensor | SparseRows] = {}
    for name, span in layout.spans.items():
        real = grads_NP.is_complex() and not model.get_parameter(name).is_complex()
        found[name] = grads_NP[:, span].real if real else grads_NP[:, span]
    return found


def _some(block: Tensor | SparseRows) -> bool:
    """Whether there is an entry that is not zero; mostly the first row tells."""
    values = block.rows if isinstance(block, SparseRows) else block
    return any(bool(row.any()) for row in values)


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
        yield take(batch, slice(start, start + size))


def _cat(parts: Sequence[Tensor | SparseRows]) -> Tensor | SparseRows:
    sparse = [part for part in parts if isinstance(part, SparseRows)]
    return SparseRows.cat(sparse) if sparse else torch.cat([*parts])  # type: ignore[list-item]


def _vectorised(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    values = applied(model, loss)
    parameters = layout.parameters(model)
    tensors, rebuilt = split(batch)

    def sample_loss(parameters: dict[str, Tensor], sample: Sequence[Tensor]) -> Tensor:
        single = rebuilt([x[None] for x in sample])
        return per_sample(values(parameters, single), single)[0]

    with evaluating(model):
        try:
            grads = vmap(grad(sample_loss), in_dims=(None, 0))(parameters, tensors)
        except RuntimeError as error:
            raise InputError(
                f"vectorised per-sample gradients failed ({str(error).splitlines()[0]}); "
                "use method='loop'"
            ) from error
    sizes = dict(zip(layout.names, layout.lengths, strict=True))
    return torch.cat([grads[name].reshape(-1, size) for name, size in sizes.items()], dim=1)


def _one_by_one(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    samples = [take(batch, slice(i, i + 1)) for i in range(rows(batch))]
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
