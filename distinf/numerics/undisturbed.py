"""Trying a model out without leaving a trace: its state and all random numbers as they were."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

RandomState = tuple[Any, ...]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Afterwards buffers, modes, requires_grad, .grad and random numbers are what they were."""
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    state = random_state(model)
    try:
        yield
    finally:
        _set_random_state(model, state)
        for parameter, flag, grad in flags:
            parameter.requires_grad_(flag)
            parameter.grad = grad
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer
                if buffer is not None and content is not None:
                    buffer.copy_(content)


def random_state(model: nn.Module) -> RandomState:
    """Where the generators stand that a loss may draw from; equal if none has drawn between."""
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    numbers = (kind, np.asarray(keys).tobytes(), place, has_gauss, gauss)
    on_devices = [torch.cuda.get_rng_state(device) for device in _gpus(model)]
    states = [torch.get_rng_state(), *on_devices]
    return (random.getstate(), numbers, *(state.numpy().tobytes() for state in states))


def _set_random_state(model: nn.Module, state: RandomState) -> None:
    plain, (kind, keys, place, has_gauss, gauss), on_cpu, *on_devices = state
    random.setstate(plain)
    words = np.frombuffer(keys, dtype=np.uint32)
    np.random.set_state((kind, words, place, has_gauss, gauss))
    torch.set_rng_state(_bytes(on_cpu))
    for device, content in zip(_gpus(model), on_devices, strict=True):
        torch.cuda.set_rng_state(_bytes(content), device)


def _bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _gpus(model: nn.Module) -> list[torch.device]:
    """The CUDA devices that the model lies on."""
    found = {p.device for p in model.parameters() if p.device.type == "cuda"}
    return sorted(found, key=str)
