"""Per-sample gradients of one layer's parameters, from its input and its output's gradient.

RULES is the register: a layer type, then its parameters, each with a function (module, input,
gradient of the output) -> [N, ...] that has the parameter's entries in their own order. Add a type
here and hooks.py knows it. Linear layers are outer products (Goodfellow, arXiv 1510.01799);
convolutions become one with N times the groups (Rochette et al., arXiv 1912.06015); an embedding's
gradients stay sparse.

Shape legend: N samples, L positions, I inputs, O outputs, C channels, S positions of a grid.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from distinf.numerics.sparse import SparseRows

Rule = Callable[[Any, Tensor, Tensor], Tensor | SparseRows]

SLAB = 16_384  # entries of a sample from which on a CPU takes samples one by one


def rules_of(module: nn.Module) -> Mapping[str, Rule]:
    """The rules by parameter name; none for an unknown type, or one with a forward of its own.

    A norm of an unknown type has one if its weight scales what it normalises, as that of every
    decoder family of Transformers does (Llama's, Gemma's 1 + weight, T5's).
    """
    for kind in type(module).__mro__:
        for key in (kind, f"{kind.__module__}.{kind.__qualname__}"):
            if key in RULES:
                return RULES[key]
        if OVERRIDES & vars(kind).keys():
            break
    return {"weight": _by_probing} if _is_scaled_norm(module) else {}


def limit_of(module: nn.Module) -> str | None:
    """Why the rules do not hold for a layer with these settings; None where they do."""
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "its max_norm changes the weight during the forward pass"
    if isinstance(module, nn.Embedding) and module.scale_grad_by_freq:
        return "its scale_grad_by_freq counts tokens over the whole batch"
    if any(parameter.is_complex() for parameter in module.parameters(recurse=False)):
        return "it is complex"
    return None


def layer_gradient(
    rule: Rule, module: nn.Module, given: Tensor, grad: Tensor
) -> Tensor | SparseRows:
    """[N, entries] by `rule`, in the dtype that the layer worked in or a wider one."""
    if given.is_floating_point():
        given = given.to(grad.dtype)  # autocast casts a layer's input inside the layer
    if isinstance(module, nn.Embedding):
        return rule(module, given, grad)  # one pass over the ids of all samples
    if grad.device.type != "cpu" or grad[0].numel() < SLAB or isinstance(rule, Outer):
        return _flat(rule(module, given, grad))
    # One sample's activations stay in the cache: half the time of a wide convolutional network.
    pairs = zip(given.split(1), grad.split(1), strict=True)
    return torch.cat([_flat(rule(module, x, g)) for x, g in pairs])


def _flat(grads: Tensor | SparseRows) -> Tensor:
    assert isinstance(grads, Tensor)
    return grads.flatten(1)


def wide(values: Tensor) -> Tensor:
    """At least float32: sums over positions are never taken in less."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


@dataclass(frozen=True)
class Outer:
    """The rule of a weight [O, I], or [I, O] if `inputs_first`: outer products over positions."""

    inputs_first: bool = False

    def __call__(self, module: nn.Module, given: Tensor, grad: Tensor) -> Tensor:
        x_NLI, g_NLO = (wide(t).reshape(len(t), -1, t.shape[-1]) for t in (given, grad))
        rows, columns = (x_NLI, g_NLO) if self.inputs_first else (g_NLO, x_NLI)
        if rows.shape[-1] >= 16 * columns.shape[-1]:  # as LoRA's B: a sixth of the time on a CPU
            return torch.bmm(columns.mT, rows).mT
        return torch.bmm(rows.mT, columns)

    def sides(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """What belongs to the weight's rows and columns, as (input's, output's)."""
        return (rows, columns) if self.inputs_first else (columns, rows)


def narrowed(values: Tensor, factor: Tensor) -> Tensor:
    """[..., p]: an Outer rule's input or gradient [..., I] by a projection's factor [I, p]."""
    values, device = wide(values), values.device.type
    off = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else None
    with off or nullcontext():
        return values @ factor.to(values.dtype)


def _sum_of_positions(module: nn.Module, given: Tensor, grad: Tensor) -> Tensor:
    return wide(grad).reshape(len(grad), -1, grad.shape[-1]).sum(1)


def _embedding_rows(module: nn.Embedding, given: Tensor, grad: Tensor) -> SparseRows:
    ids = given.reshape(-1)
    samples = torch.arange(len(given), device=ids.device).repeat_interleave(len(ids) // len(given))
    rows = wide(grad).reshape(len(ids), -1)
    if module.padding_idx is not None:
        real = ids != module.padding_idx
        samples, ids, rows = samples[real], ids[real], rows[real]
    return SparseRows.summed(samples, ids, rows, len(given), module.num_embeddings)


def patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, given: Tensor) -> Tensor:
    """[N, C, S..., K...]: what a convolution's kernel meets at each position of its output."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    given = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    windows = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for axis, (size, stride, dilation) in enumerate(windows, start=2):
        given = given.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return given


def _conv_weight(module: nn.Conv2d, given: Tensor, grad: Tensor) -> Tensor:
    samples, axes = len(given), given.dim() - 2
    pads = module._reversed_padding_repeated_twice  # (left, right) of the last axis first
    before, after = pads[-2::-2], pads[-1::-2]
    if module.padding_mode != "zeros" or before != after:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        given = functional.pad(given, pads, mode=mode)
        before = [0] * axes
    window = (*module.kernel_size, *module.stride, *(pad + 1 for pad in before), module.groups)
    if all(size == 1 for size in window):
        return torch.bmm(grad.flatten(2), given.flatten(2).mT)
    x, g = given, grad
    if samples > 1:  # else left alone: reshaped strides would hide that they are channels_last
        x, g = (t.reshape(1, -1, *t.shape[2:]) for t in (given, grad))
    shape = (samples * module.out_channels, *module.weight.shape[1:])
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        g, x, x.new_empty(()).expand(shape), None, module.stride, before, module.dilation,
        False, [0] * axes, samples * module.groups, [False, True, False],
    )[1].reshape(samples, -1)  # fmt: skip


def _channel_sum(module: nn.Module, given: Tensor, grad: Tensor) -> Tensor:
    """A bias per channel: [N, C, ...] summed over positions."""
    return wide(grad).reshape(*grad.shape[:2], -1).sum(2)


def _batch_norm_weight(module: nn.BatchNorm2d, given: Tensor, grad: Tensor) -> Tensor:
    mean, variance = module.running_mean, module.running_var
    assert mean is not None
    assert variance is not None
    normed = functional.batch_norm(wide(given), wide(mean), wide(variance), eps=module.eps)
    return _channel_sum(module, given, normed * grad)


def _group_norm_weight(module: nn.GroupNorm, given: Tensor, grad: Tensor) -> Tensor:
    normed = functional.group_norm(wide(given), module.num_groups, eps=module.eps)
    return _channel_sum(module, given, normed * grad)


def _layer_norm_weight(module: nn.LayerNorm, given: Tensor, grad: Tensor) -> Tensor:
    normed = functional.layer_norm(wide(given), module.normalized_shape, eps=module.eps)
    return _layer_norm_bias(module, given, normed * grad)


def _rms_norm_weight(module: nn.RMSNorm, given: Tensor, grad: Tensor) -> Tensor:
    eps = torch.finfo(given.dtype).eps if module.eps is None else module.eps
    normed = functional.rms_norm(wide(given), module.normalized_shape, eps=eps)
    return (normed * grad).reshape(len(grad), -1, *module.normalized_shape).sum(1)


def _by_probing(module: nn.Module, given: Tensor, grad: Tensor) -> Tensor:
    """For an output that is affine in each entry of the weight: what the entry is multiplied by."""
    ones = torch.ones_like(module.get_parameter("weight"), dtype=grad.dtype)
    given = wide(given)
    normed = _with_weight(module, ones, given) - _with_weight(module, 0 * ones, given)
    return (normed * grad).reshape(len(grad), -1, len(ones)).sum(1)


def _with_weight(module: nn.Module, weight: Tensor, given: Tensor) -> Tensor:
    """The layer's forward pass with another weight, past its hooks."""
    twin = copy.copy(module)
    twin._parameters = {"weight": weight}  # type: ignore[dict-item]
    with torch.no_grad():
        found: Tensor = twin.forward(given)
    return found


def _is_scaled_norm(module: nn.Module) -> bool:
    """Whether a norm's output is affine in each entry of its weight, its only parameter.

    By name, and by trial: with a random weight it must give what the weights 0 and 1 foretell.
    """
    named = type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    parameters = dict(module.named_parameters(recurse=False))
    if not named or list(parameters) != ["weight"] or [*module.children(), *module.buffers()]:
        return False
    weight = parameters["weight"]
    if weight.dim() != 1 or not weight.is_floating_point():
        return False
    if weight.is_meta:  # a skeleton: the layer itself is tried when it is there
        return True
    tried = _TRIED.get(module)
    if tried is None:
        tried = _TRIED[module] = _foretold(module, weight)
    return tried


def _foretold(module: nn.Module, weight: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(len(weight), device=weight.device)
    given, trial = (torch.randn(2, 3, len(ones), generator=generator) for _ in range(2))
    given, trial = given.to(ones), trial[0, 0].to(ones)
    try:
        at_0, at_1, found = (_with_weight(module, w, given) for w in (0 * ones, ones, trial))
    except Exception:  # it takes other inputs, or more of them
        return False
    foretold = at_0 + (at_1 - at_0) * trial
    return found.shape == given.shape and torch.allclose(found.float(), foretold.float(), atol=1e-5)


def _layer_norm_bias(module: nn.LayerNorm, given: Tensor, grad: Tensor) -> Tensor:
    return wide(grad).reshape(len(grad), -1, *module.normalized_shape).sum(1)


_TRIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_CONVOLUTION: Mapping[str, Rule] = {"weight": _conv_weight, "bias": _channel_sum}
_BATCH_NORM: Mapping[str, Rule] = {"weight": _batch_norm_weight, "bias": _channel_sum}
RULES: dict[type[nn.Module] | str, Mapping[str, Rule]] = {  # or a type's dotted name
    nn.Linear: {"weight": Outer(), "bias": _sum_of_positions},
    "transformers.pytorch_utils.Conv1D": {
        "weight": Outer(inputs_first=True),
        "bias": _sum_of_positions,
    },
    nn.Embedding: {"weight": _embedding_rows},
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.BatchNorm3d: _BATCH_NORM,
    nn.GroupNorm: {"weight": _group_norm_weight, "bias": _channel_sum},
    nn.LayerNorm: {"weight": _layer_norm_weight, "bias": _layer_norm_bias},
    nn.RMSNorm: {"weight": _rms_norm_weight},
}
OVERRIDES = {"forward", "_conv_forward"}  # a subclass with one of these is another layer
