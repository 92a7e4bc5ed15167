"""Datasets and seeds of a run, a row each, and what scores find among the wrong labels of one."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from distinf.gram import scores, stored_gradients, train
from distinf.gram.actions import flipped_rows, lowest_first
from distinf.gram.blocks import layer
from distinf.gram.configurations import BETWEEN, all_scores, headline
from distinf.gram.ranking import COMBINED, OWN_LOSS, combined, free_rankings, own_columns, suggested
from distinf.gram.session import QUERY, TRAIN, Cell, Session
from distinf.gram.settings import HOWS
from distinf.gram.task import FIRST, METRICS, Predicting
from distinf.numerics import metrics
from distinf.report.gram.warnings import by_split
from distinf.report.rows import Row, array_summary

MODULES = ("query_key_value", "qkv_proj", "query", "value", "key", "dense", "q_proj", "k_proj",
           "v_proj", "o_proj", "c_attn", "c_proj")  # fmt: skip
MOST_PLACED = 1_200  # rows
FILTERED = {"both": (1, 1), "influence": (1, 0), "loss": (0, 1), "neither": (0, 0)}  # by which


def cell(session: Session, cell: Cell) -> Iterator[Row]:
    """Of a dataset and seed: its sizes, and how the model does that is scored. None: not known.

    majority_queries: those that always saying their most frequent class gets right;
    learned_nothing: the model is within two standard errors of that. label_ndr: what removing rows
    by their given label alone finds; within_labels: rows at random of the labels that the headline
    removes. history: METRICS by epoch of the training on all rows; best: the epoch scored, from 0.
    loss_before, loss_after: of the first rows, before training and in its last epoch.
    """
    stored, noise = train.stored_fit(session, cell.name), flipped_rows(session, cell.name)
    task: Any = session.task(cell.name)
    of = getattr(task, "cell", None)  # a study's dataset and seed
    told, labels, queries = suggested(session, cell), _labels(task), cell.rows[QUERY]
    most, right, by_one_class = by_split(task, "largest_class").get(QUERY), None, None
    if stored_gradients.says_right(session, cell.name):
        right = int(scores.right_queries(session, cell).sum())
    unlearned, label_ndr = False, None
    if most is not None:
        by_one_class = round(most * queries)
        share = by_one_class / queries
        error = np.sqrt(share * (1.0 - share) / queries)
        unlearned = right is not None and right / queries <= share + 2.0 * error
    if labels is not None and noise is not None and noise.any():
        flipped, share = torch.from_numpy(noise), session.settings.actions.fraction
        label_ndr = metrics.ndr_of_labels(labels, flipped, share)
    rates = _rates(session, cell, all_scores(session, cell)[headline(session, cell)])
    yield {
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
        "within_labels": rates.get("within_labels"),
        "truncated": sum(by_split(task, "truncated").values()),
        "best": int(stored["best"]) if "best" in stored else None,
        **_first_losses(stored),
        "history": history(stored),
    }


def _first_losses(stored: Mapping[str, np.ndarray]) -> Row:
    if train.BEFORE not in stored or train.ROW_LOSSES not in stored:
        return {"loss_before": None, "loss_after": None}
    after = stored[train.ROW_LOSSES][-1, :FIRST]
    return {"loss_before": float(stored[train.BEFORE]), "loss_after": float(np.nanmean(after))}


def history(stored: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    return {key: stored[key].tolist() for key in METRICS if key in stored}


def _labels(task: Any) -> torch.Tensor | None:
    """int64 [N]: the class that each training row is labelled with; None where none is told."""
    told = isinstance(task, Predicting) and task.classes() is not None
    return torch.from_numpy(np.asarray(task.given())) if told else None


def _rates(session: Session, cell: Cell, scores_N: np.ndarray) -> Row:
    """What these scores find: NDR, area, the NDR that rows at random of the same given labels have
    and its deviation (None where none are told), the noise curve and its tenths; {} where no wrong
    label is known."""
    noise, labels = flipped_rows(session, cell.name), _labels(session.task(cell.name))
    if noise is None or not noise.any():
        return {}
    share = session.settings.actions.fraction
    of = torch.from_numpy(lowest_first(scores_N)), torch.from_numpy(noise)
    within = spread = None
    if labels is not None:
        within = metrics.ndr_within_labels(of[0], labels, of[1], share)
        spread = metrics.ndr_within_labels_sd(of[0], labels, of[1], share)
    return {
        "ndr": metrics.ndr(*of, share),
        "auc": metrics.ndr_auc(*of),
        "within_labels": within,
        "within_labels_sd": spread,
        "deciles": metrics.noise_histogram(*of, min(10, len(noise))).tolist(),
        "curve": metrics.noise_shares(*of).tolist(),
    }


def scored(session: Session, cell: Cell) -> Iterator[Row]:
    """Of every configuration: its rates, and a summary of its scores."""
    for key, scores_N in all_scores(session, cell).items():
        row: Row = {"cell": cell.name, "configuration": BETWEEN.join(key)}
        row |= dict(zip(("estimator", "group", "how"), key, strict=True))
        row |= dict.fromkeys(("ndr", "auc", "within_labels", "within_labels_sd")) | _rates(
            session, cell, scores_N
        )
        yield row | {"scores": array_summary(scores_N)}


def free(session: Session, cell: Cell) -> Iterator[Row]:
    """What ranking without influence finds: "own loss", "gradient norm" and others; and last
    "combined", which is of the headline's scores and the own loss."""
    every = {**free_rankings(session, cell), COMBINED: combined(session, cell)}
    for name, scores_N in every.items():
        if rates := _rates(session, cell, scores_N):
            rates.pop("deciles")
            yield {"cell": cell.name, "configuration": name, **rates}


