"""Random numbers from (seed, purpose) alone, whoever draws them.

Of `uniform` and `signs` entry i depends on (seed, purpose, stream, i) and nothing else. They take
raw Philox bits and exact arithmetic, so no math library can change them.
"""

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from distinf.digest import digest, sha256


def uniform(seed: int, purpose: str, size: int, *, stream: int = 0) -> Tensor:
    """fp64 [size], independent and uniform on the open interval (-1, 1)."""
    bits = _philox(seed, purpose, stream).random_raw(size) >> np.uint64(11)
    return torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-52 - 1.0)


def signs(seed: int, purpose: str, size: int, *, stream: int = 0) -> Tensor:
    """fp64 [size], independent -1 or +1 with equal probability."""
    raw = _philox(seed, purpose, stream).random_raw(-(-size // 64))
    bits = np.unpackbits(raw.astype("<u8").view(np.uint8), bitorder="little")[:size]
    return torch.from_numpy(bits.astype(np.float64) * 2.0 - 1.0)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """For draws whose order the caller fixes."""
    return np.random.Generator(np.random.Philox(key=int(digest([seed, purpose])[:16], 16)))


def number(seed: int, purpose: str) -> int:
    """A seed of 32 bits, for generators that take one."""
    return int.from_bytes(bytes.fromhex(sha256(f"{purpose}/{seed}".encode())[:8]), "little")


def _philox(seed: int, purpose: str, stream: int) -> np.random.Philox:
    word = int.from_bytes(blake2b(purpose.encode(), digest_size=8).digest(), "little")
    key = np.array([seed % 2**64, word], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)
