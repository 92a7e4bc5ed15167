"""A small MLP (227 parameters) at a point that is not fully trained, with its exact answers.

Shape legend: N training samples, Q queries, P = 227 parameters.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.numerics.capture import flat_gradients
from distinf.numerics.curvature import hessian_product, sharded_mean_product
from distinf.numerics.krylov import Matvec
from distinf.numerics.parameters import Layout
from distinf.numerics.variants import Coordinates

DAMPING = 1e-2
RATE, EPOCHS = 0.5, 600


class CrossEntropy:
    """Per-sample cross entropy, split at the logits."""

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return self.from_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["x"])

    def from_outputs(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch["y"], reduction="none")


@dataclass(frozen=True)
class Problem:
    """The model, its gradients and its dense mean Hessian in float64."""

    model: nn.Module
    batch: dict[str, Tensor]
    layout: Layout
    hessian_PP: Tensor
    train_NP: Tensor
    query_QP: Tensor
    matvec: Matvec

    def exact_scores(self, damping: float = DAMPING) -> Tensor:
        """[Q, N]: g_q . (H + damping)^-1 g_i by a dense solve."""
        damped = self.hessian_PP + damping * torch.eye(len(self.hessian_PP)).double()
        return self.query_QP @ torch.linalg.solve(damped, self.train_NP.T)


@cache
def problem(samples: int = 120, queries: int = 20, epochs: int = EPOCHS) -> Problem:
    """Three noisy classes in ten dimensions, and a while of full-batch gradient descent."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x = torch.randn(samples + queries, 10, dtype=torch.float64)
    teacher = torch.randn(10, 3, dtype=torch.float64)
    noise = torch.randn(samples + queries, 3, dtype=torch.float64)
    y = (torch.tanh(x @ teacher) + 0.3 * noise).argmax(1)
    train = {"x": x[:samples], "y": y[:samples]}
    query = {"x": x[samples:], "y": y[samples:]}
    loss = CrossEntropy()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss(model, train).mean().backward()
        optimizer.step()
    layout = Layout.of(model)
    product = hessian_product(model, loss, [train], layout, "hessian-double-backward")
    matvec = sharded_mean_product({0: product}, count=samples, collective=Collective())
    hessian_PP = torch.stack([matvec(row) for row in torch.eye(layout.size).double()])
    return Problem(
        model,
        train,
        layout,
        (hessian_PP + hessian_PP.T) / 2,
        flat_gradients(model, loss, train, layout),
        flat_gradients(model, loss, query, layout),
        matvec,
    )


def coordinates(case: Problem, vectors_KP: Tensor) -> Coordinates:
    """The training and query gradients in a Ritz basis."""
    return Coordinates.of(case.train_NP, case.query_QP, vectors_KP)
