"""How far a ranking hangs on the damping: the same scores at a tenth and at ten times of it."""

from typing import Any

import numpy as np
import torch

from distinf.errors import InputError
from distinf.numerics.metrics import spearman
from distinf.numerics.variants import VARIANTS, Spectrum, scores
from distinf.spectral.gradients import projected
from distinf.spectral.scores import coordinates_of, units
from distinf.spectral.session import Session
from distinf.spectral.spectra import damped_spectrum

FACTORS = {"λ / 10": 0.1, "10 λ": 10.0}
MOST_TARGETS = 10  # the first ones


def damping_sensitivity(session: Session) -> list[dict[str, Any]]:
    """By factor: the damping, and Spearman with the ranking at the run's own, mean and lowest.

    Of the headline's loss and variant for the first targets, by the stored coordinates: without
    refined solves, and without a pass. None where there is no damping, or the variant has no part
    in it; nan where the operator is refused at that damping.
    """
    settings = session.settings.actions
    own = damped_spectrum(session)
    if settings.variant not in VARIANTS or own.damping == 0:
        return []
    spectra: list[Spectrum | None] = [own, *(_damped(session, f) for f in FACTORS.values())]
    scores_CTN = _scores(session, [s for s in spectra if s is not None])
    found = iter(scores_CTN[1:])
    rows = []
    for (name, factor), used in zip(FACTORS.items(), spectra[1:], strict=True):
        row = {"factor": name, "damping": factor * own.damping, "targets": len(scores_CTN[0])}
        told = [float("nan")]
        if used is not None:
            told = [_agreement(*pair) for pair in zip(next(found), scores_CTN[0], strict=True)]
        rows.append(row | {"spearman": float(np.mean(told)), "least": float(np.min(told))})
    return rows


def _damped(session: Session, factor: float) -> Spectrum | None:
    try:
        return damped_spectrum(session, factor)
    except InputError:
        return None


def _scores(session: Session, spectra: list[Spectrum]) -> list[np.ndarray]:
    """fp64 [T, N] by spectrum, of the headline's loss and variant."""
    settings, asked = session.settings.actions, session.asked
    loss = settings.loss or session.outline.losses[0]
    parts: list[list[np.ndarray]] = [[] for _ in spectra]
    for unit, _ in units(session.outline):
        columns = projected(session, unit.start, unit.stop)
        of_rows = coordinates_of(asked, columns, loss, MOST_TARGETS)
        for part, used in zip(parts, spectra, strict=True):
            found = scores(
                of_rows, used, settings.variant,  # type: ignore[arg-type]
                scaling=session.settings.scores.scaling, count=asked.outline.training_rows,
            )  # fmt: skip
            part.append(np.where(columns["finite"], found.scores_QN.numpy(), np.nan))
    return [np.concatenate(part, axis=1) for part in parts]


def _agreement(one_N: np.ndarray, two_N: np.ndarray) -> float:
    both = np.isfinite(one_N) & np.isfinite(two_N)
    if both.sum() < 2:
        return float("nan")
    return spearman(torch.from_numpy(one_N[both]), torch.from_numpy(two_N[both]))
