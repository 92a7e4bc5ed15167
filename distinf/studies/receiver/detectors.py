"""The conventional receivers that DeepRx is measured against.

For one stream the LMMSE equaliser is maximal-ratio combining up to a positive factor per resource
element; with the unbiased scaling x = h^H y / |h|^2 the hard decisions are those of LMMSE.

Shapes: N slots, A receive antennas, S symbols, F subcarriers, B bits a symbol.
"""

import numpy as np
import torch
from torch import Tensor

from distinf.studies.receiver import qam
from distinf.studies.receiver.pilots import PilotPattern
from distinf.studies.receiver.scenario import SYMBOLS_PER_SLOT


def bit_error_rate(received: Tensor, channel: Tensor, bits: Tensor) -> Tensor:
    """Uncoded BER of combining with a given channel, per slot.

    received, channel: complex64 [N, A, S, F], data symbols only; bits: [N, B, S, F], 0 or 1.
    Genie-aided where `channel` is the true one. Returns float32 [N].
    """
    power = (channel.real.square() + channel.imag.square()).sum(1)
    combined = (channel.conj() * received).sum(1) / power
    wrong = qam.slice_bits(combined, bits.shape[1]) != bits.bool()
    return wrong.flatten(1).float().mean(1)


def estimate_channel(received: Tensor, pilots: Tensor, pattern: PilotPattern) -> Tensor:
    """Least squares at the pilots, then linear interpolation: complex64 [N, A, S, F].

    received: [N, A, S, F], the whole slot; pilots: the pattern's grid [S, F], of unit modulus.
    Frequency first, then time; constant beyond the outermost pilots.
    """
    at = torch.as_tensor(pattern.subcarriers)
    symbols = list(pattern.symbols)
    least_squares = received[:, :, symbols][..., at] * pilots[symbols][:, at].conj()
    across = _interpolation(pattern.subcarriers, received.shape[-1])
    along = _interpolation(np.array(symbols), SYMBOLS_PER_SLOT)
    return torch.einsum("napk,kf,ps->nasf", least_squares, across, along)


def mmse_channel(
    received: Tensor, pilots: Tensor, pattern: PilotPattern, covariance: tuple[Tensor, Tensor],
    snr_db: float,
) -> Tensor:  # fmt: skip
    """Linear minimum mean square error estimate from the pilots: complex64 [N, A, S, F].

    covariance: of the channel along time [S, S] and frequency [F, F], which it takes to be their
    product. received and pilots as in `estimate_channel`.
    """
    symbols, at = torch.tensor(pattern.symbols), torch.as_tensor(pattern.subcarriers)
    least_squares = (received[:, :, symbols][..., at] * pilots[symbols][:, at].conj()).to(
        torch.complex128
    )
    time_SS, frequency_FF = (part.to(torch.complex128) for part in covariance)
    # Pilots Y = H + noise with cov(vec H) = R_t x R_f: in their eigenvectors it is one division.
    values_P, vectors_PP = torch.linalg.eigh(time_SS[symbols][:, symbols])
    values_K, vectors_KK = torch.linalg.eigh(frequency_FF[at][:, at])
    noise = 10 ** (-snr_db / 10)
    weights = 1 / (values_P[:, None].clamp(min=0) * values_K.clamp(min=0) + noise)
    turned = vectors_PP.mH @ least_squares @ vectors_KK.conj()
    solved = vectors_PP @ (weights * turned) @ vectors_KK.T
    return (time_SS[:, symbols] @ solved @ frequency_FF[:, at].T).cfloat()


def _interpolation(known: np.ndarray, length: int) -> Tensor:
    """Weights [known, length] that interpolate linearly from the known positions."""
    rows = [np.interp(np.arange(length), known, one) for one in np.eye(len(known))]
    return torch.tensor(np.stack(rows), dtype=torch.complex64)
