"""Datasets and seeds of a run, a row each, and what scores find among the wrong labels of one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from distinf.gram import gradients, scores, train
from distinf.gram.actions import flipped_rows, lowest_first
from distinf.gram.ranking import free_rankings, suggested
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.task import METRICS, Predicting
from distinf.numerics import metrics
from distinf.report.gram.configurations import BETWEEN
from distinf.report.gram.warnings import by_split
from distinf.report.rows import Row


def history(stored: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {key: stored[key].tolist() for key in METRICS if key in stored}


def cell_rows(session: Session) -> list[Row]:
    """Of every dataset and seed: its sizes, and how the model does that is scored. None: not known.

    majority_queries: those that always saying their most frequent class gets right;
    learned_nothing: the model is within two standard errors of that. label_ndr: what removing rows
    by their given label alone finds; within_labels: rows at random of the labels that the headline
    removes. ndr: by the headline's name and those of the free rankings.
    history: METRICS by epoch of the training on all rows; best: the epoch scored, from 0.
    """
    return [_cell(session, cell) for cell in session.outline.cells.values()]


def _cell(session: Session, cell: Cell) -> Row:
    stored, noise = train.stored_fit(session, cell.name), flipped_rows(session, cell.name)
    task: Any = session.task(cell.name)
    of = getattr(task, "cell", None)  # a study's dataset and seed
    told, labels, queries = suggested(session, cell), _labels(task), cell.rows[QUERY]
    most, right = by_split(task, "largest_class").get(QUERY), None
    by_one_class = None if most is None else round(most * queries)
    if gradients.says_right(session, cell.name):
        right = int(scores.right_queries(session, cell).sum())
    unlearned, label_ndr = False, None
    if right is not None and by_one_class is not None:
        share = by_one_class / queries
        unlearned = right / queries <= share + 2.0 * np.sqrt(share * (1.0 - share) / queries)
    if labels is not None and noise is not None and noise.any():
        flipped, share = torch.from_numpy(noise), session.settings.actions.fraction
        label_ndr = metrics.ndr_of_labels(labels, flipped, share)
    key = scores.headline(session, cell)
    first = {BETWEEN.join(key): scores.all_scores(session, cell)[key]}
    every = first | dict(free_rankings(session, cell))
    rates = {name: rates_of(session, cell, scores_N) for name, scores_N in every.items()}
    return {
        "name": cell.name,
        "dataset": getattr(of, "dataset", cell.name),
        "seed": getattr(of, "seed", session.seed),
        "rows": cell.rows[TRAIN],
        "queries": queries,
        "correct_queries": right,
        "flips": None if noise is None else int(noise.sum()),
        "majority_queries": by_one_class,
        "learned_nothing": bool(unlearned),
        "suggested_wrong": None if told is None else told.wrong,
        "label_ndr": label_ndr,
        "within_labels": rates[BETWEEN.join(key)].get("within_labels"),
        "ndr": {name: rate["ndr"] for name, rate in rates.items() if rate},
        "truncated": sum(by_split(task, "truncated").values()),
        "best": int(stored["best"]) if "best" in stored else None,
        "history": history(stored),
    }


def _labels(task: Any) -> torch.Tensor | None:
    """int64 [N]: the class that each training row is labelled with; None where none is told."""
    told = isinstance(task, Predicting) and task.classes() is not None
    return torch.from_numpy(np.asarray(task.given())) if told else None


def rates_of(session: Session, cell: Cell, scores_N: np.ndarray) -> Row:
    """What these scores find: NDR, area, the NDR that rows at random of the same given labels have
    (None where none are told), the noise curve and its tenths; {} where no wrong label is known."""
    noise, labels = flipped_rows(session, cell.name), _labels(session.task(cell.name))
    if noise is None or not noise.any():
        return {}
    share = session.settings.actions.fraction
    of = torch.from_numpy(lowest_first(scores_N)), torch.from_numpy(noise)
    within = None if labels is None else metrics.ndr_within_labels(of[0], labels, of[1], share)
    return {
        "ndr": metrics.ndr(*of, share),
        "auc": metrics.ndr_auc(*of),
        "within_labels": within,
        "deciles": metrics.noise_histogram(*of, min(10, len(noise))).tolist(),
        "curve": metrics.noise_shares(*of).tolist(),
    }
