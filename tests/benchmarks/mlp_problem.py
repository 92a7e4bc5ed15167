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
    query: dict[str, Tensor]
    layout: Layout
    hessian_PP: Tensor
    train_NP: Tensor
    query_QP: Tensor
    matvec: Matvec

    def exact_scores(self, damping: float = DAMPING, by_size: bool = False) -> Tensor:
        """[Q, N]: g_q . (H + damping)^-1 g_i, densely; with |H| in place of H (`by_size`)."""
        values_P, vectors_PP = torch.linalg.eigh(self.hessian_PP)
        inverse_P = 1.0 / ((values_P.abs() if by_size else values_P) + damping)
        return (self.query_QP @ vectors_PP * inverse_P) @ vectors_PP.T @ self.train_NP.T


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
        query,
        layout,
        (hessian_PP + hessian_PP.T) / 2,
        flat_gradients(model, loss, train, layout),
        flat_gradients(model, loss, query, layout),
        matvec,
    )


@cache
def left_out() -> Tensor:
    """[Q, N]: by how much each query's loss rises when one row is left out and the whole training
    is done again from the same start: all of them at once, the first of them with all rows."""
    case, rows = problem(), len(problem().train_NP)
    weights_MN = torch.cat([torch.ones(1, rows), 1 - torch.eye(rows)]).double()
    torch.manual_seed(3)
    start = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    models = [p.detach()[None].repeat(rows + 1, *[1] * p.ndim) for p in start.parameters()]

    def losses(models: list[Tensor], batch: dict[str, Tensor]) -> Tensor:
        first, shift, second, last = models
        hidden = torch.tanh(batch["x"] @ first.mT + shift[:, None])
        logits = hidden @ second.mT + last[:, None]
        chosen = batch["y"][None, :, None].expand(len(logits), -1, 1)
        return -logits.log_softmax(-1).gather(2, chosen)[..., 0]

    for _ in range(EPOCHS):
        models = [p.requires_grad_() for p in models]
        total = (losses(models, case.batch) * weights_MN).sum() / rows
        grads = torch.autograd.grad(total, models)
        models = [(p - RATE * g).detach() for p, g in zip(models, grads, strict=True)]
    for mine, trained in zip(models, case.model.parameters(), strict=True):
        torch.testing.assert_close(mine[0], trained.detach())
    found_MQ = losses(models, case.query)
    return (found_MQ[1:] - found_MQ[0]).T


def coordinates(case: Problem, vectors_KP: Tensor) -> Coordinates:
    """The training and query gradients in a Ritz basis."""
    return Coordinates.of(case.train_NP, case.query_QP, vectors_KP)
