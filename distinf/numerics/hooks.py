"""Per-sample gradients by forward and backward hooks, layer by layer.

One forward pass over the batch, and one backward pass for the activations' gradients only: in its
layer no parameter requires grad, so nothing is summed over samples to be thrown away. When the
gradient of a layer's output arrives, its rules (layer_gradients.py) give the per-sample gradients
of its parameters, which are stored or projected at once. Samples lie along dim 0 of the input and
output of every layer, and no layer may mix them.

Shape legend: N samples, P parameters in the layout, K directions.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from distinf.errors import InputError
from distinf.numerics.curvature import Batch, Loss, evaluating, per_sample, rows
from distinf.numerics.layer_gradients import layer_gradient, rules_of
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges, precision

Receive = Callable[[str, Tensor], None]  # a parameter's name and [N, entries]

OTHERWISE = "use method='vmap' or 'loop'"


def hook_gradients(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    """[N, P]: per-sample gradients in layout order, zero where a parameter is not used.

    The model runs in evaluation mode. Raises InputError, naming the parameter, for a layer that
    has no rules, one that sees other rows than the samples, or a parameter used outside its layer.
    """
    grads_NP = _zeros(model, layout, (rows(batch), layout.size))
    spans = layout.spans

    def store(name: str, grads: Tensor) -> None:
        grads_NP[:, spans[name]] = grads

    _differentiate(model, loss, batch, layout, store)
    return grads_NP


def projected_gradients(
    model: nn.Module, loss: Loss, batch: Batch, layout: Layout, directions_KP: Tensor
) -> tuple[Tensor, Tensor]:
    """(coordinates [N, K], squared norms [N] in float64) of the per-sample gradients.

    Never holds [N, P]: a parameter's [N, entries] is projected when it is known, which for one
    used several times is after the last of its uses. A sample's norm is finite exactly if its
    gradient is; another sample's numbers never depend on it. Raises as hook_gradients does.
    """
    if directions_KP.dim() != 2 or directions_KP.shape[1] != layout.size:
        raise InputError(
            f"directions of shape {tuple(directions_KP.shape)} do not fit a layout of "
            f"{layout.size} parameters; give [K, {layout.size}]"
        )
    coordinates_NK = _zeros(model, layout, (rows(batch), len(directions_KP)))
    sqnorm_N = _zeros(model, layout, (rows(batch),)).double()
    spans = layout.spans

    def project(name: str, grads: Tensor) -> None:
        with precision("float32", grads.device):
            coordinates_NK.addmm_(grads, directions_KP[:, spans[name]].T.to(grads))
        sqnorm_N.add_(grads.double().square().sum(1))

    _differentiate(model, loss, batch, layout, project)
    return coordinates_NK, sqnorm_N


def _zeros(model: nn.Module, layout: Layout, shape: tuple[int, ...]) -> Tensor:
    """Zeros in the dtype and on the device of the layout's parameters."""
    parameters = list(layout.parameters(model).values())
    kind = reduce(torch.promote_types, (parameter.dtype for parameter in parameters))
    return parameters[0].new_zeros(shape, dtype=kind)


def _differentiate(
    model: nn.Module, loss: Loss, batch: Batch, layout: Layout, receive: Receive
) -> None:
    """One pass; `receive` gets each used parameter once."""
    uses = _Uses(model, layout, rows(batch), receive)
    if not uses.samples:
        return
    batch = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, batch)
    with evaluating(model), _frozen(model), torch.enable_grad(), uses.watched():
        for parameter in uses.parameters.values():
            parameter.requires_grad_()  # outside its own layer, where only this would show it
        with float_edges(model):
            total = per_sample(loss(model, batch), batch).sum()
        if total.requires_grad:
            inputs = [uses.root, *uses.parameters.values()]
            with torch.autocast(total.device.type, enabled=False):
                _, *elsewhere = torch.autograd.grad(total, inputs, allow_unused=True)
                uses.finish(elsewhere)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter requires grad; each is as it was afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@dataclass(eq=False)
