"""Stage scores: every variant for every loss and target, from the stored projections.

A row's scores need its own projections and nothing of other rows, so that units are row ranges and
memory does not grow with the training set.
Sign: score > 0 means that training on the row helps the target.
"""

from collections.abc import Sequence

import numpy as np
import torch

from distinf.engine.session import row_ranges
from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.numerics.variants import VARIANTS, Coordinates, scores, split_dots
from distinf.runtime import Cost, Lever, Unit
from distinf.runtime.ledger import Record
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.factors import EKFAC
from distinf.spectral.gradients import projected, scored_rows
from distinf.spectral.preconditioning import rooted
from distinf.spectral.queries import query_gradients
from distinf.spectral.session import Outline, Session
from distinf.spectral.solves import converged_solutions
from distinf.spectral.spectra import damped_spectrum
from distinf.spectral.trajectory import tracin_scores

NAME = "scores"
ROWS_PER_UNIT = 16_384  # at least; rounded up to whole units of the gradients


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Row ranges of the scored rows, each of whole gradient units."""
    targets = outline.settings.targets.count
    count = targets * len(outline.losses) * len(stored_variants(outline))
    keep, of_gradients = outline.settings.curvature.keep, outline.settings.gradients.rows_per_unit
    per_unit = -(-ROWS_PER_UNIT // of_gradients) * of_gradients
    # Float32 projections, twice in float64 and squared; every score twice, and temporaries.
    fixed = 28.0 * keep
    per_row = 4.0 * (keep + targets * len(outline.losses)) + 24.0 * keep + 16.0 * count
    per_row += 8.0 * 8 * targets
    return [
        (
            Unit(NAME, outline.keys[NAME], a, b),
            Cost(
                flops=2.0 * (b - a) * count * keep,
                bytes=8.0 * (b - a) * count,
                memory=per_row * (b - a),
                read=4.0 * (b - a) * (keep + 4 + targets * len(outline.losses)),
                levers=(
                    Lever("targets.count", targets, (per_row - fixed) * (b - a), where="host"),
                ),
            ),
        )
        for a, b in row_ranges(scored_rows(outline), per_unit)
    ]


def stored_variants(outline: Outline) -> tuple[str, ...]:
    """Whose scores there are of each loss."""
    return (*VARIANTS, EKFAC) if outline.settings.scores.ekfac else VARIANTS


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays "<loss>.<variant>" fp64 [rows, targets]; NaN where a row is quarantined."""
    settings, asked = session.settings.scores, session.asked
    spectrum = damped_spectrum(asked)
    columns = projected(session, unit.start, unit.stop)
    solved = converged_solutions(asked)
    order = {key: place for place, key in enumerate(sorted(solved))}
    quarantined_N = ~columns["finite"]
    arrays: dict[str, np.ndarray] = {}
    nonpositive: dict[str, int] = {}
    moments: dict[str, list[list[float]]] = {}
    for loss in session.outline.losses:
        coordinates = coordinates_of(asked, columns, loss)
        inside_QN, outside_QN = split_dots(coordinates, spectrum)
        usable_N = torch.from_numpy(columns["finite"])
        moments[loss] = _moments(inside_QN[:, usable_N], outside_QN[:, usable_N])
        classic_QN = inside_QN + outside_QN
        for (rank, of_loss), place in order.items():
            if of_loss == loss:
                classic_QN[rank] = torch.from_numpy(columns["solved"][:, place]).double()
        for variant in VARIANTS:
            found = scores(
                coordinates, spectrum, variant,  # type: ignore[arg-type]
                scaling=settings.scaling, count=asked.outline.training_rows,
                solved_dots_QN=classic_QN,
            )  # fmt: skip
            values = found.scores_QN.T.numpy().copy()
            values[quarantined_N] = np.nan
            arrays[f"{loss}.{variant}"] = values
            nonpositive[f"{loss}.{variant}"] = found.nonpositive
        if settings.ekfac:
            values = columns[f"{EKFAC}.{loss}"].astype(np.float64)
            values[quarantined_N] = np.nan
            arrays[f"{loss}.{EKFAC}"], nonpositive[f"{loss}.{EKFAC}"] = values, 0
    summary = {"nonpositive": nonpositive, "moments": moments}
    return session.commit(unit, attempt, arrays, summary=summary, may_hold_nan=list(arrays))


def _moments(inside_QN: torch.Tensor, outside_QN: torch.Tensor) -> list[list[float]]:
    """[Q, 5]: rows, and of the two parts of their classic scores the sums and sums of squares."""
    count_Q = torch.full((len(inside_QN),), float(inside_QN.shape[1]), dtype=torch.float64)
    sums = [inside_QN.sum(1), inside_QN.square().sum(1)]
    sums += [outside_QN.sum(1), outside_QN.square().sum(1)]
    return torch.stack([count_Q, *sums], 1).tolist()


def coordinates_of(
    session: Session, columns: dict[str, np.ndarray], loss: str, targets: int | None = None
) -> Coordinates:
    """Training coordinates are of the training loss; the query's are of `loss` (cross-loss).

    targets: only the first ones (None: all).
    """
    vectors_KP = stored_pairs(session).vectors
    query_QP = rooted(session, query_gradients(session)[loss][:targets].double())
    return Coordinates(
        train_NK=torch.from_numpy(columns["ritz"]),
        train_sqnorm_N=torch.from_numpy(columns["sqnorm"]),
        query_QK=query_QP @ vectors_KP.double().T,
        dots_QN=torch.from_numpy(columns[f"query.{loss}"]).T[:targets],
    )


def stored_scores(session: Session, loss: str = "", variant: str = "ell-relative") -> np.ndarray:
    """fp64 [targets, rows]; `loss` "" is the training loss."""
    loss = loss or session.outline.losses[0]
    if loss not in session.outline.losses:
        known = ", ".join(session.outline.losses)
        raise InputError(f"actions.loss: '{loss}' is not a loss of this task ({known})")
    if variant == "tracin":
        return session.cached(("tracin", loss), lambda: tracin_scores(session, loss))
    name = f"{loss}.{variant}"
    return session.cached(("scores", name), lambda: _column(session, name))


def _column(session: Session, name: str) -> np.ndarray:
    wanted = [unit for unit, _ in units(session.outline)]
    return session.rows(wanted).columns([name])[name].T.copy()


def nonpositive_counts(session: Session) -> dict[str, int]:
    """Rows with a denominator of 0 or less, by "<loss>.<variant>"."""
    wanted = [unit for unit, _ in units(session.outline)]
    found = [record["summary"]["nonpositive"] for record in session.records(wanted)]
    return {name: sum(counts[name] for counts in found) for name in found[0]}


def outside_shares(session: Session) -> dict[str, list[float]]:
    """By loss and target: how much of the classic scores' variance lies outside the Ritz pairs.

    The variance there over that inside plus that outside; NaN where the scores do not vary.
    """
    wanted = [unit for unit, _ in units(session.outline)]
    found = [record["summary"]["moments"] for record in session.records(wanted)]
    shares = {}
    for loss in found[0]:
        count, *sums = np.sum([np.array(moments[loss]) for moments in found], axis=0).T
        inside, outside = (
            squares / count - (total / count) ** 2 for total, squares in (sums[:2], sums[2:])
        )
        inside, outside = np.maximum(inside, 0.0), np.maximum(outside, 0.0)
        with np.errstate(invalid="ignore"):
            shares[loss] = (outside / (inside + outside)).tolist()
    return shares


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "influence scores", needs=("gradients",), reads=("scores",), units=units, run=run
)
