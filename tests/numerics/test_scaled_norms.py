"""Hooks on the norms that decoder families define themselves: a weight that scales."""

import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.capture import per_sample_gradients
from distinf.numerics.layer_gradients import rules_of

WIDTH = 6


class RMSNorm(nn.Module):
    """As many write it; `shift` 1 is Gemma's."""

    def __init__(self, width, shift=0.0):
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(width)), shift

    def forward(self, x):
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return (self.shift + self.weight) * normed


class MixingRMSNorm(RMSNorm):
    """Its output is not affine in the weight: by the name alone the rule would be wrong."""

    def forward(self, x):
        return super().forward(x) * self.weight.norm()


class GatedRMSNorm(RMSNorm):
    def forward(self, x, gate):
        return super().forward(x * gate)


def loss(model, batch):
    return model(batch["x"]).tanh().square().sum((1, 2))


def model_with(norm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, WIDTH), norm, nn.Linear(WIDTH, 3))


def agree(norm, tolerance=1e-5):
    model, batch = model_with(norm), {"x": torch.randn(7, 5, 4)}
    found = per_sample_gradients(model, loss, batch, method="hooks")
    right = per_sample_gradients(model, loss, batch, method="loop")
    for name, grads in right.items():
        torch.testing.assert_close(found[name], grads, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_norm_of_ones_own(shift):
    agree(RMSNorm(WIDTH, shift))


FAMILIES = {
    "llama": "LlamaRMSNorm",
    "mistral": "MistralRMSNorm",
    "qwen2": "Qwen2RMSNorm",
    "qwen3": "Qwen3RMSNorm",
    "phi3": "Phi3RMSNorm",
    "gemma": "GemmaRMSNorm",
    "olmo2": "Olmo2RMSNorm",
    "t5": "T5LayerNorm",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_norms_of_the_supported_families(family):
    pytest.importorskip("transformers")
    path = f"transformers.models.{family}.modeling_{family}"
    module = pytest.importorskip(path)
    norm = getattr(module, FAMILIES[family])(WIDTH)
    nn.init.normal_(norm.weight)
    agree(norm)
    assert rules_of(getattr(module, FAMILIES[family])(WIDTH).to("meta"))  # of a skeleton


def test_a_bfloat16_norm_has_float32_gradients():
    norm = RMSNorm(WIDTH)
    model = model_with(norm).bfloat16()
    batch = {"x": torch.randn(3, 5, 4).bfloat16()}
    found = per_sample_gradients(model, loss, batch, "1.weight", method="hooks")["1.weight"]
    right = per_sample_gradients(model.float(), loss, {"x": batch["x"].float()}, "1.weight")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, right["1.weight"], rtol=0.1, atol=0.1)


@pytest.mark.parametrize("kind", [MixingRMSNorm, GatedRMSNorm])
def test_a_norm_that_the_name_misleads_about_has_no_rule(kind):
    assert not rules_of(kind(WIDTH))
    with pytest.raises(InputError, match=r"no rule for parameter '1.weight'"):
        per_sample_gradients(model_with(kind(WIDTH)), loss, {"x": torch.randn(2, 5, 4)}, "1.weight",
                             method="hooks")  # fmt: skip


def test_the_layers_own_hooks_do_not_see_the_probes():
    norm, seen = RMSNorm(WIDTH), []
    norm.register_forward_hook(lambda *_: seen.append(1))
    model = model_with(norm)
    batch = {"x": torch.randn(2, 5, 4)}
    per_sample_gradients(model, loss, batch, "1.weight", method="hooks", check=False)
    assert len(seen) == 1
