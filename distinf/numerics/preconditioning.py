"""What an optimizer of Adam's kind multiplies gradients by, and the operator as its steps see it.

Once its moments stand still, a step of rate eta changes the weights w by -eta (P g + decay w). In
the coordinates P^-1/2 w that is gradient descent: gradients are P^1/2 g there, and the curvature is
P^1/2 H P^1/2 + decay, whose eigenpairs the filter of training is of (SOURCE: Bae, Lin, Lorraine and
Grosse 2024, Training Data Attribution via Approximate Unrolled Differentiation).
"""

import torch
from torch import Tensor, nn

from distinf.numerics.krylov import Matvec

ADAMS = (torch.optim.Adam, torch.optim.AdamW)


def is_preconditioned(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `preconditioner` knows it: torch's Adam and AdamW, or one that says its own by a
    method `preconditioner(parameter)` -> (P, decay), of the parameter's shape each."""
    return type(optimizer) in ADAMS or hasattr(optimizer, "preconditioner")


def preconditioner(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter
) -> tuple[Tensor, Tensor]:
    """(P, decay), of the parameter's shape, by the stored moments; 0 if it was never stepped.

    Adam: 1 / (sqrt(v_hat) + eps); its decay goes through P unless it is decoupled.
    """
    state = optimizer.state.get(parameter, {})
    if not state:
        return torch.zeros_like(parameter), torch.zeros_like(parameter)
    if hasattr(optimizer, "preconditioner"):
        own: tuple[Tensor, Tensor] = optimizer.preconditioner(parameter)
        return own
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    square = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    unbiased = square / (1 - group["betas"][1] ** float(state["step"]))
    inverse = 1.0 / (unbiased.sqrt() + group["eps"])
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
    decayed = torch.ones_like(inverse) if decoupled else inverse
    return inverse, group["weight_decay"] * decayed


def preconditioned(matvec: Matvec, root_P: Tensor, decay_P: Tensor) -> Matvec:
    """v -> P^1/2 H P^1/2 v + decay v, of v -> H v and the root of P."""

    def product(vector_P: Tensor) -> Tensor:
        root = root_P.to(vector_P)
        return root * matvec(root * vector_P) + decay_P.to(vector_P) * vector_P

    return product
