"""A symmetric matrix, a small classifier and dense float64 answers that several tests share."""

import torch
from torch import Tensor, nn

from tests.benchmarks.mlp_problem import CrossEntropy

__all__ = ["ByHand", "CrossEntropy", "classifier", "dense_hessian", "symmetric"]


class ByHand(torch.autograd.Function):
    """A tanh whose backward cannot be differentiated, and does not say so."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.tanh().detach()
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.kept**2)


def symmetric(dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A symmetric matrix with a few large eigenvalues of both signs and a decaying rest."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    values = 10.0 * 0.8 ** torch.arange(dim, dtype=torch.float64)
    values[1::5] *= -0.5
    matrix = (q * values) @ q.T
    return ((matrix + matrix.T) / 2).to(dtype)


def classifier(samples: int = 12, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """A float64 MLP with 39 parameters, dropout included, and a batch for it."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)
    ).double()
    x = torch.randn(samples, 3, dtype=torch.float64)
    return model, {"x": x, "y": torch.randint(0, 3, (samples,))}


def dense_hessian(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Sum over samples of the loss's Hessian, by torch's own reverse-mode Hessian."""
    names, tensors = zip(*model.named_parameters(), strict=True)

    def total(*parameters: Tensor) -> Tensor:
        swapped = dict(zip(names, parameters, strict=True))
        logits = torch.func.functional_call(model, swapped, (batch["x"],))
        return nn.functional.cross_entropy(logits, batch["y"], reduction="sum")

    was_training = model.training
    model.eval()
    rows = torch.autograd.functional.hessian(total, tuple(tensors))
    model.train(was_training)
    widths = [p.numel() for p in tensors]
    blocks = [
        torch.cat([b.reshape(h, w) for b, w in zip(row, widths, strict=True)], 1)
        for row, h in zip(rows, widths, strict=True)
    ]
    return torch.cat(blocks)
