"""Gaps in bits: what the channel from sent to detected bits could carry, and carries."""

from collections.abc import Mapping

import numpy as np


def capacity_gap(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """[E]: C(genie-aided BER) - C(BER) in bits: see `binary_capacity`."""
    return binary_capacity(columns["genie_ber"]) - binary_capacity(columns["ber"])


def binary_capacity(rates: np.ndarray) -> np.ndarray:
    """1 - h2(p) bits per use of a binary symmetric channel of error rate p in [0, 1].

    A rate above one half counts as one half: to gain from it a receiver would have to know that it
    is wrong more often than right.
    """
    p = np.minimum(rates.astype(np.float64), 0.5)
    safe = np.where(p > 0, p, 0.5)  # p log2 p tends to 0 with p
    entropy = -np.where(p > 0, safe * np.log2(safe), 0.0) - (1 - p) * np.log2(1 - p)
    return np.where(np.isnan(p), np.nan, 1.0 - entropy)
