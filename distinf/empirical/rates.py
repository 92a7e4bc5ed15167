"""Stage rates: a unit for each rate of the sweep around tune.lr; fine-tune on a few rows at it.

Where the plateau is (Matelsky, Ungar and Kording, section 3.4): too low a rate is lost in rounding,
too high a one measures noise; between them the matrix hardly depends on it.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from distinf.empirical import base, tuning
from distinf.empirical.base import BATCH, based_model, evaluation, measuring
from distinf.empirical.session import Outline, Session
from distinf.empirical.settings import TuneSettings
from distinf.empirical.task import EVALUATION, TRAIN, places, relations
from distinf.engine.stage import Stage, pooled
from distinf.microbatch import from_the_start
from distinf.runtime import Cost, Unit
from distinf.runtime.ledger import Record

NAME = "rates"
ALIKE = 0.99  # correlation of the influences at a rate and at twice that, on the plateau


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    settings, tried = outline.settings.tune, tuning.tried_of(outline)
    many = 0 if settings.optimizer == tuning.PROMPT else settings.sweep
    measured = float(outline.measured_N[tried].sum())
    work = {"step": float(settings.steps * len(tried)), "forward": measured}
    cost = tuning.cost_of(outline, work, 8.0 * outline.rows[EVALUATION] * len(tried))
    return [(Unit(NAME, outline.keys[NAME], k, k + 1), cost) for k in range(2 * many + bool(many))]


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays of the rows tried, at the unit's rate: losses fp64 [1, R, E], NaN where they are of
    another matrix or draw; asked and along [1, R] as of `Tuned`."""
    model, settings = session.cached("base", lambda: based_model(session)), session.settings.tune
    tried, of_rows = tuning.tried(session), places(relations(session.task, TRAIN))
    rate = swept(settings)[unit.start]
    losses_RE = np.full((len(tried), session.outline.rows[EVALUATION]), np.nan)
    steps = np.full((2, len(tried)), np.nan)

    def measured(k: int, row: int) -> None:
        losses, ids = evaluation(session, model, of_rows[row])
        made = tuning.tuned_on(session, model, [row] * settings.steps, rate)
        with torch.no_grad():
            losses_RE[k, ids] = losses(made.parameters).cpu().numpy()
        steps[:, k] = made.asked, made.along

    with measuring(session, model):
        for k, row in enumerate(tried):
            from_the_start(partial(measured, k, row), BATCH)
            session.tell(unit, (k + 1) / len(tried))
    arrays = {"losses": losses_RE[None], "asked": steps[:1], "along": steps[1:]}
    return session.commit(unit, attempt, arrays, may_hold_nan=[*arrays])


def swept(settings: TuneSettings) -> list[float]:
    """Every rate, each twice the one before; tune.lr is in the middle."""
    return [settings.lr * 2.0**k for k in range(-settings.sweep, settings.sweep + 1)]


def plateau(session: Session) -> list[dict[str, Any]]:
    """Of every rate swept: how much of the steps is `taken`, how the influences on other samples
    are correlated with those at twice the rate, and whether it is on the `plateau`: the lowest
    stretch of rates where both are as they should be."""
    wanted, settings = STAGE.wanted_units(session), session.settings.tune
    if not wanted:
        return []
    stored = session.rows(wanted).columns()
    before_E = session.arrays(base.units(session.outline)[0][0])["losses"]
    samples = [relations(session.task, split)["sample"] for split in (TRAIN, EVALUATION)]
    others_RE = samples[0][tuning.tried(session)][:, None] != samples[1][None]
    with np.errstate(invalid="ignore"):
        influence_KRE = before_E - stored["losses"]
        taken = np.nansum(stored["along"], 1) / np.nansum(stored["asked"], 1)
    alike = [_correlation(*pair, others_RE) for pair in pairwise(influence_KRE)] + [np.nan]
    good = [t >= settings.least_taken and c >= ALIKE for t, c in zip(taken, alike, strict=True)]
    start, stop = _lowest(good)
    return [
        {"rate": rate, "taken": float(taken[k]), "correlation": alike[k],
         "plateau": start <= k < stop, "own": rate == settings.lr}
        for k, rate in enumerate(swept(settings))
    ]  # fmt: skip


def _correlation(one: np.ndarray, other: np.ndarray, asked: np.ndarray) -> float:
    """NaN where a loss that was measured at either is not finite."""
    known = asked & ~(np.isnan(one) & np.isnan(other))
    a, b = one[known], other[known]
    varying = np.isfinite(a).all() and np.isfinite(b).all() and a.std() * b.std() > 0
    return float(np.corrcoef(a, b)[0, 1]) if varying else np.nan


def _lowest(good: Sequence[bool]) -> tuple[int, int]:
    """Start and end of the first stretch of at least two: far above it, where losses are saturated,
    they may grow with the rate again, and their matrices be alike."""
    start = 0
    for k, fine in enumerate([*good, False]):
        if not fine:
            if k - start >= 2:
                return start, k
            start = k + 1
    return 0, 0


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "fine-tuning at other rates", needs=(base.NAME,), units=units, run=run,
    reads=("tune", "-tune.rows_per_unit", "-tune.least_taken", "-tune.first_order",
           "-tune.leave_one_out"),
    uncounted=("tune.least_taken",),
)  # fmt: skip
