"""Kinds of layer and of use that libraries for per-sample gradients test, written anew.

Those of kronfluence's tests (perceptrons, modules used twice, checkpointed ones, convolutions,
transformers), and uses that none of them knows: tied weights, functional calls, frozen parts.

Shape legend: N samples, T positions, D features.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.benchmarks.foreign_cases import Case

N, T, D = 4, 5, 6


class Called(nn.Module):
    """Modules and parameters by name, and a forward pass that is a function of them and x."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def kronfluence() -> Iterator[Case]:
    """Kinds of its tests/modules/test_per_sample_gradients.py."""
    yield _case("mlp", _mlp(), _rows())
    yield _case(
        "mlp without bias", nn.Sequential(_linear(bias=False), nn.ReLU(), _linear()), _rows()
    )
    once = _linear()
    yield _case("mlp, a module twice", nn.Sequential(once, nn.ReLU(), once, _linear()), _rows())
    yield _case(
        "mlp, checkpointed",
        Called(lambda m, x: checkpoint(m.body, x, use_reentrant=False), body=_mlp()),
        _rows(),
    )
    yield _case(
        "mlp, checkpointed, re-entrant",
        Called(lambda m, x: checkpoint(m.body, x, use_reentrant=True), body=_mlp()),
        _rows().requires_grad_(),
    )
    yield _case("mlp over positions", _mlp(), torch.randn(N, T, D))
    yield _case("mlp over a grid", _mlp(), torch.randn(N, T, 3, D))
    for bias in (True, False):
        for groups in (1, 2):
            conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2, groups=groups, bias=bias)
            body = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
            x = torch.randn(N, 4, 9, 9)
            body.eval()(x)
            yield _case(f"conv, {groups} groups" + ("" if bias else ", no bias"), body, x)
    words = torch.randint(0, 11, (N, T))
    for causal in (False, True):
        yield _case("gpt" if causal else "bert", _transformer(causal), words)
    yield _case("gpt, tied", _transformer(True, tied=True), words)


def odd() -> Iterator[Case]:
    """Layers and uses of parameters that a rule by layer can get wrong."""
    yield from _convolutions()
    yield from _norms()
    yield from _recurrent()
    yield from _embeddings()
    yield from _uses()


def _convolutions() -> Iterator[Case]:
    kinds = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d),
             3: (nn.Conv3d, nn.ConvTranspose3d)}  # fmt: skip
    for axes, (plain, transposed) in kinds.items():
        x = torch.randn(N, 4, *([7] * axes))
        for mode in ("zeros", "reflect", "replicate", "circular"):
            for more in ({"padding": 2}, {"padding": "same"}, {"padding": 2, "dilation": 2},
                         {"padding": 1, "stride": 2, "groups": 2}):  # fmt: skip
                conv = plain(4, 6, 3 - (more["padding"] == "same"), padding_mode=mode, **more)
                yield _case(f"{plain.__name__}, {mode}", conv, x)
        for more in ({}, {"stride": 2, "padding": 1, "output_padding": 1},
                     {"groups": 2, "dilation": 2}):  # fmt: skip
            yield _case(transposed.__name__, transposed(4, 6, 3, **more), x)
    yield _case("Conv2d, unbatched kernel", nn.Conv2d(4, 6, (1, 7)), torch.randn(N, 4, 7, 7))
    yield _case("Conv2d, depthwise", nn.Conv2d(4, 8, 3, groups=4), torch.randn(N, 4, 7, 7))


def _norms() -> Iterator[Case]:
    for axes, batch, instance in ((1, nn.BatchNorm1d, nn.InstanceNorm1d),
                                  (2, nn.BatchNorm2d, nn.InstanceNorm2d),
                                  (3, nn.BatchNorm3d, nn.InstanceNorm3d)):  # fmt: skip
        x = torch.randn(N, 4, *([5] * axes))
        moved = _moved(batch(4), x)
        yield _case("BatchNorm", moved, x)
        yield _case("BatchNorm, no statistics", batch(4, track_running_stats=False), x)
        for tracked in (False, True):
            norm = instance(4, affine=True, track_running_stats=tracked)
            yield _case("InstanceNorm" + (", tracked" if tracked else ""), _moved(norm, x), x)
        for groups in (1, 2, 4):
            yield _case("GroupNorm", nn.GroupNorm(groups, 4), x)
    for shape in ((D,), (T, D)):
        x = torch.randn(N, T, D)
        for norm in (nn.LayerNorm(shape), nn.LayerNorm(shape, bias=False), nn.RMSNorm(shape),
                     nn.RMSNorm(shape, eps=0.1)):  # fmt: skip
            yield _case(type(norm).__name__, norm, x)
    yield _case("GroupNorm, no positions", nn.GroupNorm(2, D), _rows())
    yield _case("BatchNorm1d, no positions", nn.BatchNorm1d(D), _rows())


