"""Random draws by (seed, purpose), and label noise made with one."""

import numpy as np

from distinf.numerics.randomness import number


def generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng(number(seed, f"noisy_labels/{purpose}"))


def flips(rows: int, share: float, seed: int) -> np.ndarray:
    """bool [rows]: int(share * rows) of them, drawn without replacement and whatever their label
    (Vitel and Chhabra, section 5)."""
    flipped = np.zeros(rows, dtype=bool)
    flipped[generator(seed, "flips").choice(rows, int(share * rows), replace=False)] = True
    return flipped


def relabelled(labels: np.ndarray, flipped: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """int64 [rows]: flipped ones have any other class, all alike: of two, 1 - label."""
    further = generator(seed, "flips/classes").integers(1, classes, len(labels))
    return np.where(flipped, (labels + further) % classes, labels)
