"""Rankings of the training rows that cost nothing beside influence: they are stored by the way.

Shape legend: T targets, N scored rows.
"""

from collections.abc import Mapping

import numpy as np
import torch

from distinf.numerics.variants import own_parts
from distinf.spectral import gradients
from distinf.spectral.pools import near_by, nearness, stored_rows
from distinf.spectral.preconditioning import rooted
from distinf.spectral.queries import query_gradients
from distinf.spectral.session import Session
from distinf.spectral.spectra import damped_spectrum
from distinf.tasks.task import GeneratingTask, StoredTask

TINY = np.finfo(np.float64).tiny  # in place of the length of a gradient of 0
LOSS = "loss"  # of a row, as gradients have it
OWN_LOSS, GRADIENT_NORM, SELF_INFLUENCE = "own_loss", "gradient_norm", "self_influence"


def own_columns(session: Session) -> Mapping[str, np.ndarray]:
    """fp64 [N] each: a row's own loss, its gradient's norm, and its self-influence
    g'(H + damping)^-1 g; NaN where the gradient is not finite. No loss in runs that did not keep
    it."""
    return session.cached("own columns", lambda: _own_columns(session))


def _own_columns(session: Session) -> dict[str, np.ndarray]:
    stored = _stored(session, "ritz", "sqnorm", "finite")
    coordinates_NK, sqnorm_N = (torch.from_numpy(stored[name]) for name in ("ritz", "sqnorm"))
    self_N, _ = own_parts(coordinates_NK, sqnorm_N, damped_spectrum(session))
    found = {GRADIENT_NORM: np.sqrt(stored["sqnorm"].astype(np.float64))}
    found[SELF_INFLUENCE] = self_N.numpy()
    if LOSS in session.arrays(gradients.units(session.outline)[0][0]):
        found = {OWN_LOSS: _stored(session, LOSS)[LOSS], **found}
    return {name: np.where(stored["finite"], values, np.nan) for name, values in found.items()}


def products(session: Session, loss: str) -> dict[str, np.ndarray]:
    """fp64 [T, N]: dot and cosine of a target's gradient and a row's, without any curvature; NaN
    for rows without a gradient, or with one of 0."""
    query = f"query.{loss}"
    stored = _stored(session, query, "sqnorm", "finite")
    usable_N = stored["finite"] & (stored["sqnorm"] > 0)
    dots_TN = np.where(usable_N, stored[query].T.astype(np.float64), np.nan)
    norms_N = np.sqrt(np.where(usable_N, stored["sqnorm"].astype(np.float64), 1.0))
    query_TP = rooted(session, query_gradients(session)[loss].double())
    norms_T = query_TP.norm(dim=1).clamp(min=TINY).numpy()
    return {"dot": dots_TN, "cosine": dots_TN / norms_N / norms_T[:, None]}


def conditions_of_rows(session: Session) -> dict[str, np.ndarray]:
    """The rows' stored conditions that are numbers, and the task's reference: fp64 [N]; and their
    nearness to each target's: fp64 [T, N]. {} for a task without stored rows."""
    task, names = session.task, near_by(session.task)
    if not names or not isinstance(task, GeneratingTask | StoredTask):
        return {}
    rows, count = stored_rows(session), gradients.scored_rows(session.outline)
    names += {task.reference} & rows.take(np.arange(1)).keys()  # type: ignore[arg-type]
    found = {n: values[:count].astype(np.float64) for n, values in rows.columns(names).items()}
    return {**found, "nearness": nearness(session)}


def _stored(session: Session, *names: str) -> dict[str, np.ndarray]:
    units = [unit for unit, _ in gradients.units(session.outline)]
    return session.rows(units).columns(names)