def compared(session: Session, cell: Cell) -> Iterator[Row]:
    """Of the headline, the free rankings and the combination: of every row that is known to be
    wrong, whether it is filtered (caught), and what it adds to the AUC, their mean (area)."""
    noise, share = flipped_rows(session, cell.name), session.settings.actions.fraction
    if noise is None or not noise.any():
        return
    key = headline(session, cell)
    every = {BETWEEN.join(key): all_scores(session, cell)[key], **free_rankings(session, cell)}
    for name, scores_N in {**every, COMBINED: combined(session, cell)}.items():
        order = metrics.lowest_first(torch.from_numpy(lowest_first(scores_N)))
        places = order.argsort()[torch.from_numpy(noise)]
        count, wrong = len(noise), int(noise.sum())
        area = (count - places.double() - 0.5) / (count - wrong / 2)
        caught = (places < metrics.removed(count, share)).int()
        told = {"caught": caught.tolist(), "area": area.tolist()}
        yield {"cell": cell.name, "configuration": name, **told}


def placed(session: Session, cell: Cell) -> Iterator[Row]:
    """Of a cell with known wrong labels: every row's place by the headline and by its own loss, in
    percent of the rows, the most suspicious at 0, and whether it is wrong; MOST_PLACED rows evenly.
    Of all of them by whether it is filtered (headline, own loss): [rows, wrong ones]."""
    noise, share = flipped_rows(session, cell.name), session.settings.actions.fraction
    if noise is None or not noise.any():
        return
    key, many = headline(session, cell), len(noise)
    both = all_scores(session, cell)[key], -own_columns(session, cell)[OWN_LOSS]
    orders = (metrics.lowest_first(torch.from_numpy(lowest_first(each))) for each in both)
    ours_N, loss_N = (order.argsort().numpy() for order in orders)
    filtered = [places_N < metrics.removed(many, share) for places_N in (ours_N, loss_N)]
    counts = {}
    for name, of in FILTERED.items():
        here_N = (filtered[0] == of[0]) & (filtered[1] == of[1])
        counts[name] = [int(here_N.sum()), int((here_N & noise).sum())]
    kept = np.sort(np.random.default_rng(0).permutation(many)[:MOST_PLACED])
    places = {"influence_pct": ours_N, "own_loss_pct": loss_N}
    told = {name: (100 * (N[kept] + 0.5) / many).tolist() for name, N in places.items()}
    yield {"cell": cell.name, **told, "flipped": noise[kept].tolist(), "counts": counts}


def blocks(session: Session, cell: Cell) -> Iterator[Row]:
    """Of every parameter tensor its own rate; `layer` None outside numbered layers."""
    noise = flipped_rows(session, cell.name)
    if noise is None or not noise.any():
        return
    share, flipped = session.settings.actions.fraction, torch.from_numpy(noise)
    for (estimator, block), totals_HN in scores.block_totals(session, cell).items():
        (number, numbered), parts = layer(block), block.split(".")
        last = parts[-2] if len(parts) > 1 else block
        for how, totals_N in zip(HOWS, totals_HN, strict=True):
            ordered = torch.from_numpy(lowest_first(totals_N))
            yield {
                "cell": cell.name,
                "block": block,
                "layer": number if numbered else None,
                "module": next((name for name in MODULES if name in parts), last),
                "factor": "A" if "lora_A" in block else "B" if "lora_B" in block else "",
                "estimator": estimator,
                "how": how,
                "ndr": metrics.ndr(ordered, flipped, share),
                "auc": metrics.ndr_auc(ordered, flipped),
            }