class _Use:
    """One call of a layer: its input, until the gradient of its output has come."""

    module: nn.Module
    given: Tensor | None
    version: int


class _Uses:
    """The layers whose parameters are wanted, and what has come of their gradients so far."""

    def __init__(self, model: nn.Module, layout: Layout, samples: int, receive: Receive) -> None:
        self.samples = samples
        self.parameters = {name: model.get_parameter(name) for name in layout.names}
        self.layers = _wanted_layers(model, self.parameters)
        self.root = _zeros(model, layout, ()).requires_grad_()
        self._receive = receive
        self._waiting: Counter[str] = Counter()
        self._partial: dict[str, Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The hooks, for as long as this lasts."""
        with ExitStack() as stack:
            for module in self.layers:
                before = module.register_forward_pre_hook(self._enter)
                after = module.register_forward_hook(self._leave, with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _enter(self, module: nn.Module, _: Any) -> None:
        for name in self.layers[module].values():
            self.parameters[name].requires_grad_(False)

    def _leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor:
        for name in self.layers[module].values():
            self.parameters[name].requires_grad_()
        given = (args[0] if args else next(iter(kwargs.values()))).detach()
        if len(given) != self.samples or len(output) != self.samples:
            raise InputError(
                f"the layer of {self._name(module)!r} sees {len(given)} rows for {self.samples} "
                f"samples; hooks need the samples along its first dimension: {OTHERWISE}"
            )
        if not output.requires_grad:
            output = output + self.root  # here the graph begins
        if output.requires_grad:  # not under the model's own no_grad
            output.register_hook(partial(self._arrived, _Use(module, given, given._version)))
            self._waiting.update(self.layers[module].values())
        return output

    def _arrived(self, use: _Use, grad: Tensor) -> None:
        given, use.given = use.given, None
        assert given is not None
        if given._version != use.version:
            raise InputError(
                f"the input of the layer of {self._name(use.module)!r} is changed in place after "
                f"its use; leave that operation out of place, or {OTHERWISE}"
            )
        rules = rules_of(use.module)
        for local, name in self.layers[use.module].items():
            grads = layer_gradient(rules[local], use.module, given, grad)
            grads = grads.to(self.parameters[name].dtype)
            if name in self._partial:
                grads = self._partial.pop(name) + grads
            self._waiting[name] -= 1
            if self._waiting[name]:
                self._partial[name] = grads
            else:
                self._receive(name, grads)

    def finish(self, elsewhere: Sequence[Tensor | None]) -> None:
        """Hand over what waits for uses that the loss does not depend on.

        `elsewhere`: what gradient each parameter has from uses outside its layer, which hooks miss.
        """
        for name, grad in zip(self.parameters, elsewhere, strict=True):
            if grad is not None:
                raise InputError(
                    f"parameter {name!r} is also used outside its layer (tied by hand, say), where "
                    f"hooks miss it: {OTHERWISE}"
                )
        for name, grads in self._partial.items():
            self._receive(name, grads)

    def _name(self, module: nn.Module) -> str:
        return next(iter(self.layers[module].values()))


def _wanted_layers(
    model: nn.Module, wanted: Mapping[str, Tensor]
) -> dict[nn.Module, dict[str, str]]:
    """Layer -> its own name of a wanted parameter -> the layout's; InputError without a rule."""
    names = {id(parameter): name for name, parameter in wanted.items()}
    found: dict[nn.Module, dict[str, str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{path!r} normalises by the statistics of the batch, which mixes its samples: "
                f"{OTHERWISE}"
            )
        for local, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in names:
                continue
            name = names[id(parameter)]
            if local not in rules_of(module):
                raise InputError(
                    f"hooks know no rule for parameter {name!r} ({local} of a "
                    f"{type(module).__name__}): {OTHERWISE}, or leave it out of the blocks"
                )
            found.setdefault(module, {})[local] = name
    return found
