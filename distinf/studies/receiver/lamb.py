"""LAMB (arXiv 1904.00962), the optimiser that DeepRx was trained with."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Layerwise adaptive moments: w -= lr * ratio * (m_hat / (sqrt(v_hat) + eps) + weight_decay w).

    ratio = |w| / |update| for each tensor, 1 where either norm is zero, not clamped. Moments are
    bias-corrected and the decay is decoupled, as in the paper's Algorithm 2. DeepRx publishes no
    betas or eps; these are the usual ones.
    Tensors of one dimension (biases, norm scales) take ratio 1 unless `adapt_vectors`: the paper's
    BERT runs leave them out too, and a norm's bias starts at 0, from where steps in proportion to
    its own size never take it (small DeepRx then stays at a BER of 0.39).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adapt_vectors: bool = False,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"lr={lr}, eps={eps}, weight_decay={weight_decay}: none below 0")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: each must be in [0, 1)")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"adapt_vectors": adapt_vectors})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_(gradient.square(), 1 - beta2)
        update, _, ratio = self._parts(parameter, group)
        parameter.sub_(group["lr"] * (update * ratio))

    @torch.no_grad()
    def preconditioner(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """(P, decay) by the stored moments: a step is -lr * (P m_hat + decay w)."""
        group = next(g for g in self.param_groups if any(p is parameter for p in g["params"]))
        _, divisor, ratio = self._parts(parameter, group)
        return ratio / divisor, ratio * group["weight_decay"] * torch.ones_like(divisor)

    def _parts(self, parameter: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """m_hat / divisor + weight_decay w; the divisor sqrt(v_hat) + eps; the ratio."""
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        step = state["step"]
        divisor = (state["square"] / (1 - beta2**step)).sqrt() + group["eps"]
        update = state["mean"] / (1 - beta1**step) / divisor + group["weight_decay"] * parameter
        ratio = torch.ones((), dtype=update.dtype, device=update.device)
        if parameter.ndim > 1 or group["adapt_vectors"]:
            found = parameter.norm() / update.norm()
            # Zero weights give 0 and zero updates infinity or NaN: both take a plain step.
            ratio = torch.where((found > 0) & found.isfinite(), found, 1.0)
        return update, divisor, ratio
