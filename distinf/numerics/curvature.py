"""Exact curvature products and gradients, as sums over samples, and their mean over a gang.

A loss is `loss(model, batch) -> [N]`, one value per sample of a batch (batches.py): sums over
samples then never depend on how they were cut into microbatches.

Shape legend: P parameters in the layout, N samples of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.numerics.batches import Batch
from distinf.numerics.krylov import Matvec
from distinf.numerics.losses import Loss, SplitLoss, applied, evaluating, per_sample
from distinf.numerics.losses import dense_embeddings as dense_embeddings  # by their former place
from distinf.numerics.losses import sample_losses as sample_losses
from distinf.numerics.losses import sum_gradient as sum_gradient
from distinf.numerics.own_parameters import Parameters
from distinf.numerics.parameters import Layout

Batches = Sequence[Batch] | Callable[[], Iterable[Batch]]
Kind = Literal["hessian", "hessian-double-backward", "gauss-newton", "gauss-newton-double-backward"]


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and attention by the one kernel that has second derivatives."""
    with evaluating(model), sdpa_kernel(SDPBackend.MATH):
        yield


def hessian_product(
    model: nn.Module, loss: Loss, batches: Batches, layout: Layout, kind: Kind = "hessian"
) -> Matvec:
    """v [P] -> H v [P] with H summed over all samples of `batches`, model in evaluation mode.

    kind: "hessian" is forward over reverse (not thread-safe in torch); "hessian-double-backward"
    is the same matrix by reverse over reverse: about 1.3 times slower on convolutions, faster on
    transformers, and works through quantised layers and in threads; "gauss-newton" leaves out the
    outputs' own curvature, is positive semi-definite, and needs a SplitLoss;
    "gauss-newton-double-backward" is that matrix without forward mode.
    `batches` is a sequence, or a function that gives an iterable anew for each product. Microbatch
    sums are added in fp64; the result has v's dtype.
    Raises InputError for a plain loss with "gauss-newton", or for a loss that is not [N].
    """
    product = _microbatch_product(model, loss, kind)

    def matvec(vector_P: Tensor) -> Tensor:
        parameters = layout.parameters(model)
        parts = layout.unflatten(vector_P)
        # In each parameter's own memory format (channels_last, say), which is the fast one.
        tangents = {name: torch.empty_like(p).copy_(parts[name]) for name, p in parameters.items()}
        total_P = torch.zeros_like(vector_P, dtype=torch.float64)
        with twice_differentiable(model):
            for batch in batches() if callable(batches) else batches:
                total_P += layout.flatten(product(parameters, tangents, batch))
        return total_P.to(vector_P.dtype)

    return matvec


def _microbatch_product(
    model: nn.Module, loss: Loss, kind: Kind
) -> Callable[[Parameters, Parameters, Batch], Parameters]:
    if kind in ("gauss-newton", "gauss-newton-double-backward"):
        return _gauss_newton(model, loss, forward_mode=kind == "gauss-newton")
    if kind not in ("hessian", "hessian-double-backward"):
        raise InputError(
            f"curvature kind {kind!r} is unknown; use 'hessian', 'hessian-double-backward', "
            "'gauss-newton' or 'gauss-newton-double-backward'"
        )
    values = applied(model, loss)

    def total(parameters: Parameters, batch: Batch) -> Tensor:
        return per_sample(values(parameters, batch), batch).sum()

    def forward_over_reverse(
        parameters: Parameters, tangents: Parameters, batch: Batch
    ) -> Parameters:
        def gradient(p: Parameters) -> Parameters:
            primal = vjp(lambda q: total(q, batch), p)
            value, pull_back = primal[0], primal[1]
            # Unlike torch.func.grad, neither keep nor build a graph of the backward pass.
            with torch.no_grad():
                return pull_back(torch.ones_like(value), retain_graph=False)[0]  # type: ignore[no-any-return]

        return jvp(gradient, (parameters,), (tangents,))[1]  # type: ignore[no-any-return]

    def reverse_over_reverse(
        parameters: Parameters, tangents: Parameters, batch: Batch
    ) -> Parameters:
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        inputs = list(leaves.values())
        with torch.enable_grad():
            first = torch.autograd.grad(
                total(leaves, batch), inputs, create_graph=True, materialize_grads=True
            )
            slopes = [(g * t).sum() for g, t in zip(first, tangents.values(), strict=True)]
            second = torch.autograd.grad(slopes, inputs, materialize_grads=True)
        return dict(zip(leaves, second, strict=True))

    return forward_over_reverse if kind == "hessian" else reverse_over_reverse


