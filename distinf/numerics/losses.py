"""A loss on a model: evaluated as influence needs it, its gradients, and what is refused."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distinf.errors import InputError
from distinf.numerics.batches import Batch, rows
from distinf.numerics.own_parameters import (
    Parameters,
    gradients_by,
    refuse_reached_otherwise,
    requiring_grad,
)
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges

Loss = Callable[[nn.Module, Batch], Tensor]
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


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
