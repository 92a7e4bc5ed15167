"""What one more step on the highest scored rows does to a query's loss, beside random rows.

A tail-patch (Chang et al. 2024, Scalable Influence and Fact Tracing for Large Language Model
Pretraining): from the trained model, one step of plain gradient descent down the mean loss of K
training rows, at the run's learning rate and in evaluation mode.
Shape legend: Q queries, N training rows, S sets of rows, P parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from distinf.engine.recipe import Foretold, Trained
from distinf.engine.session import draw, row_ranges
from distinf.numerics.counterfactual import Measure, mean_over
from distinf.numerics.losses import sum_gradient
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import float_edges, precision

PATCH = "patch"
RANDOM = 10  # sets of random rows
QUERIES_PER_UNIT = 64

Job = dict[str, Any]


def random_sets(seed: int, cell: Foretold, size: int) -> Job:
    """A step on each set, after which all queries are measured."""
    sets = [draw(seed, f"patch {cell.cell} {s}", cell.rows, size) for s in range(RANDOM)]
    return {PATCH: [rows.tolist() for rows in sets]}


def top_sets(cell: Foretold, ranking: str, size: int) -> Iterator[Job]:
    """A step on each query's `size` highest scored rows, after which it alone is measured; fewer
    rows where fewer have a score."""
    scores_QN = cell.scores[ranking][1]
    for first, stop in row_ranges(len(scores_QN), QUERIES_PER_UNIT):
        sets = [_top(scores_N, size) for scores_N in scores_QN[first:stop]]
        yield {PATCH: sets, "first": int(first)}


def _top(scores_N: np.ndarray, size: int) -> list[int]:
    known = np.flatnonzero(np.isfinite(scores_N))
    best = known[np.argsort(-scores_N[known], kind="stable")[:size]]
    return sorted(best.tolist())


def losses_after(
    trained: Trained, job: Mapping[str, Any], queries: int, tell: Callable[[float], None]
) -> dict[str, np.ndarray]:
    """Each loss after a step on each set, fp64 [S] of the query that it is for, or [S, Q]; NaN
    after none."""
    layout = Layout.of(trained.model)
    start_P = layout.gather(trained.model)
    found: dict[str, list[np.ndarray]] = {name: [] for name in trained.losses}
    for number, rows in enumerate(job[PATCH]):
        one = "first" in job
        ids = np.array([job["first"] + number]) if one else np.arange(queries)
        after = _after(trained, layout, start_P, np.array(rows, dtype=np.int64), ids)
        for name, values_Q in after.items():
            found[name].append(values_Q[0] if one else values_Q)
        tell((number + 1) / len(job[PATCH]))
    return {name: np.stack(parts) for name, parts in found.items()}


def _after(
    trained: Trained, layout: Layout, start_P: torch.Tensor, rows: np.ndarray, ids: np.ndarray
) -> dict[str, np.ndarray]:
    if not len(rows):
        return {name: np.full(len(ids), np.nan) for name in trained.losses}
    model, first = trained.model, next(iter(trained.losses.values()))
    with precision("float32", start_P.device), float_edges(model):
        slope_P = sum_gradient(model, first, trained.rows(rows), layout) / len(rows)
        layout.scatter_(model, start_P - trained.rate * slope_P)
        try:
            return {
                name: np.concatenate(
                    [_values(trained, loss, ids[a:b]) for a, b in row_ranges(len(ids), 64)]
                )
                for name, loss in trained.losses.items()
            }
        finally:
            layout.scatter_(model, start_P)


@torch.no_grad()
def _values(trained: Trained, loss: Any, ids: np.ndarray) -> np.ndarray:
    values: torch.Tensor = loss(trained.model, trained.queries(ids))
    return values.double().cpu().numpy()


def gain(top_Q: np.ndarray, random_SQ: np.ndarray) -> Measure:
    """How much lower a query's loss is after a step on its top rows than after one on random rows,
    the mean over queries; of those with a finite loss after all of them."""
    usable_Q = np.isfinite(top_Q) & np.isfinite(random_SQ).all(0)
    return mean_over(random_SQ[:, usable_Q].mean(0) - top_Q[usable_Q])
