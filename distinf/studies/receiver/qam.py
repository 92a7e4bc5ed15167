"""Gray-mapped QAM of TS 38.211 section 5.1 (QPSK to 256-QAM): map bits, slice symbols.

Even bits choose the real part and odd bits the imaginary part, each by
(1 - 2 b0) (2^(n-1) - (1 - 2 b1) (2^(n-2) - ...)) with n bits a part, at unit mean energy.

Shapes: B bits a symbol.
"""

from functools import lru_cache

import torch
from torch import Tensor


def scale(bits_per_symbol: int) -> float:
    """Distance from an amplitude on the odd integers to one at unit mean energy."""
    return (2 * (2**bits_per_symbol - 1) / 3) ** -0.5


@lru_cache(maxsize=4)
def constellation(bits_per_symbol: int) -> Tensor:
    """Points by index, the first bit being the index's most significant: complex64 [2^B]."""
    index = torch.arange(2**bits_per_symbol)
    bits = [(index >> (bits_per_symbol - 1 - b)) & 1 for b in range(bits_per_symbol)]
    parts = []
    for part in (bits[0::2], bits[1::2]):
        amplitude = torch.zeros(len(index))
        for place, bit in enumerate(reversed(part)):
            amplitude = (1 - 2 * bit) * (2**place - amplitude)
        parts.append(amplitude)
    return scale(bits_per_symbol) * torch.complex(*parts)


def slice_bits(symbols: Tensor, bits_per_symbol: int) -> Tensor:
    """Hard decisions: complex [N, ...] to bool [N, B, ...], true where the bit is 1."""
    half = bits_per_symbol // 2
    decided: list[Tensor] = [torch.empty(0)] * bits_per_symbol
    for offset, part in enumerate((symbols.real, symbols.imag)):
        left = part / scale(bits_per_symbol)
        for k in range(half):
            decided[2 * k + offset] = left < 0
            left = 2 ** (half - 1 - k) - left.abs()
    return torch.stack(decided, dim=1)
