"""Per-sample gradients by forward and backward hooks, layer by layer.

One forward pass over the batch, and one backward pass for the activations' gradients only: in its
layer no parameter requires grad, so nothing is summed over samples to be thrown away. When the
gradient of a layer's output arrives, a sink (sinks.py) takes it with the layer's input: here to
store or project the per-sample gradients that the layer's rules (layer_gradients.py) give. Samples
lie along dim 0 of the input and output of every layer, and no layer may mix them.

Gradients are in float32 at least, whatever the parameters' dtype: products are summed over
positions in it.

Shape legend: N samples, P parameters in the layout, K directions, p rank of a projection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.numerics.batches import Batch, copied, mapped, rows
from distinf.numerics.layer_gradients import Outer, rules_of
from distinf.numerics.layer_uses import REENTRANT, Layers, LayerUses, wanted_layers
from distinf.numerics.losses import Loss, evaluating, per_sample
from distinf.numerics.own_parameters import graph_leaves
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges, precision
from distinf.numerics.projection import TwoSided
from distinf.numerics.sinks import ProjectedRowGradients, RowGradients, Sink
from distinf.numerics.sparse import SparseRows


def block_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    layout: Layout,
    *,
    project: TwoSided | None = None,
    least: int = 0,
) -> dict[str, Tensor | SparseRows]:
    """{parameter name: [N, entries]} in layout order, zero where a parameter is not used.

    An embedding's gradients are SparseRows. With `project`, the gradient G of a linear layer's
    weight that `project.shrinks(its shape, least)` is left G right, [N, p * p]; it is never formed.
    The model runs in evaluation mode. Raises InputError, naming the parameter, for a layer that
    has no rules, one that sees other rows than the samples, or a parameter used outside its layer.
    """
    found: dict[str, Tensor | SparseRows] = {}
    layers = wanted_layers(model, layout)
    factors = _factors(layers, project, least)
    watched_pass(model, loss, batch, layers, ProjectedRowGradients(found.__setitem__, factors))
    for module, names in layers.items():
        for local, name in names.items():
            if name not in found:
                found[name] = _no_gradient(module, local, rows(batch), factors.get(name))
    return {name: found[name] for name in layout.names}


def known_layers(
    model: nn.Module, layout: Layout, project: TwoSided | None = None, least: int = 0
) -> frozenset[str]:
    """The parameters whose gradients block_gradients projects.

    InputError, naming the parameter, for a layer of the layout that has no rules.
    """
    return frozenset(_factors(wanted_layers(model, layout), project, least))


def hook_gradients(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    """[N, P]: per-sample gradients in layout order, an embedding's too; else as block_gradients."""
    grads_NP = _zeros(model, layout, (rows(batch), layout.size))
    spans = layout.spans

    def store(name: str, grads: Tensor | SparseRows) -> None:
        dense = grads.dense().flatten(1) if isinstance(grads, SparseRows) else grads
        grads_NP[:, spans[name]] = dense

    watched_pass(model, loss, batch, wanted_layers(model, layout), RowGradients(store))
    return grads_NP


def projected_gradients(
    model: nn.Module, loss: Loss, batch: Batch, layout: Layout, directions_KP: Tensor
) -> tuple[Tensor, Tensor]:
    """(coordinates [N, K], squared norms [N] in float64) of the per-sample gradients.

    Never holds [N, P]: a parameter's [N, entries] is projected when it is known, which for one
    used several times is after the last of its uses. A sample's norm is finite exactly if its
    gradient is; another sample's numbers never depend on it. Raises as block_gradients does.
    """
    if directions_KP.dim() != 2 or directions_KP.shape[1] != layout.size:
        raise InputError(
            f"directions of shape {tuple(directions_KP.shape)} do not fit a layout of "
            f"{layout.size} parameters; give [K, {layout.size}]"
        )
    coordinates_NK = _zeros(model, layout, (rows(batch), len(directions_KP)))
    sqnorm_N = _zeros(model, layout, (rows(batch),)).double()
    spans = layout.spans

    def project(name: str, grads: Tensor | SparseRows) -> None:
        directions = directions_KP[:, spans[name]]
        if isinstance(grads, SparseRows):
            coordinates_NK.add_(grads.along(directions.to(grads.rows)))
            sqnorm_N.add_(grads.sqnorms())
            return
        with precision("float32", grads.device):
            coordinates_NK.addmm_(grads, directions.T.to(grads))
        sqnorm_N.add_(grads.double().square().sum(1))

    watched_pass(model, loss, batch, wanted_layers(model, layout), RowGradients(project))
    return coordinates_NK, sqnorm_N


def _zeros(model: nn.Module, layout: Layout, shape: tuple[int, ...]) -> Tensor:
    """Zeros on the device of the layout's parameters and in their dtype, or float32."""
    parameters = list(layout.parameters(model).values())
    kinds = (parameter.dtype for parameter in parameters)
    return parameters[0].new_zeros(shape, dtype=reduce(torch.promote_types, kinds, torch.float32))


def _no_gradient(
    module: nn.Module, local: str, samples: int, factors: tuple[Tensor, Tensor] | None
) -> Tensor | SparseRows:
    """The gradient [N, entries] of a parameter that the loss does not depend on."""
    parameter = module.get_parameter(local)
    kind = torch.promote_types(parameter.dtype, torch.float32)
    if isinstance(module, nn.Embedding):
        none = torch.zeros(0, dtype=torch.int64, device=parameter.device)
        no_rows = parameter.new_zeros((0, parameter.shape[1]), dtype=kind)
        return SparseRows(none.new_zeros(samples + 1), none, no_rows, len(parameter))
    entries = parameter.numel() if factors is None else factors[1].shape[1] ** 2
    return parameter.new_zeros((samples, entries), dtype=kind)


def _factors(
    layers: Layers, project: TwoSided | None, least: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Projected weights' factors for their rows [O, p] and columns [I, p]."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if project is None:
        return found
    for module, names in layers.items():
        for local, name in names.items():
            weight, rule = module.get_parameter(local), rules_of(module)[local]
            if isinstance(rule, Outer) and project.shrinks(weight.shape, least):
                left, right = project.factors(name, weight.shape, weight.device)
                found[name] = (left.T, right)
    return found


def watched_pass(model: nn.Module, loss: Loss, batch: Batch, layers: Layers, sink: Sink) -> None:
    """One forward and one backward pass in evaluation mode, each use of `layers` to the sink."""
    samples = rows(batch)
    if not samples:
        return
    batch = mapped(batch, lambda _, leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf)
    batch = copied(batch)  # a loss may change it in place
    uses = LayerUses(layers, samples, sink)
    with evaluating(model), _frozen(model), torch.enable_grad(), uses.watched():
        for parameter in uses.parameters.values():
            parameter.requires_grad_()  # outside its own layer, where only this would show it
        with float_edges(model):
            total = per_sample(loss(model, batch), batch).sum()
        if total.requires_grad:
            with torch.autocast(total.device.type, enabled=False):
                _backward(total, uses)


def _backward(total: Tensor, uses: LayerUses) -> None:
    # Whoever made them require grad: a model may do so itself (PEFT's enable_input_require_grads),
    # and a gradient is computed only on the way to a tensor that is asked for.
    leaves = graph_leaves(total)
    uses.backward = True
    try:
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise InputError(REENTRANT) from error
        raise
    uses.finish(dict(zip(leaves, grads, strict=True)))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires grad; each is as it was afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, flag in flags:
        if flag:
            parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
