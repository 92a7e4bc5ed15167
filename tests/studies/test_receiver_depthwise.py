"""The receiver's depthwise convolution is nn.Conv2d's, forward, backward and beyond."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from distinf.numerics.layer_gradients import RULES, rules_of
from distinf.studies.receiver.deeprx import DeepRxConfig, DepthwiseConv, SeparableConv

CASES = [(4, 1, 3, (1, 1)), (4, 2, 3, (2, 3)), (3, 2, 3, (3, 6)), (2, 3, 5, (2, 3))]


def both(channels, times, kernel, dilation, dtype=torch.float64) -> tuple[DepthwiseConv, nn.Conv2d]:
    config = DeepRxConfig(depth_multiplier=times, kernel=kernel)
    fast = SeparableConv(channels, channels, dilation, config).depthwise.to(dtype)
    plain = nn.Conv2d(
        channels, channels * times, kernel, padding="same", dilation=dilation, groups=channels
    ).to(dtype)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


@pytest.fixture(params=CASES, ids=str)
def pair(request):
    return both(*request.param)


def inputs(conv: nn.Conv2d) -> Tensor:
    x = torch.randn(3, conv.in_channels, 14, 20, dtype=conv.weight.dtype)
    return x.contiguous(memory_format=torch.channels_last)


def total(conv: nn.Conv2d, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(conv, weights, (x,)).pow(3).sum()


def of(conv: nn.Conv2d) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in conv.named_parameters()}


def test_outputs_and_gradients(pair):
    fast, plain = pair
    x = inputs(fast)
    torch.testing.assert_close(fast(x), plain(x))
    torch.testing.assert_close(fast(x[0]), plain(x[0]))
    assert fast(x).is_contiguous(memory_format=torch.channels_last)
    found, wanted = (grad(total, argnums=(1, 2))(conv, of(conv), x) for conv in pair)
    torch.testing.assert_close(found, wanted)


def test_second_derivatives_both_ways(pair):
    x = inputs(pair[0])
    towards = {name: torch.randn_like(value) for name, value in of(pair[0]).items()}

    def forward_over_reverse(conv):
        return jvp(lambda w: grad(total, argnums=1)(conv, w, x), (of(conv),), (towards,))[1]

    def reverse_twice(conv):
        def along(w):
            found = grad(total, argnums=1)(conv, w, x)
            return sum((found[name] * towards[name]).sum() for name in found)

        return grad(along)(of(conv))

    wanted = forward_over_reverse(pair[1])
    torch.testing.assert_close(forward_over_reverse(pair[0]), wanted)
    torch.testing.assert_close(reverse_twice(pair[0]), wanted)


def test_gradients_of_single_samples(pair):
    x = inputs(pair[0])
    found, wanted = (
        vmap(lambda row, c=conv: grad(total, argnums=1)(c, of(c), row[None]))(x) for conv in pair
    )
    torch.testing.assert_close(found, wanted)
    assert rules_of(pair[0]) is RULES[nn.Conv2d]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_and_an_autocast(case):
    fast, plain = both(*case, torch.float32)
    x = inputs(fast)
    torch.testing.assert_close(fast(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = fast(x), plain(x)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted)
