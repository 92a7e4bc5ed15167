"""Frozen weights of 4 or 8 bits, by bitsandbytes, through which every derivative passes.

Weights are stored as bitsandbytes has them (Dettmers et al., LLM.int8(), 2022, and QLoRA, 2023);
products are with the weights that they stand for. So activations are not quantised, as LLM.int8()
does in columns that all rows of a batch decide on: a row's loss would depend on the others.
"""

import importlib.util
import types
from typing import Any

import torch
from torch import Tensor, nn

from distinf.errors import InputError, install_command
from distinf.gram.blocks import HEAD_NAMES
from distinf.studies.language.settings import Pretrained


def quantisation(settings: Pretrained) -> dict[str, Any]:
    """What from_pretrained takes; nothing where weights are not quantised."""
    if settings.quantise == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"model.quantise: {settings.quantise} needs bitsandbytes: {install_command('llm')}"
        )
    from transformers import BitsAndBytesConfig

    four = settings.quantise == "4bit"
    return {
        "device_map": {"": "cuda" if torch.cuda.is_available() else "cpu"},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=four,
            load_in_8bit=not four,
            llm_int8_skip_modules=list(HEAD_NAMES),
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=settings.double_quantise,
            bnb_4bit_compute_dtype=getattr(torch, settings.computed),
        ),
    }


def stay_differentiable(model: nn.Module, settings: Pretrained) -> None:
    """Have the quantised layers compute by `_Product`, in place.

    bitsandbytes' own functions pass neither vmap nor forward mode. On some CPUs it also repacks
    4-bit weights when a model in evaluation mode first runs, and no gradient passes them then, of
    which it says nothing (0.50).
    """
    for layer in model.modules():  # the adapters' own classes have the same names
        if type(layer).__module__.startswith("bitsandbytes") and isinstance(layer, nn.Linear):
            _compute_by_product(layer, getattr(torch, settings.computed))


def _compute_by_product(layer: Any, kind: torch.dtype) -> None:
    if type(layer).__name__ == "Linear8bitLt" and layer.weight.CB is not None:
        layer.init_8bit_state()
    layer.compute_dtype = kind
    layer.forward = types.MethodType(_forward, layer)


def _forward(layer: Any, x: Tensor) -> Tensor:
    """x W^T + b, in the layer's dtype or autocast's; in float64, by which products are checked."""
    device, own = x.device.type, x.dtype
    mixed = torch.is_autocast_enabled(device)
    if own != torch.float64:
        x = x.to(torch.get_autocast_dtype(device) if mixed else layer.compute_dtype)
    found: Tensor = _Product.apply(x, layer, False)
    if layer.bias is not None:
        found = found + layer.bias.to(found.dtype)
    return found if mixed else found.to(own)


class _Product(torch.autograd.Function):
    """x W^T, or x W, for a frozen W that is made of its few bits for each product, and not kept.

    It is linear in x, so that every derivative is such a product again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: Any, transposed: bool) -> Tensor:
        weight = _weight(layer, x.dtype)
        return x @ (weight if transposed else weight.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.layer, ctx.transposed = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Product.apply(grad, ctx.layer, not ctx.transposed), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return _Product.apply(tangent, ctx.layer, ctx.transposed)


def _weight(layer: Any, kind: torch.dtype) -> Tensor:
    """[O, I]: what the stored bits stand for."""
    if type(layer).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        found: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(kind)
        return found
    scales: Tensor = layer.state.SCB / 127
    whole: Tensor = layer.state.CB.to(kind) * scales.to(kind)[:, None]
    return whole
