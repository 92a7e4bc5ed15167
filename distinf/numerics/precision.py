"""Reduced precision, as a switch around whole passes over a model."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from distinf.errors import InputError

Precision = Literal["float32", "tf32", "bfloat16"]

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


@contextmanager
def precision(kind: Precision, device: torch.device) -> Iterator[None]:
    """Run what is inside at this precision on `device`; what was set before comes back.

    float32: exact products (TF32 off). tf32: CUDA's 10-bit mantissa products, float32 elsewhere.
    bfloat16: autocast; weights and gradients stay float32 (losses too: see float_edges).
    """
    if kind not in get_args(Precision):
        raise InputError(
            f"precision {kind!r} is unknown; use one of {', '.join(get_args(Precision))}"
        )
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(_tf32(kind == "tf32"))
        if kind == "bfloat16":
            # A cached cast would outlive an update of the weight, or a transform's level.
            stack.enter_context(torch.autocast(device.type, torch.bfloat16, cache_enabled=False))
        elif torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """CUDA's float32 products with or without TF32, by torch's switch of each operation."""
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def float_edges(model: nn.Module, *, transforms: bool = False) -> Iterator[None]:
    """Under autocast, the outputs of `model` come back as float32, so that losses are in float32.

    Set `transforms` where torch.func's (jvp, vmap) run inside: normalisation layers then work on
    float32 inputs, since those transforms cannot pass a layer of mixed types. Without autocast
    this does nothing.
    """
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device):
            norms = [m for m in model.modules() if transforms and isinstance(m, NORMS)]
            for module in norms:
                stack.callback(module.register_forward_pre_hook(_widen_inputs).remove)
            stack.callback(model.register_forward_hook(_widen_outputs).remove)
        yield


def _wide(value: Any) -> Any:
    low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if low else value


def _widen_inputs(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_wide(value) for value in args)


def _widen_outputs(_: nn.Module, __: Any, output: Any) -> Any:
    return tree_map(_wide, output)
