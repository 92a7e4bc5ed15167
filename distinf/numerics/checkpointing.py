"""Activations computed again in the backward pass instead of kept (Chen, Xu, Zhang and Guestrin,
Training Deep Nets with Sublinear Memory Cost, 2016), in evaluation mode too, where Hugging Face's
own switch does nothing."""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from distinf.errors import InputError


def recompute_blocks(model: nn.Module) -> None:
    """Have each block keep its input alone for a backward pass, in place.

    Gradients by hooks or a loop, and products by double backward, are the same to the bit;
    vmap and forward mode do not pass. InputError where there is no such list.
    """
    blocks = layers_alike(model)
    if not blocks:
        raise InputError("checkpointing: the model has no list of blocks of one type; leave it out")
    config = getattr(model, "config", None)
    if getattr(config, "use_cache", False):  # keys and values would be added to it twice
        config.use_cache = False  # type: ignore[union-attr]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def layers_alike(model: nn.Module) -> Sequence[nn.Module]:
    """The members of the model's longest list of modules of one type: a transformer's layers. None
    where there are not two."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    alike = [[*blocks] for blocks in lists if len({type(block) for block in blocks}) == 1]
    blocks = max(alike, key=len, default=[])
    return blocks if len(blocks) > 1 else []
