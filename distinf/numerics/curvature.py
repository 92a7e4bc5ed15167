"""Exact curvature products and gradients, as sums over samples, and their mean over a gang.

A loss is `loss(model, batch) -> [N]`, one value per sample of a batch (batches.py): sums over
samples then never depend on how they were cut into microbatches.

Shape legend: P parameters in the layout, N samples of a batch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.numerics.batches import Batch, rows
from distinf.numerics.krylov import Matvec
from distinf.numerics.own_parameters import (
    Parameters,
    gradients_by,
    refuse_reached_otherwise,
    requiring_grad,
)
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges

Loss = Callable[[nn.Module, Batch], Tensor]
Batches = Sequence[Batch] | Callable[[], Iterable[Batch]]
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
Kind = Literal["hessian", "hessian-double-backward", "gauss-newton", "gauss-newton-double-backward"]


@runtime_checkable
class SplitLoss(Protocol):
    """A per-sample loss that can be split at the model's outputs: what Gauss-Newton needs.

    `loss(model, batch)` must equal `from_outputs(outputs(model, batch), batch)`. Outputs are a
    pytree of tensors in which the loss is convex (logits, say).
    """

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor: ...

    def outputs(self, model: nn.Module, batch: Batch) -> Any: ...

    def from_outputs(self, outputs: Any, batch: Batch) -> Tensor: ...


class _Applied(nn.Module):
    """A module whose forward is `function(model, batch)`, so its parameters can be swapped."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Batch], Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, batch: Batch) -> Any:
        return self.function(self.model, batch)


def applied(
    model: nn.Module, function: Callable[[nn.Module, Batch], Any]
) -> Callable[[Parameters, Batch], Any]:
    """`(parameters, batch) -> function(model with these parameters, batch)`."""
    module, looked = _Applied(model, function), False

    def call(parameters: Parameters, batch: Batch) -> Any:
        nonlocal looked
        named = {f"model.{name}": parameters[of] for name, of in _homes(model, parameters).items()}
        with float_edges(model, transforms=True):
            # torch's own tying swaps twice in a module that has two names, and so loses what it was
            found = functional_call(module, named, (batch,), tie_weights=False)
        if not looked:
            refuse_reached_otherwise(model, parameters, found)
        looked = True
        return found

    return call


def _homes(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Where each named parameter is to be swapped -> its name: once in every module that has it."""
    known = {id(model.get_parameter(name)): name for name in names}
    return {
        f"{path}.{local}" if path else local: known[id(parameter)]
        for path, module in model.named_modules()
        for local, parameter in module._parameters.items()
        if id(parameter) in known
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every module, and each module's own mode again afterwards.

    Meanwhile an embedding's gradients are dense: torch's sparse ones pass no transform, and have
    no second derivatives. Nor have cuDNN's recurrent layers, whose backward is for training alone.
    Attention's inference path, which leaves out padded positions, is off as in training.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    modes = [(module, module.training) for module in model.modules()]
    recurrent = any(isinstance(module, nn.RNNBase) for module, _ in modes)
    library = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
    sparse = dense_embeddings(model)
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with library:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            if module.training != training:
                module.training = training
        for embedding in sparse:
            embedding.sparse = True


def dense_embeddings(model: nn.Module) -> list[nn.Embedding | nn.EmbeddingBag]:
    """Have every embedding give dense gradients -> those that gave sparse ones."""
    found = [m for m in model.modules() if isinstance(m, EMBEDDINGS) and m.sparse]
    for embedding in found:
        embedding.sparse = False
    return found


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and attention by the one kernel that has second derivatives."""
    with evaluating(model), sdpa_kernel(SDPBackend.MATH):
        yield


def noting(loss: Loss, noted: list[Tensor]) -> Loss:
    """`loss`, whose values [N] are appended to `noted` as often as it is called."""

    def noted_loss(model: nn.Module, batch: Batch) -> Tensor:
        values = per_sample(loss(model, batch), batch)
        noted.append(values.detach())
        return values

    return noted_loss


def per_sample(values: Tensor, batch: Batch) -> Tensor:
    """`values` if it is [N]; InputError otherwise (a mean would make results batch-dependent)."""
    if not isinstance(values, Tensor) or values.shape != (rows(batch),):
        shown = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values)
        raise InputError(
            f"the loss returned {shown} for {rows(batch)} samples; return one "
            "value per sample, [N] (reduction='none', then a sum or mean within each sample)"
        )
    if not values.is_floating_point():
        raise InputError(f"the loss returned {values.dtype} values; return real numbers")
    return values


def sum_gradient(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    """[P]: gradient of the loss summed over the batch's samples, model in evaluation mode.

    Zero for a parameter that the loss does not depend on; see refuse_without_gradient.
    """
    found = layout.parameters(model)
    for name, gradient in _sum_gradients(model, loss, batch, layout).items():
        found[name] = torch.zeros_like(found[name]) if gradient is None else gradient
    return layout.flatten(found)


def _sum_gradients(
    model: nn.Module, loss: Loss, batch: Batch, layout: Layout
) -> dict[str, Tensor | None]:
    """Each parameter's gradient; None for one that the loss does not depend on."""
    with evaluating(model), requiring_grad(model, layout.names) as own, torch.enable_grad():
        return gradients_by(own, sample_losses(model, loss, batch).sum())


def sample_losses(model: nn.Module, loss: Loss, batch: Batch) -> Tensor:
    """[N]: the loss of each sample, as `per_sample` takes them."""
    with float_edges(model, transforms=True):
        return per_sample(loss(model, batch), batch)


def refuse_without_gradient(
    model: nn.Module, loss: Loss, batches: Iterable[Batch], layout: Layout
) -> None:
    """InputError for a loss that depends on no parameter of the layout in any of the batches.

    Such a loss is computed without gradients (torch.no_grad, detach), or through what has none
    (argmax, an accuracy). A gradient that is there and zero is legal.
    """
    for batch in batches:
        if any(g is not None for g in _sum_gradients(model, loss, batch, layout).values()):
            return
    shown = ", ".join(layout.names[:3]) + (", …" if len(layout.names) > 3 else "")
    raise InputError(
        f"the loss has no gradient with respect to any wanted parameter ({shown}); compute it from "
        "the model's outputs without torch.no_grad, detach, .item() or argmax"
    )


def refuse_unusable(model: nn.Module, layout: Layout) -> None:
    """InputError for a parameter of the layout that has no values, or can have no gradient, and
    for weights that none passes."""
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))  # a scripted module's are no dictionary
        state = getattr(own.get("weight"), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise InputError(
                f"no gradient passes the 4-bit weights of {path!r}, which were repacked for "
                "inference: set support_avx512bf16_for_cpu = False on its layers before the "
                "model is first evaluated, and load it anew"
            )
    for name in layout.names:
        parameter = model.get_parameter(name)
        if parameter.is_meta:
            raise InputError(
                f"parameter {name!r} is on the meta device, without values: load the weights first "
                "(model.to_empty(device=...), then load_state_dict)"
            )
        if parameter.is_inference():
            raise InputError(
                f"parameter {name!r} was made under torch.inference_mode(), so it can have no "
                "gradient: make or load the model outside of it"
            )


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
