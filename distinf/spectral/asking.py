"""Targets that come after a spectral run: their gradients, and scores by what is stored of the
training rows, or by one more pass over these."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from distinf.engine.recipe import AS_IF_ADDED, Answer
from distinf.errors import InputError
from distinf.numerics.variants import VARIANTS, Coordinates, scores, split_dots
from distinf.runtime import Unit
from distinf.spectral import gradients
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.factors import EKFAC
from distinf.spectral.preconditioning import rooted
from distinf.spectral.queries import query_gradients
from distinf.spectral.scores import stored_scores
from distinf.spectral.session import Session
from distinf.spectral.spectra import damped_spectrum

PASS = "pass"
OF_OWN_PART = "newfluence"
LEFT_OUT = "what lies outside of the Ritz vectors is left out; --ranking {}/pass has it"


def ranking(
    session: Session, name: str, rows: Mapping[str, int] | None, of_candidates: bool
) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    """Asks.ranking: loss/variant by the stored coordinates, which leave out what lies outside of
    the Ritz vectors (nothing, where scores.complement is none); loss/variant/pass by a pass over
    the training rows, which has it all. Candidates' gradients are passed, so all is in theirs."""
    losses, settings = session.outline.losses, session.settings
    variants = [v for v in VARIANTS if not (of_candidates and v == OF_OWN_PART)]
    usual = settings.actions.variant if settings.actions.variant in variants else "classic"
    if of_candidates and rows is None and settings.scores.ekfac:
        variants.append(EKFAC)
    known = [f"{loss}/{variant}" for loss in losses for variant in variants]
    name = name or f"{settings.actions.loss or losses[0]}/{usual}"
    plain = name if of_candidates else name.removesuffix(f"/{PASS}")
    if plain not in known:
        why = _why(name, of_candidates)
        raise InputError(f"--ranking {name}: use one of {', '.join(known)}{why}")
    changed: dict[str, dict[str, Any]] = {}
    if of_candidates:
        changed["gradients"] = {"candidates": "all", "rows": 0}
    if rows is None:
        return name, (), changed
    asked = rows["evaluation"]
    changed["targets"] = {"ids": tuple(range(asked)), "count": asked, "per_condition": 0}
    changed["curvature"], changed["scores"] = {"refine": 0}, {"ekfac": False}
    passes = ("gradients", "scores") if name != plain else ()
    return name, ("data", "evaluate", "queries", *passes), changed


def _why(name: str, of_candidates: bool) -> str:
    if not of_candidates:
        return f"; /{PASS} behind it"
    own = "; newfluence takes a row's own part out of the curvature, and a candidate has none in it"
    return own if name.endswith(f"/{OF_OWN_PART}") else ""


def answers(session: Session, name: str) -> Iterator[Answer]:
    """Asks.answers: that of the one cell, targets in row order."""
    loss, variant, *passed = name.split("/")
    make = stored_scores if passed or session.of_candidates else _inside
    ids = chosen_targets(session.asked).ids
    found_QN = make(session, loss, variant)[np.argsort(ids)]
    queries = [{"row": row} for row in sorted(ids.tolist())]
    rows = partial(_rows, session)
    if session.of_candidates:
        yield Answer("", found_QN, queries, rows, *AS_IF_ADDED)
        return
    whole = passed or session.settings.scores.complement == "none"
    yield Answer("", found_QN, queries, rows, "" if whole else LEFT_OUT.format(name))


def _rows(session: Session, ids: np.ndarray) -> list[dict[str, Any]]:
    return [{"row": row} for row in ids.tolist()]


def _inside(session: Session, loss: str, variant: str) -> np.ndarray:
    """fp64 [Q, N]: the classic score is that within the Ritz vectors; what a row is divided by is
    all of it."""
    stored = session.rows(_scored_units(session)).columns()
    query_QP = rooted(session, query_gradients(session)[loss].double())
    vectors_KP = stored_pairs(session).vectors
    train_NK = torch.from_numpy(stored["ritz"])
    coordinates = Coordinates(
        train_NK=train_NK,
        train_sqnorm_N=torch.from_numpy(stored["sqnorm"]),
        query_QK=query_QP @ vectors_KP.double().T,
        dots_QN=torch.zeros(len(query_QP), len(train_NK), dtype=torch.float64),
    )
    spectrum, settings = damped_spectrum(session), session.settings.scores
    found = scores(
        coordinates, spectrum, variant,  # type: ignore[arg-type]
        scaling=settings.scaling, count=session.outline.training_rows,
        solved_dots_QN=split_dots(coordinates, spectrum)[0],
    )  # fmt: skip
    values_QN = found.scores_QN.numpy().copy()
    values_QN[:, ~stored["finite"]] = np.nan
    return values_QN


def _scored_units(session: Session) -> list[Unit]:
    """Those of the run that is asked: its gradients were projected on the same Ritz vectors."""
    key = session.context["keys"][""][gradients.NAME]
    units = (unit for unit, _ in gradients.units(session.outline))
    return [Unit(gradients.NAME, key, unit.start, unit.stop) for unit in units]
