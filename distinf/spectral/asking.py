"""Targets that come after a spectral run: their gradients, and scores by what is stored of the
training rows, or by one more pass over these."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from distinf.engine.recipe import Answer
from distinf.errors import InputError
from distinf.numerics.variants import VARIANTS, Coordinates, scores, split_dots
from distinf.runtime import Unit
from distinf.spectral import gradients
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.queries import damped_spectrum, query_gradients
from distinf.spectral.scores import stored_scores
from distinf.spectral.session import Session

PASS = "pass"
LEFT_OUT = "what lies outside of the Ritz vectors is left out; /pass behind --ranking has it"


def ranking(
    session: Session, name: str, rows: Mapping[str, int]
) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    """Asks.ranking: loss/variant by the stored coordinates, which leave out what lies outside of
    the Ritz vectors (nothing, where scores.complement is none); loss/variant/pass by a pass over
    the training rows, which has it all."""
    losses, settings = session.outline.losses, session.settings
    known = [f"{loss}/{variant}" for loss in losses for variant in VARIANTS]
    variant = settings.actions.variant if settings.actions.variant in VARIANTS else "classic"
    name = name or f"{settings.actions.loss or losses[0]}/{variant}"
    plain = name.removesuffix(f"/{PASS}")
    if plain not in known:
        raise InputError(f"--ranking {name}: use one of {', '.join(known)}; /{PASS} behind it")
    asked = rows["evaluation"]
    changed = {
        "targets": {"ids": tuple(range(asked)), "count": asked, "per_condition": 0},
        "curvature": {"refine": 0},
    }
    passes = ("gradients", "scores") if name != plain else ()
    return name, ("data", "evaluate", "queries", *passes), changed


def answers(session: Session, name: str) -> Iterator[Answer]:
    """Asks.answers: that of the one cell, targets in row order."""
    loss, variant, *passed = name.split("/")
    make = stored_scores if passed else _inside
    ids = chosen_targets(session).ids
    found_QN = make(session, loss, variant)[np.argsort(ids)]
    queries = [{"row": row} for row in sorted(ids.tolist())]
    whole = passed or session.settings.scores.complement == "none"
    yield Answer("", found_QN, queries, partial(_rows, session), "" if whole else LEFT_OUT)


def _rows(session: Session, ids: np.ndarray) -> list[dict[str, Any]]:
    return [{"row": row} for row in ids.tolist()]


def _inside(session: Session, loss: str, variant: str) -> np.ndarray:
    """fp64 [Q, N]: the classic score is that within the Ritz vectors; what a row is divided by is
    all of it."""
    stored = session.rows(_scored_units(session)).columns()
    query_QP, vectors_KP = query_gradients(session)[loss].double(), stored_pairs(session).vectors
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
