"""Watching the layers of chosen parameters through one forward and one backward pass.

hooks.py runs the passes; here are the hooks, and what they keep of each use of a layer until the
gradient of its output arrives.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointFunction

from distinf.errors import InputError, OtherMethod
from distinf.numerics.layer_gradients import Outer, layer_gradient, limit_of, narrowed, rules_of
from distinf.numerics.projection import TwoSided
from distinf.numerics.sparse import SparseRows

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


@dataclass(eq=False)
class _Use:
    """One call of a layer: what keeps its input, until the output's gradient.

    `kept` itself, as older PyTorch forgets what a node saved once nothing holds its output.
    """

    module: nn.Module
    kept: Tensor | None


class LayerUses:
    """The layers whose parameters are wanted, and what has come of their gradients so far.

    root: what graphs begin at that have no other tensor that requires grad. backward: whether the
    backward pass has begun; a layer called after that is called again, for a checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        samples: int,
        receive: Callable[[str, Tensor | SparseRows], None],
        project: TwoSided | None = None,
        least: int = 0,
    ) -> None:
        self.samples = samples
        self.parameters = parameters
        self.layers = wanted_layers(model, parameters)
        first = next(iter(parameters.values()))
        self.root = first.new_zeros((), dtype=torch.float32).requires_grad_()
        self.backward = False
        self._factors = factors_of(self.layers, parameters, project, least)
        self._receive = receive
        self._waiting: Counter[str] = Counter()
        self._partial: dict[str, Any] = {}

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

    def zeros(self, name: str) -> Tensor | SparseRows:
        """The gradient [N, entries] of a parameter that the loss does not depend on."""
        parameter, kind = self.parameters[name], self._kind(name)
        for module, names in self.layers.items():
            if name in names.values() and isinstance(module, nn.Embedding):
                none = torch.zeros(0, dtype=torch.int64, device=parameter.device)
                rows = parameter.new_zeros((0, parameter.shape[1]), dtype=kind)
                return SparseRows(none.new_zeros(self.samples + 1), none, rows, len(parameter))
        entries = parameter.numel()
        if name in self._factors:
            entries = self._factors[name][1].shape[1] ** 2
        return parameter.new_zeros((self.samples, entries), dtype=kind)

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
        kept = _Kept.apply(self.root, self._narrowed(module, given))
        if not self.backward:
            output.register_hook(partial(self._arrived, _Use(module, kept)))
            self._waiting.update(self.layers[module].values())
        return output

    def _narrowed(self, module: nn.Module, given: Tensor) -> Tensor:
        """What to keep of a layer's input: its projection, where that is all that is needed."""
        for local, name in self.layers[module].items():
            if name in self._factors:
                rule = rules_of(module)[local]
                assert isinstance(rule, Outer)
                return narrowed(given, rule.sides(*self._factors[name])[0])
        return given

    def _arrived(self, use: _Use, grad: Tensor) -> None:
        given = self._input_of(use)
        rules = rules_of(use.module)
        for local, name in self.layers[use.module].items():
            rule, grad_of_rule = rules[local], grad
            if name in self._factors and isinstance(rule, Outer):
                grad_of_rule = narrowed(grad, rule.sides(*self._factors[name])[1])
            grads = layer_gradient(rule, use.module, given, grad_of_rule).to(self._kind(name))
            if name in self._partial:
                grads = self._partial.pop(name) + grads
            self._waiting[name] -= 1
            if self._waiting[name]:
                self._partial[name] = grads
            else:
                self._receive(name, grads)

    def _input_of(self, use: _Use) -> Tensor:
        kept, use.kept = use.kept, None
        assert kept is not None
        assert kept.grad_fn is not None
        try:
            (given,) = kept.grad_fn.saved_tensors  # type: ignore[attr-defined]
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise OtherMethod(
                f"the input of the layer of {self._name(use.module)!r} is changed in place after "
                "its use, where hooks lose it",
                OTHERS,
                ", or make that operation out of place",
            ) from error
        return given

    def finish(self, elsewhere: Mapping[Tensor, Tensor | None]) -> None:
        """Hand over what waits for uses that the loss does not depend on.

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
        for name, grads in self._partial.items():
            self._receive(name, grads)

    def _name(self, module: nn.Module) -> str:
        return next(iter(self.layers[module].values()))

    def _kind(self, name: str) -> torch.dtype:
        return torch.promote_types(self.parameters[name].dtype, torch.float32)


def _in_reentrant_checkpoint() -> bool:
    code = CheckpointFunction.forward.__code__
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is code:
            return True
    return False


def factors_of(
    layers: Mapping[nn.Module, Mapping[str, str]],
    parameters: Mapping[str, nn.Parameter],
    project: TwoSided | None,
    least: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Projected weights' factors for their rows [O, p] and columns [I, p]."""
    if project is None:
        return {}
    found = {}
    for module, names in layers.items():
        for local, name in names.items():
            shape, device = parameters[name].shape, parameters[name].device
            if isinstance(rules_of(module)[local], Outer) and project.shrinks(shape, least):
                left, right = project.factors(name, shape, device)
                found[name] = (left.T, right)
    return found


def wanted_layers(
    model: nn.Module, wanted: Mapping[str, Tensor]
) -> dict[nn.Module, dict[str, str]]:
    """Layer -> its own name of a wanted parameter -> the layout's; InputError without a rule."""
    names = {id(parameter): name for name, parameter in wanted.items()}
    found: dict[nn.Module, dict[str, str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{path!r} normalises by the statistics of the batch, which mixes its samples; "
                "give it running ones (track_running_stats=True)"
            )
        for local, parameter in module.named_parameters(recurse=False):
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


def _check_ties(layers: Mapping[nn.Module, Mapping[str, str]]) -> None:
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