def _recurrent() -> Iterator[Case]:
    x = torch.randn(N, T, D)
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        for more in ({}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}):
            core = kind(D, 3, batch_first=True, **more)
            yield _case(kind.__name__, Called(lambda m, x: m.core(x)[0], core=core), x)
        second = Called(lambda m, x: m.core(x.transpose(0, 1))[0].transpose(0, 1), core=kind(D, 3))
        yield _case(f"{kind.__name__}, batch second", second, x)
    projected = nn.LSTM(D, 4, proj_size=2, batch_first=True)
    yield _case("LSTM, proj_size", Called(lambda m, x: m.core(x)[0], core=projected), x)
    for kind in (nn.RNNCell, nn.GRUCell):
        yield _case(kind.__name__, Called(_unrolled, core=kind(D, 3)), x)
    for more in ({}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": D, "vdim": D},
                 {"bias": False}):  # fmt: skip
        attention = nn.MultiheadAttention(D, 2, batch_first=True, **more)
        yield _case("MultiheadAttention", Called(lambda m, x: m.a(x, x, x)[0], a=attention), x)
    layer = nn.TransformerEncoderLayer(D, 2, 8, batch_first=True)
    yield _case(
        "TransformerEncoder", nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), x
    )


def _embeddings() -> Iterator[Case]:
    words = torch.tensor([[0, 3, 3, 1], [2, 0, 0, 0], [4, 4, 4, 4], [1, 2, 3, 4]])
    for more in ({}, {"padding_idx": 0}, {"sparse": True}, {"max_norm": 1.0},
                 {"scale_grad_by_freq": True}):  # fmt: skip
        shown = "".join(f", {name}" for name in more)
        yield _case(f"Embedding{shown}", nn.Embedding(5, D, **more), words)
    for mode in ("sum", "mean", "max"):
        for more in ({}, {"padding_idx": 0}, {"sparse": mode != "max"}):
            bag = nn.EmbeddingBag(5, D, mode=mode, **more)
            yield _case(f"EmbeddingBag, {mode}", bag, words)
    yield _case("Bilinear", Called(lambda m, x: m.b(x, x * 2), b=nn.Bilinear(D, D, 3)), _rows())
    yield _case("PReLU", nn.Sequential(_linear(), nn.PReLU(D)), _rows())


