"""The mean of several runs' scores, which differ in their seed alone: one model's scores foretell
what training again does to that model, their mean what it does to a model of any seed.

Shape legend: Q queries, N training rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distinf.config import RunConfig, load
from distinf.digest import digest
from distinf.engine.fingerprint import fingerprint
from distinf.engine.recipe import Evaluates, Foretold
from distinf.engine.run import refuse_unfinished, reopen
from distinf.engine.session import Session, row_ranges
from distinf.errors import InputError
from distinf.runtime.units import differences
from distinf.tasks.identity import digest_of_rows
from distinf.tasks.task import SPLITS

MAY_DIFFER = ("seed", "targets", "actions")  # queries and rows are compared for themselves
ROWS_AT_ONCE = 256
OF_RUNS = ", mean of {} runs"


@dataclass(frozen=True)
class Opened:
    """A finished run: what it says of its scores, by cell."""

    folder: str
    session: Session
    config: RunConfig
    cells: Mapping[str, Foretold]


def with_mean(
    own: Opened, folders: Sequence[str], evaluates: Evaluates
) -> tuple[list[Foretold], list[str]]:
    """The cells of `own`, with a ranking more for each that all runs have: the mean of its scores
    and those of the runs in `folders`; and what names the scores of those.

    InputError for one that is not finished, that differs from `own` in more than its seed, or that
    has the seed of another.
    """
    totals = {
        name: {key: _scaled(scores_QN) for key, (_, scores_QN) in cell.scores.items()}
        for name, cell in own.cells.items()
    }
    seeds, keys = {own.config.seed: own.folder}, []
    for folder in folders:  # one after the other: scores are large
        other = _opened(folder, own, evaluates)
        seed = other.config.seed
        if seed in seeds:
            raise InputError(
                f"--with {folder}: has the seed {seed} as {seeds[seed]} has; the mean is of runs "
                "with seeds of their own"
            )
        seeds[seed] = folder
        keys.append(evaluates.key(other.session))
        for name, total in totals.items():
            theirs = other.cells[name].scores
            totals[name] = {
                key: total_QN + _scaled(theirs[key][1])
                for key, total_QN in total.items()
                if key in theirs
            }
    return [_with(cell, totals[name], len(seeds)) for name, cell in own.cells.items()], keys


def _with(cell: Foretold, totals: Mapping[str, np.ndarray], runs: int) -> Foretold:
    found = {
        f"{key}{OF_RUNS.format(runs)}": (cell.scores[key][0], total_QN / runs)
        for key, total_QN in totals.items()
    }
    costs = {f"{key}{OF_RUNS.format(runs)}": runs * each for key, each in cell.costs.items()}
    return replace(cell, scores={**cell.scores, **found}, costs={**cell.costs, **costs})


def _scaled(scores_QN: np.ndarray) -> np.ndarray:
    """fp64, each query's over the root of their mean square, so that no run counts more for its
    scale: a model that fits a query hardly has a gradient there, and counts as one that does not.
    NaN where there is no finite score."""
    finite_QN = np.isfinite(scores_QN)
    known_QN = np.where(finite_QN, scores_QN, 0.0).astype(np.float64)
    count_Q1 = np.maximum(finite_QN.sum(1, keepdims=True), 1)
    size_Q1 = np.sqrt(np.square(known_QN).sum(1, keepdims=True) / count_Q1)
    return np.where(finite_QN, known_QN / np.where(size_Q1 > 0, size_Q1, 1.0), np.nan)


def _opened(folder: str, own: Opened, evaluates: Evaluates) -> Opened:
    config, session = load(folder), reopen(folder)
    if config.recipe != own.config.recipe:
        raise InputError(f"--with {folder}: its recipe is {config.recipe}, not that of the run")
    refuse_unfinished(session, config, folder)
    session.refuse_other_data()
    cells = {cell.cell: cell for cell in evaluates.foretold(session)}
    other = Opened(folder, session, config, cells)
    _refuse_other(own, other)
    return other


def _refuse_other(own: Opened, other: Opened) -> None:
    where, unlike = f"--with {other.folder}", f"than {own.folder}"
    ours, theirs = (
        {k: v for k, v in fingerprint(run.config).items() if not _may_differ(k)}
        for run in (own, other)
    )
    differing = differences(ours, theirs)
    if differing:
        raise InputError(
            f"{where}: has another {differing[0]} {unlike}; runs whose scores are averaged differ "
            "in their seed alone"
        )
    if own.cells.keys() != other.cells.keys():
        raise InputError(f"{where}: has other datasets or seeds in it {unlike}")
    for name, cell in own.cells.items():
        theirs_cell = other.cells[name]
        if not np.array_equal(cell.queries, theirs_cell.queries):
            raise InputError(
                f"{where}: has other queries {unlike}; name the same rows in targets.ids of both"
            )
        rows = {"train": np.arange(cell.rows), "evaluation": cell.queries}
        for split in SPLITS:
            mine, its = (_digest(run.session, name, split, rows[split]) for run in (own, other))
            if cell.rows != theirs_cell.rows or mine != its:
                raise InputError(
                    f"{where}: has other rows of '{split}' {unlike}; its task makes them from the "
                    "seed, and a mean is of the same rows"
                )


def _may_differ(key: str) -> bool:
    return key.startswith("digest.") or key.partition(".")[0] in MAY_DIFFER


def _digest(session: Session, cell: str, split: str, ids: np.ndarray) -> str:
    task = session.task_of(cell)
    parts = row_ranges(len(ids), ROWS_AT_ONCE)
    return digest([digest_of_rows(task, split, ids[a:b]) for a, b in parts])
