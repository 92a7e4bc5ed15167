"""How alike estimators and layer groups rank the training rows: Spearman's correlations.

Shape legend: M rankings that are compared, N training rows.
"""

from collections.abc import Sequence

import numpy as np
import torch

from distinf.gram import scores
from distinf.gram.blocks import ALL
from distinf.gram.session import Cell, Session
from distinf.numerics.metrics import spearman_matrix
from distinf.report.gram import findings as page
from distinf.report.gram.summaries import configuration_order

Key = tuple[str, str, str]  # estimator, group, aggregation


def correlations(session: Session, cells: Sequence[Cell]) -> list[page.Correlation]:
    """Between estimators over all blocks, and between groups for each estimator; means of cells."""
    estimators, groups = session.settings.scores.estimators, list(cells[0].groups)
    wanted: list[tuple[str, list[Key], Sequence[str]]] = [
        (f"estimators, all layers, {how}", [(e, ALL, how) for e in estimators], estimators)
        for how in ("mean", "vote")
    ]
    wanted += [
        (f"layer groups, {e}, mean", [(e, g, "mean") for g in groups], groups) for e in estimators
    ]
    found = [_correlation(session, cells, *told) for told in wanted]
    return [c for c in found if c is not None]


def joint(session: Session, cells: Sequence[Cell]) -> page.Correlation | None:
    """Every estimator in every group against every other one, by mean scores; a mean of cells
    (Vitel and Chhabra, Figure 12, for the run's model)."""
    every = [key for key in scores.all_scores(session, cells[0]) if key[2] == "mean"]
    keys = sorted(every, key=lambda key: configuration_order(page.BETWEEN.join(key)))
    names = [page.BETWEEN.join(key[:2]) for key in keys]
    return _correlation(session, cells, "estimators and layer groups, mean", keys, names)


def _correlation(
    session: Session, cells: Sequence[Cell], title: str, keys: Sequence[Key], names: Sequence[str]
) -> page.Correlation | None:
    """Of those keys that the first cell has, over the cells that have them; None for fewer than
    two."""
    first = scores.all_scores(session, cells[0])
    kept = [k for k, key in enumerate(keys) if key in first]
    if len(kept) < 2:
        return None
    per_cell = []
    for cell in cells:
        every = scores.all_scores(session, cell)
        if all(keys[k] in every for k in kept):
            scores_MN = np.stack([every[keys[k]] for k in kept])
            usable = np.isfinite(scores_MN).all(0)
            per_cell.append(spearman_matrix(torch.from_numpy(scores_MN[:, usable])).numpy())
    return page.Correlation(title, [names[k] for k in kept], _mean(np.stack(per_cell)))


def _mean(values_CMM: np.ndarray) -> np.ndarray:
    """Over cells that have a number; NaN where none has."""
    known_CMM = np.isfinite(values_CMM)
    counts_MM = known_CMM.sum(0)
    total_MM = np.where(known_CMM, values_CMM, 0.0).sum(0)
    return np.where(counts_MM > 0, total_MM / np.maximum(counts_MM, 1), np.nan)
