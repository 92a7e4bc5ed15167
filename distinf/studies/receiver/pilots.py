"""Demodulation reference signals (DMRS) of TS 38.211 section 6.4.1.1, one antenna port.

Written out here, not taken from the simulator, so that reading stored slots needs no simulator.
Pilots have unit modulus: the standard's boost (3 dB, in return for symbols without data) is left
out, so a pilot has the SNR of a data symbol.

Shapes: D patterns, S = 14 symbols, F subcarriers.
"""

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from distinf.studies.receiver.scenario import SYMBOLS_PER_SLOT, ScenarioConfig

# Symbols with pilots by number of additional positions: mapping type A, first pilot in symbol 2,
# 14 symbols, single-symbol DMRS (TS 38.211 table 6.4.1.1.3-3).
PILOT_SYMBOLS = {0: (2,), 1: (2, 11), 2: (2, 7, 11), 3: (2, 5, 8, 11)}
# Subcarriers of port 0 within one period (TS 38.211 section 6.4.1.1.3).
PILOT_COMB = {1: (2, (0,)), 2: (6, (0, 1))}


@dataclass(frozen=True)
class PilotPattern:
    """Where one DMRS pattern puts its pilots. Symbols with pilots carry no data."""

    kind: int
    symbols: tuple[int, ...]
    subcarriers: np.ndarray

    @property
    def data_symbols(self) -> list[int]:
        return [symbol for symbol in range(SYMBOLS_PER_SLOT) if symbol not in self.symbols]


def patterns(scenario: ScenarioConfig) -> list[PilotPattern]:
    """The scenario's patterns; a slot's `dmrs` is an index into this list."""
    options = itertools.product(scenario.dmrs_types, scenario.dmrs_additional_positions)
    result = []
    for kind, additional in options:
        period, comb = PILOT_COMB[kind]
        starts = np.arange(0, scenario.subcarriers, period)
        subcarriers = (starts[:, None] + np.array(comb)).reshape(-1)
        result.append(PilotPattern(kind, PILOT_SYMBOLS[additional], subcarriers))
    return result


@lru_cache(maxsize=8)
def pilot_grids(scenario: ScenarioConfig) -> Tensor:
    """The known transmitted pilots, zero elsewhere: complex64 [D, S, F]."""
    found = patterns(scenario)
    grids = np.zeros((len(found), SYMBOLS_PER_SLOT, scenario.subcarriers), dtype=np.complex64)
    for grid, pattern in zip(grids, found):
        for symbol in pattern.symbols:
            grid[symbol, pattern.subcarriers] = _sequence(symbol, len(pattern.subcarriers))
    return torch.from_numpy(grids)


@lru_cache(maxsize=8)
def data_masks(scenario: ScenarioConfig) -> Tensor:
    """True where a resource element carries data: bool [D, S, F]."""
    found = patterns(scenario)
    masks = torch.zeros(len(found), SYMBOLS_PER_SLOT, scenario.subcarriers, dtype=torch.bool)
    for mask, pattern in zip(masks, found):
        mask[pattern.data_symbols] = True
    return masks


def _sequence(symbol: int, length: int) -> np.ndarray:
    """QPSK pilots r(n) of one symbol, for slot 0, cell identity 0, scrambling identity 0."""
    c = _gold(((1 << 17) * (symbol + 1)) % (1 << 31), 2 * length).astype(np.float32)
    return ((1 - 2 * c[0::2]) + 1j * (1 - 2 * c[1::2])) / np.sqrt(np.float32(2))


def _gold(c_init: int, length: int) -> np.ndarray:
    """The length-31 Gold sequence of TS 38.211 section 5.2.1."""
    skip = 1600
    total = skip + length
    x1 = np.zeros(total + 31, dtype=np.uint8)
    x2 = np.zeros(total + 31, dtype=np.uint8)
    x1[0] = 1
    x2[:31] = [(c_init >> bit) & 1 for bit in range(31)]
    for n in range(total):
        x1[n + 31] = x1[n + 3] ^ x1[n]
        x2[n + 31] = x2[n + 3] ^ x2[n + 2] ^ x2[n + 1] ^ x2[n]
    return x1[skip:total] ^ x2[skip:total]