def _gauss_newton(
    model: nn.Module, loss: Loss, forward_mode: bool
) -> Callable[[Parameters, Parameters, Batch], Parameters]:
    if not isinstance(loss, SplitLoss):
        raise InputError(
            "curvature kind 'gauss-newton' needs a loss with .outputs(model, batch) and "
            ".from_outputs(outputs, batch); add them to the loss, or use kind 'hessian'"
        )
    outputs = applied(model, loss.outputs)

    def product(parameters: Parameters, tangents: Parameters, batch: Batch) -> Parameters:
        def forward(p: Parameters) -> Any:
            return outputs(p, batch)

        def total(out: Any) -> Tensor:
            return per_sample(loss.from_outputs(out, batch), batch).sum()

        tangent_outputs = jvp(forward, (parameters,), (tangents,))[1]
        primal = vjp(forward, parameters)
        outputs_at, pull_back = primal[0], primal[1]
        curved = jvp(grad(total), (outputs_at,), (tangent_outputs,))[1]
        return pull_back(curved)[0]  # type: ignore[no-any-return]

    def product_by_reverse(
        parameters: Parameters, tangents: Parameters, batch: Batch
    ) -> Parameters:
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        inputs = list(leaves.values())
        with torch.enable_grad():
            outputs_at, build = tree_flatten(outputs(leaves, batch))
            tangent_outputs = pushed_forward(outputs_at, inputs, list(tangents.values()))
            points = [out.detach().requires_grad_() for out in outputs_at]
            total = per_sample(loss.from_outputs(tree_unflatten(points, build), batch), batch).sum()
            first = torch.autograd.grad(total, points, create_graph=True, materialize_grads=True)
            slopes = [(g * t).sum() for g, t in zip(first, tangent_outputs, strict=True)]
            curved = torch.autograd.grad(slopes, points, materialize_grads=True)
            found = torch.autograd.grad(outputs_at, inputs, curved, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    return product if forward_mode else product_by_reverse


def pushed_forward(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], tangents: Sequence[Tensor]
) -> Sequence[Tensor]:
    """J t, the outputs' derivatives along the inputs' tangents, without forward mode.

    J'u is linear in u, so its derivative along t is J t.
    """
    duals = [torch.zeros_like(out, requires_grad=True) for out in outputs]
    pulled = torch.autograd.grad(outputs, inputs, duals, create_graph=True, materialize_grads=True)
    slopes = [(g * t).sum() for g, t in zip(pulled, tangents, strict=True)]
    return torch.autograd.grad(slopes, duals, retain_graph=True, materialize_grads=True)


def sharded_mean_product(
    products: Mapping[int, Matvec],
    *,
    count: int,
    collective: Collective,
    reduction: Literal["ordered", "allreduce"] = "ordered",
) -> Matvec:
    """v -> (1 / count) times the sum over all ranks' shards of their products.

    `products` holds this rank's shards (collective.owned(shards)); `count` is the number of samples
    over all ranks. "ordered" adds shard results in fp64 and in shard order and returns fp64, the
    same bits for any number of ranks; "allreduce" is the fast path, in v's dtype and rank order.
    """
    if count < 1:
        raise InputError(f"the mean over {count} samples is undefined; give at least one sample")
    if reduction not in ("ordered", "allreduce"):
        raise InputError(f"reduction {reduction!r} is unknown; use 'ordered' or 'allreduce'")
    shards = sorted(products)

    def ordered(vector_P: Tensor) -> Tensor:
        none = vector_P.new_empty((0, len(vector_P)))
        parts_SP = torch.cat([none, *(products[s](vector_P)[None] for s in shards)])
        return collective.ordered_sum(parts_SP) / count

    def fast(vector_P: Tensor) -> Tensor:
        total_P = torch.zeros_like(vector_P, dtype=torch.float64)
        for shard in shards:
            total_P += products[shard](vector_P)
        return collective.all_reduce(total_P.to(vector_P.dtype)) / count

    return ordered if reduction == "ordered" else fast


def microbatch_rows(bytes_per_sample: int, budget_bytes: int) -> int:
    """Most samples whose activations fit `budget_bytes`; InputError if not even one does."""
    if bytes_per_sample < 1 or budget_bytes < bytes_per_sample:
        raise InputError(
            f"one sample needs {bytes_per_sample / 2**20:.1f} MiB of the "
            f"{budget_bytes / 2**20:.1f} MiB for activations; raise the memory budget, or shorten "
            "or shrink the sample"
        )
    return budget_bytes // bytes_per_sample
