"""Which curvature product passes a model: forward mode where it does, else double backward.

Some operators have no forward derivative of their backward pass (an LSTM's or SiLU's on the CPU),
and a hand-written autograd.Function may have second derivatives that are wrong without a word.

Shape legend: P parameters in the layout.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from distinf.errors import InputError
from distinf.numerics.batches import Batch, mapped
from distinf.numerics.curvature import Kind, hessian_product, pushed_forward, twice_differentiable
from distinf.numerics.losses import Loss, SplitLoss, applied, sum_gradient
from distinf.numerics.parameters import Layout

BACKWARD_TWICE: dict[Kind, Kind] = {  # the same matrix without forward mode
    "hessian": "hessian-double-backward",
    "gauss-newton": "gauss-newton-double-backward",
}
STEP, TOLERANCE = 1e-5, 1e-2  # of central differences in float64, relative to the weights
WRONG = (
    "double backward gives another matrix than the gradient's differences do (an autograd.Function "
    "whose backward() cannot be differentiated?)"
)


def passing_kind(model: nn.Module, loss: Loss, batch: Batch, layout: Layout, kind: Kind) -> Kind:
    """`kind`, or where forward mode does not pass the model the same matrix by double backward.

    Tried on `batch`, by one product each; double backward is compared with central differences too.
    Raises InputError with torch's words if neither passes.
    """
    tries: list[Kind] = [kind, *([BACKWARD_TWICE[kind]] if kind in BACKWARD_TWICE else [])]
    parameters = layout.parameters(model)
    vector_P = torch.ones(layout.size, device=next(iter(parameters.values())).device)
    said: list[str] = []
    for tried in tries:
        try:
            hessian_product(model, loss, [batch], layout, tried)(vector_P)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, TypeError) as error:
            said.append(" ".join(str(error).split())[:200])
            continue
        if tried in BACKWARD_TWICE or _agrees(model, loss, batch, layout, tried):
            return tried
        said.append(WRONG)
    raise InputError(f"no product of {kind} passes this model and loss: {'; '.join(said)}")


def _agrees(model: nn.Module, loss: Loss, batch: Batch, layout: Layout, kind: Kind) -> bool:
    """Whether a product by double backward is what central differences in float64 give; True where
    the model does not run in float64."""
    try:
        wide = copy.deepcopy(model).double()
        batch = mapped(batch, _widened)
        generator = torch.Generator().manual_seed(0)
        vector_P = torch.randn(layout.size, generator=generator, dtype=torch.float64)
        vector_P = vector_P.to(next(wide.parameters()).device)
        if kind == "hessian-double-backward":
            return _same_hessian(wide, loss, batch, layout, vector_P)
        return _same_outputs(wide, loss, batch, layout, vector_P)
    except (RuntimeError, NotImplementedError, TypeError):
        return True


def _widened(path: str, leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _same_hessian(
    model: nn.Module, loss: Loss, batch: Batch, layout: Layout, vector_P: Tensor
) -> bool:
    product_P = hessian_product(model, loss, [batch], layout, "hessian-double-backward")(vector_P)
    step, (ahead_P, behind_P) = _differences(
        model, layout, vector_P, lambda: sum_gradient(model, loss, batch, layout)
    )
    return _close(product_P, (ahead_P - behind_P) / (2 * step), ahead_P.norm() / step)


def _same_outputs(
    model: nn.Module, loss: Any, batch: Batch, layout: Layout, vector_P: Tensor
) -> bool:
    assert isinstance(loss, SplitLoss)
    outputs = applied(model, loss.outputs)
    leaves = {name: p.detach().requires_grad_() for name, p in layout.parameters(model).items()}
    parts = layout.unflatten(vector_P)
    with twice_differentiable(model), torch.enable_grad():
        found = pushed_forward(
            tree_leaves(outputs(leaves, batch)), list(leaves.values()), [parts[n] for n in leaves]
        )

    def at_point() -> Tensor:
        with twice_differentiable(model), torch.no_grad():
            at = tree_leaves(outputs(layout.parameters(model), batch))
        return torch.cat([out.reshape(-1) for out in at])

    step, (ahead, behind) = _differences(model, layout, vector_P, at_point)
    pushed = torch.cat([part.reshape(-1) for part in found])
    return _close(pushed, (ahead - behind) / (2 * step), ahead.norm() / step)


def _differences(
    model: nn.Module, layout: Layout, vector_P: Tensor, function: Any
) -> tuple[float, tuple[Tensor, Tensor]]:
    """The step, and function() with the weights a step ahead and a step behind."""
    parameters, parts = layout.parameters(model), layout.unflatten(vector_P)
    size = layout.flatten({name: p.detach() for name, p in parameters.items()}).norm()
    step = STEP * float(max(size, 1.0) / vector_P.norm())
    found = []
    for times in (step, -2 * step):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter += times * parts[name]
        found.append(function().detach())
    return step, (found[0], found[1])


def _close(one: Tensor, two: Tensor, scale: Tensor) -> bool:
    """Within the tolerance, or below what differences of such numbers can show."""
    return bool((one - two).norm() <= TOLERANCE * two.norm() + 1e-12 * scale)
