"""Stage scores: every variant for every loss and target, from the stored projections.

Sign: score > 0 means that training on the row helps the target.
"""

from collections.abc import Sequence

import numpy as np
import torch

from distinf.errors import InputError
from distinf.numerics.variants import VARIANTS, Coordinates, damped_dots, scores
from distinf.runtime import Cost, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.stages.curvature import stored_pairs
from distinf.stages.gradients import projections, scored_rows
from distinf.stages.queries import converged_solutions, damped_spectrum, query_gradients
from distinf.stages.session import Outline, Session

NAME = "scores"


def score_unit(outline: Outline) -> Unit:
    return Unit(NAME, outline.basis[NAME], 0, scored_rows(outline))


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """One unit: the scores are a few matrix products."""
    count = outline.settings.targets.count * len(outline.losses) * len(VARIANTS)
    rows = scored_rows(outline)
    width = outline.settings.curvature.keep
    size = 8.0 * rows * count
    return [(score_unit(outline), Cost(2.0 * rows * count * width, size, 3 * size))]


def run(session: Session, runtime: Runtime) -> None:
    runtime.pool(
        session.work("distinf.stages.scores:body"),
        [score_unit(session.outline)],
        session.ledger(NAME),
    )


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays "<loss>.<variant>" fp64 [targets, rows]; NaN where a row is quarantined."""
    settings = session.settings.scores
    spectrum = damped_spectrum(session)
    columns = projections(session).columns()
    solved = converged_solutions(session)
    order = {key: place for place, key in enumerate(sorted(solved))}
    quarantined_N = ~columns["finite"]
    arrays: dict[str, np.ndarray] = {}
    nonpositive: dict[str, int] = {}
    for loss in session.outline.losses:
        coordinates = _coordinates(session, columns, loss)
        classic_QN = damped_dots(coordinates, spectrum)
        for (rank, of_loss), place in order.items():
            if of_loss == loss:
                classic_QN[rank] = torch.from_numpy(columns["solved"][:, place]).double()
        for variant in VARIANTS:
            found = scores(
                coordinates, spectrum, variant,  # type: ignore[arg-type]
                scaling=settings.scaling, count=session.outline.rows["train"],
                solved_dots_QN=classic_QN,
            )  # fmt: skip
            values = found.scores_QN.numpy().copy()
            values[:, quarantined_N] = np.nan
            arrays[f"{loss}.{variant}"] = values
            nonpositive[f"{loss}.{variant}"] = found.nonpositive
    return session.commit(
        unit, attempt, arrays, summary={"nonpositive": nonpositive}, may_hold_nan=list(arrays)
    )


def _coordinates(session: Session, columns: dict[str, np.ndarray], loss: str) -> Coordinates:
    """Training coordinates are of the training loss; the query's are of `loss` (cross-loss)."""
    vectors_KP = stored_pairs(session).vectors
    return Coordinates(
        train_NK=torch.from_numpy(columns["ritz"]),
        train_sqnorm_N=torch.from_numpy(columns["sqnorm"]),
        query_QK=query_gradients(session)[loss].double() @ vectors_KP.double().T,
        dots_QN=torch.from_numpy(columns[f"query.{loss}"]).T,
    )


def stored_scores(session: Session, loss: str = "", variant: str = "ell-relative") -> np.ndarray:
    """fp64 [targets, rows]; `loss` "" is the training loss."""
    name = f"{loss or session.outline.losses[0]}.{variant}"
    key = ("scores", name)
    unit = score_unit(session.outline)
    try:
        return session.cached(key, lambda: session.arrays(unit, [name])[name])
    except KeyError:
        known = ", ".join(session.outline.losses)
        raise InputError(f"actions.loss: '{loss}' is not a loss of this task ({known})") from None