def _uses() -> Iterator[Case]:
    """Ways in which a parameter comes into a loss that its module's own call does not show."""
    x, shared = torch.randn(N, T, D), _linear()
    tied = nn.Sequential(_linear(), nn.Tanh(), _linear())
    tied[2].weight = tied[0].weight
    yield _case("tied linear", tied, x)
    weight = nn.Sequential(nn.Embedding(D, D), _linear(bias=False))
    weight[1].weight = weight[0].weight
    yield _case("tied embedding", weight, torch.randint(0, D, (N, T)))
    yield _case("functional linear", Called(
        lambda m, x: functional.linear(m.layer(x), m.layer.weight),
        layer=_linear()), x)  # fmt: skip
    yield _case("functional conv", Called(
        lambda m, x: functional.conv2d(m.c(x), m.c.weight, padding=1),
        c=nn.Conv2d(4, 4, 3, padding=1)), torch.randn(N, 4, 6, 6))  # fmt: skip
    yield _case("a penalty on the weights", Called(
        lambda m, x: m.layer(x) + m.layer.weight.square().sum(), layer=_linear()), x)  # fmt: skip
    yield _case("positions added", Called(
        lambda m, x: m.layer(x + m.positions),
        layer=_linear(), positions=nn.Parameter(torch.randn(T, D))), x)  # fmt: skip
    yield _case("a sequence's bias", Called(
        lambda m, x: m.layer(torch.cat([x, m.last.expand(len(x), 1, D)], 1)),
        layer=_linear(), last=nn.Parameter(torch.randn(D))), x)  # fmt: skip
    yield _case("positions as rows", Called(
        lambda m, x: m.layer(x.reshape(-1, D)).reshape(x.shape), layer=_linear()), x)  # fmt: skip
    yield _case("positions before samples", Called(
        lambda m, x: m.layer(x.transpose(0, 1)).transpose(0, 1), layer=_linear()), x)  # fmt: skip
    yield _case("as many positions as samples", Called(
        lambda m, x: m.layer(x.transpose(0, 1)).transpose(0, 1), layer=_linear()),
        torch.randn(T, T, D))  # fmt: skip
    yield _case("called on parts", Called(
        lambda m, x: torch.cat([m.layer(p) for p in x.split(2)]), layer=_linear()), x)  # fmt: skip
    yield _case(
        "a module shared by two", nn.Sequential(shared, nn.Sequential(shared, nn.ReLU())), x
    )
    frozen = _mlp()
    frozen[0].requires_grad_(False)
    yield _case("a frozen layer", frozen, x)
    part = _mlp()
    part[2].weight.requires_grad_(False)
    yield _case("a frozen weight, its bias not", part, x)
    yield _case("weight norm", nn.Sequential(parametrizations.weight_norm(_linear())), x)
    yield _case("spectral norm", parametrizations.spectral_norm(_linear()).eval(), x)
    yield _case("detached half", Called(
        lambda m, x: m.layer(m.layer(x).detach()), layer=_linear()), x)  # fmt: skip
    yield _case("in place after", Called(
        lambda m, x: m.layer(x).mul_(2).relu_(), layer=_linear()), x)  # fmt: skip
    yield _case("unused layer", Called(lambda m, x: m.a(x), a=_linear(), b=_linear()), x)
    yield _case("a layer for some rows", Called(_by_sign, a=_linear(), b=_linear()), x)
    yield _case("no rows", _mlp(), torch.randn(0, D))
    yield _case("one row", _mlp(), torch.randn(1, D))


def _by_sign(m: Any, x: Tensor) -> Tensor:
    up = (x.flatten(1).sum(1) > 0)[:, None, None]
    return torch.where(up, m.a(x), m.b(x))


def _unrolled(m: Any, x_NTD: Tensor) -> Tensor:
    state = x_NTD.new_zeros(len(x_NTD), 3)
    for t in range(x_NTD.shape[1]):
        state = m.core(x_NTD[:, t], state)
    return state


def _case(kind: str, model: nn.Module, x: Tensor) -> Case:
    x = x.double() if x.is_floating_point() else x
    return Case("anew", kind, model.double(), _sum_of_squares, x)


def _sum_of_squares(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 0.3).square().flatten(1).sum(1)


def _moved(norm: Any, x: Tensor) -> nn.Module:
    """With statistics that are not those of a new layer."""
    norm.train()(x)
    with torch.no_grad():
        norm.weight.normal_(1.0, 0.3)
    return norm.eval()  # type: ignore[no-any-return]


def _linear(bias: bool = True) -> nn.Linear:
    return nn.Linear(D, D, bias=bias)


def _mlp() -> nn.Sequential:
    return nn.Sequential(_linear(), nn.Tanh(), _linear())


def _rows() -> Tensor:
    return torch.randn(N, D)


def _transformer(causal: bool, tied: bool = False) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = Called(_read, words=nn.Embedding(11, 8), places=nn.Embedding(T, 8), body=body,
                   head=nn.Linear(8, 11), causal=causal)  # fmt: skip
    if tied:
        model.head.weight = model.words.weight
    return model


def _read(m: Any, ids_NT: Tensor) -> Tensor:
    count = ids_NT.shape[1]
    x_NTD = m.words(ids_NT) + m.places(torch.arange(count))
    mask = nn.Transformer.generate_square_subsequent_mask(count, dtype=x_NTD.dtype)
    return m.head(m.body(x_NTD, mask=mask if m.causal else None))
