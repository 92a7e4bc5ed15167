"""Watching the layers of chosen parameters through one forward and one backward pass.

hooks.py runs the passes; here are the hooks. What is made of a use is the sink's (sinks.py).
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointFunction

from distinf.errors import InputError, OtherMethod
from distinf.numerics.layer_gradients import limit_of, rules_of
from distinf.numerics.parameters import Layout
from distinf.numerics.sinks import Names, Sink, Use

Layers = Mapping[nn.Module, Names]
OTHERS = ("vmap", "loop")  # methods for what hooks cannot do
LEAVE_OUT = ", or leave it out of the blocks"
REENTRANT = (
    "per-sample gradients do not pass reentrant gradient checkpointing; set its "
    "use_reentrant=False, or turn checkpointing off"
)


class _Kept(torch.autograd.Function):
    """Keeps a tensor as autograd keeps activations: checkpointing drops it and makes it again."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return torch.zeros_like(root)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise AssertionError("nothing is computed from this function's result")


class LayerUses:
    """The layers whose parameters are wanted, watched: each use of one goes to a sink.

    root: what graphs begin at that have no other tensor that requires grad. backward: whether the
    backward pass has begun; a layer called after that is called again, for a checkpoint.
    """

    def __init__(self, layers: Layers, samples: int, sink: Sink) -> None:
        self.samples = samples
        self.layers = layers
        self.parameters = {
            name: module.get_parameter(local)
            for module, names in layers.items()
            for local, name in names.items()
        }
        first = next(iter(self.parameters.values()))
        self.root = first.new_zeros((), dtype=torch.float32).requires_grad_()
        self.backward = False
        self._sink = sink
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """The hooks, for as long as this lasts."""
        with ExitStack() as stack:
            for module in self.layers:
                before = module.register_forward_pre_hook(self._enter)
                # Before other hooks, which may change the output.
                after = module.register_forward_hook(self._leave, prepend=True, with_kwargs=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _enter(self, module: nn.Module, _: Any) -> None:
        for name in self.layers[module].values():
            self.parameters[name].requires_grad_(False)

    def _leave(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor:
        names = self.layers[module]
        for name in names.values():
            self.parameters[name].requires_grad_()
        given = (args[0] if args else next(iter(kwargs.values()))).detach()
        if len(given) != self.samples or len(output) != self.samples:
            raise OtherMethod(
                f"the layer of {self._name(module)!r} sees {len(given)} rows for {self.samples} "
                "samples; hooks need the samples along its first dimension",
                OTHERS,
                LEAVE_OUT,
            )
        if not torch.is_grad_enabled():  # the model's own no_grad: no gradient to wait for
            if _in_reentrant_checkpoint():
                raise InputError(REENTRANT)
            return output
        if not output.requires_grad:
            output = output + self.root  # here the graph begins
        kept = _Kept.apply(self.root, self._sink.keep(module, names, given))  # type: ignore[no-untyped-call]
        if not self.backward:
            # The list, as older PyTorch forgets what a node saved once nothing holds its output.
            output.register_hook(partial(self._arrived, module, [kept]))
            self._waiting.update(names.values())
        return output

    def _arrived(self, module: nn.Module, kept: list[Tensor], grad: Tensor) -> None:
        names = self.layers[module]
        self._waiting.subtract(names.values())
        waiting = {name for name in names.values() if self._waiting[name]}
        self._sink.receive(Use(module, names, self._input_of(module, kept), grad, waiting))

    def _input_of(self, module: nn.Module, kept: list[Tensor]) -> Tensor:
        node = kept.pop().grad_fn
        assert node is not None
        try:
            (given,) = node.saved_tensors  # type: ignore[attr-defined]
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise OtherMethod(
                f"the input of the layer of {self._name(module)!r} is changed in place after "
                "its use, where hooks lose it",
                OTHERS,
                ", or make that operation out of place",
            ) from error
        return given  # type: ignore[no-any-return]

    def finish(self, elsewhere: Mapping[Tensor, Tensor | None]) -> None:
        """Tell the sink that no further use comes.

        `elsewhere`: gradients of tensors, those parameters among them that are used outside their
        layer, where hooks miss it.
        """
        for name, parameter in self.parameters.items():
            if elsewhere.get(parameter) is not None:
                raise OtherMethod(
                    f"parameter {name!r} is also used outside its layer (tied by hand, say), where "
                    "hooks miss it",
                    OTHERS,
                    LEAVE_OUT,
                )
        self._sink.finish()

    def _name(self, module: nn.Module) -> str:
        return next(iter(self.layers[module].values()))


def _in_reentrant_checkpoint() -> bool:
    code = CheckpointFunction.forward.__code__
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is code:
            return True
    return False


def wanted_layers(model: nn.Module, layout: Layout) -> Layers:
    """The layers of a layout's parameters; InputError, naming the parameter, without a rule."""
    names = {id(model.get_parameter(name)): name for name in layout.names}
    found: dict[nn.Module, dict[str, str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{path!r} normalises by the statistics of the batch, which mixes its samples; "
                "give it running ones (track_running_stats=True)"
            )
        for local, parameter in module._parameters.items():  # named_parameters is slow
            if id(parameter) in names:
                name = names[id(parameter)]
                _check_rule(module, local, name)
                found.setdefault(module, {})[local] = name
    _check_ties(found)
    return found


def _check_rule(module: nn.Module, local: str, name: str) -> None:
    limit = limit_of(module)
    if limit or local not in rules_of(module):
        raise OtherMethod(
            f"hooks know no rule for parameter {name!r} ({local} of a {type(module).__name__}"
            f"{'; ' + limit if limit else ''})",
            OTHERS,
            LEAVE_OUT,
        )


def _check_ties(layers: Layers) -> None:
    kinds: dict[str, set[bool]] = {}
    for module, names in layers.items():
        for name in names.values():
            kinds.setdefault(name, set()).add(isinstance(module, nn.Embedding))
    for name, found in kinds.items():
        if len(found) > 1:
            raise OtherMethod(
                f"parameter {name!r} of an embedding is also another layer's (a tied head), so its "
                "gradient has no sparse form",
                ("loop",),
                LEAVE_OUT,
            )
