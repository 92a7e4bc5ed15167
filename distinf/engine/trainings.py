"""Which trainings scores are held against: the design, and the units that carry it out.

Each training is named by the rows that it leaves out and its seed, in the run's own ledger: one
that was done is never done again, whichever question asked for it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distinf.engine import patching
from distinf.engine.patching import PATCH
from distinf.engine.recipe import Draws, Foretold
from distinf.engine.session import Session, draw, row_ranges
from distinf.errors import InputError
from distinf.numerics.counterfactual import FEWEST, finite_or_0
from distinf.runtime import Unit

NONE_OUT: dict[str, Any] = {"without": []}
AGAIN: dict[str, Any] = {"without": [], "again": 1}  # whether it ends at the same losses
UNROLLED = "unrolled"
QUERIES_PER_UNIT = 128  # of an unrolled training: each unit does it again
MOST = 1_000_000  # trainings: each has a name, an entry of the agenda and files of its own


@dataclass(frozen=True)
class Design:
    """Which trainings to hold scores against.

    subsets  random halves of the rows, for the linear datamodeling score
    repeats  trainings of each half, which differ by their seed alone: from 2 on there is a ceiling
    shares   random subsets that leave out `fraction` of the rows: a second such score, and chance
             for what leaving out the highest scored ones does
    ones     rows left out alone: those of highest and lowest score, for what a score of 1 means
    fraction of rows left out at once, one at least
    patch    highest scored rows of a query for one step more, beside as many random ones; 0: none
    independent  halves start from weights of their own and go through an order of their own, as
                 trainings by other people would; else from the run's start
    unrolled scores by unrolling the run's own training stand beside the stored ones
    """

    subsets: int = 30
    repeats: int = 2
    shares: int = 10
    ones: int = 0
    fraction: float = 0.01
    patch: int = 10
    independent: bool = False
    unrolled: bool = False

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is int and value < (1 if name == "repeats" else 0):
                raise InputError(f"--{name} {value}: must be {int(name == 'repeats')} or more")
        if not 0 < self.fraction < 0.5:
            raise InputError(f"--fraction {self.fraction}: must lie between 0 and 0.5")
        if 0 < self.subsets < FEWEST:
            raise InputError(f"--subsets {self.subsets}: fewer than {FEWEST} give no interval")
        if not (self.subsets or self.shares or self.ones or self.patch):
            raise InputError(
                "evaluate: nothing to train; give --subsets, --shares, --ones or --patch"
            )
        trainings = self.subsets * self.repeats + self.shares
        if trainings > MOST:
            raise InputError(
                f"evaluate: {trainings:,} trainings; at most {MOST:,} can be asked for"
            )

    def most(self) -> Draws:
        """The draws of the training that takes most of its own."""
        independent = self.independent and self.subsets > 0
        return Draws(int(independent or (self.repeats > 1 and self.subsets > 0)), independent)


def kept_rows(seed: int, job: Mapping[str, Any]) -> np.ndarray:
    """bool [N]: the rows that a training keeps."""
    kept, cell = np.ones(job["rows"], dtype=bool), job["cell"]
    if "half" in job:
        out = draw(seed, f"half {cell} {job['half']}", len(kept), len(kept) // 2)
    elif "share" in job:
        count = max(1, int(job["share"] * len(kept)))
        out = draw(seed, f"share {cell} {job['draw']}", len(kept), count)
    else:
        out = np.asarray(job["without"], dtype=np.int64)
    kept[out] = False
    return kept


def unit_of(session: Session, cell: Foretold, what: Mapping[str, Any]) -> Unit:
    evaluates = session.recipe.evaluates
    assert evaluates is not None
    keys = session.context["keys"][cell.cell]
    job = {"cell": cell.cell, "rows": cell.rows, "seed": 0, **what}
    return Unit(evaluates.stage.name, keys[evaluates.stage.name], job=job)


def every_unit(session: Session, cell: Foretold, design: Design) -> Iterator[Unit]:
    """One by one those that a first look needs most: the whole set, then halves in turn."""
    if design.ones or fixed(session, design):
        yield unit_of(session, cell, NONE_OUT)
    if fixed(session, design):
        yield unit_of(session, cell, AGAIN)
    for repeat in range(design.repeats):
        yield from (unit_of(session, cell, half) for half in halves(design, repeat))
    if design.shares:
        yield unit_of(session, cell, highest(cell, design))
        yield from (unit_of(session, cell, share) for share in shares(design))
    yield from (unit_of(session, cell, {"without": [row]}) for row in ones(cell, design))
    if design.unrolled:
        yield from unrolled_units(session, cell)
    yield from patches(session, cell, design)


def fixed(session: Session, design: Design) -> bool:
    """Whether trainings without few rows are asked for that have the run's own seed and order."""
    evaluates = session.recipe.evaluates
    assert evaluates is not None
    few = design.fraction if design.shares >= FEWEST else 0.0
    return bool(few or design.ones) and few <= evaluates.aligned > 0


def is_training(unit: Unit) -> bool:
    return UNROLLED not in unit.job and PATCH not in unit.job


def halves(design: Design, repeat: int) -> list[dict[str, Any]]:
    if not design.independent:
        return [{"half": number, "seed": repeat} for number in range(design.subsets)]
    seeds = range(1 + repeat * design.subsets, 1 + (repeat + 1) * design.subsets)
    return [{"half": half, "seed": seed, "own_start": True} for half, seed in enumerate(seeds)]


def shares(design: Design) -> list[dict[str, Any]]:
    return [{"share": design.fraction, "draw": number} for number in range(design.shares)]


def highest(cell: Foretold, design: Design) -> dict[str, Any]:
    """Without the rows that the report's ranking finds most helpful to all queries together."""
    order = _order(cell)
    return {"without": sorted(order[: max(1, int(design.fraction * cell.rows))].tolist())}


def ones(cell: Foretold, design: Design) -> list[int]:
    order, count = _order(cell), min(design.ones, cell.rows)
    return [*order[: count - count // 2].tolist(), *order[len(order) - count // 2 :].tolist()]


def _order(cell: Foretold) -> np.ndarray:
    """Rows by falling mean score of the report's ranking; those without a score in the middle."""
    total_N = finite_or_0(cell.scores[cell.ranking][1]).mean(0)
    return np.argsort(-total_N, kind="stable")


def patches(session: Session, cell: Foretold, design: Design) -> list[Unit]:
    """Single steps: on random rows first, then by each ranking."""
    evaluates = session.recipe.evaluates
    assert evaluates is not None
    if not design.patch or evaluates.trained is None:
        return []
    jobs = [patching.random_sets(session.seed, cell, min(design.patch, cell.rows))]
    jobs += [job for name in cell.scores for job in patching.top_sets(cell, name, design.patch)]
    return [unit_of(session, cell, {"queries": len(cell.queries), **job}) for job in jobs]


def unrolled_units(session: Session, cell: Foretold) -> list[Unit]:
    queries = len(cell.scores[cell.ranking][1])
    parts = row_ranges(queries, QUERIES_PER_UNIT)
    return [unit_of(session, cell, {UNROLLED: [int(a), int(b)]}) for a, b in parts]
