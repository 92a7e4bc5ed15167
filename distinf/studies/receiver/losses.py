"""Per-sample losses of a bit-logit model, and the hard bit error rate.

Each is a small callable, loss(model, batch) -> [N], split into `outputs` (the model) and
`from_outputs` (the rest), as Gauss-Newton products need. A batch has inputs [N, C, S, F], bits
[N, B, S, F] (0 or 1), mask [N, S, F] (true at data), snr_db [N]. Never a mean over samples.
A positive logit stands for bit 1.

Shapes: N slots, B bits a symbol, S symbols, F subcarriers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class CapacityBce:
    """Capacity-like binary cross-entropy: log2(1 + snr) times the mean over the data bits.

    A reconstruction: equation 9 of the DeepRx MIMO paper was not at hand. The weight is that of
    a later paper by the same authors (EqDeepRx, arXiv 2602.11834, eq. 13, without its symbol
    loss) and would explain the name. weight="none" is DeepRx's plain cross-entropy.
    """

    weight: Literal["log2snr", "none"] = "log2snr"
    units: Literal["nats", "bits"] = "nats"

    def outputs(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        return model(batch["inputs"])

    def from_outputs(self, outputs: Tensor, batch: Batch) -> Tensor:
        losses = softplus(-_signs(batch, outputs) * outputs)
        return self._weighed(_data_mean(losses, batch), batch)

    def parts(self, outputs: Tensor, batch: Batch) -> Tensor:
        """[N, S, F]: what each resource element adds to the loss; NaN where it holds no data."""
        losses = softplus(-_signs(batch, outputs) * outputs).sum(1)
        count_N = outputs.shape[1] * batch["mask"].sum((1, 2))
        shares = self._weighed(losses / count_N[:, None, None], batch)
        return torch.where(batch["mask"], shares, torch.nan)

    def _weighed(self, values: Tensor, batch: Batch) -> Tensor:
        """[N, ...] in nats -> in the chosen units, times the slot's weight."""
        if self.units == "bits":
            values = values / math.log(2)
        if self.weight == "log2snr":
            weight_N = torch.log2(1 + 10 ** (batch["snr_db"].to(values.dtype) / 10))
            values = values * weight_N.view(-1, *[1] * (values.ndim - 1))
        return values

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        return self.from_outputs(self.outputs(model, batch), batch)


@dataclass(frozen=True)
class SmoothBer:
    """Mean over the data bits of sigmoid(-(2b - 1) logit / temperature).

    At temperature 1 the expected bit error rate of a calibrated model; tends to the hard rate as
    the temperature goes to 0. A reconstruction: the thesis that Tuononen et al. take the smooth BER
    from (Eq. 78) was not at hand.
    """

    temperature: float = 1.0

    def outputs(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        return model(batch["inputs"])

    def from_outputs(self, outputs: Tensor, batch: Batch) -> Tensor:
        errors = torch.sigmoid(-_signs(batch, outputs) * outputs / self.temperature)
        return _data_mean(errors, batch)

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        return self.from_outputs(self.outputs(model, batch), batch)


def hard_ber(outputs: Tensor, batch: Batch) -> Tensor:
    """Uncoded bit error rate over the data bits (Tuononen et al., eq. 8): [N]. No gradient."""
    wrong = (outputs > 0) != batch["bits"].bool()
    return _data_mean(wrong.to(outputs.dtype), batch)


def _signs(batch: Batch, outputs: Tensor) -> Tensor:
    return 2 * batch["bits"].to(outputs.dtype) - 1


def _data_mean(values_NBSF: Tensor, batch: Batch) -> Tensor:
    mask = batch["mask"].to(values_NBSF.dtype)
    totals = (values_NBSF * mask[:, None]).sum((1, 2, 3))
    return totals / (values_NBSF.shape[1] * mask.sum((1, 2)))
