"""What a finished run's scores are worth: held against training again on some of its rows.

Each training is a unit of the run's own ledger, named by the rows that it leaves out and its seed:
one that was done is never done again, whichever question asked for it.
Shape legend: Q queries, N training rows, M subsets, K trainings of each.
"""

import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from distinf.config import RunConfig, load
from distinf.digest import digest
from distinf.engine import patching, running
from distinf.engine.lease import held
from distinf.engine.patching import PATCH
from distinf.engine.recipe import Draws, Evaluates, Foretold
from distinf.engine.run import refuse_unfinished, reopen
from distinf.engine.session import Session, draw, row_ranges
from distinf.engine.several import Opened, with_mean
from distinf.engine.verifying import EVALUATION, folder_of
from distinf.errors import InputError
from distinf.numerics.counterfactual import (
    FEWEST,
    LEAST_CEILING,
    Measure,
    agreement,
    ceiling,
    datamodeling,
    finite_or_0,
    mean_over,
    slope,
    wrong_labels_auc,
)
from distinf.runtime import Part, Unit, hand_out, open_runtime
from distinf.runtime.ledger import Record

Row = dict[str, Any]
NONE_OUT: dict[str, Any] = {"without": []}
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


@dataclass(frozen=True)
class Evaluation:
    """root: the folder below the run's that has the tables. rows: one for each measure."""

    root: str
    rows: Sequence[Row]
    trainings: int


@dataclass(frozen=True)
class Asked:
    """A run to be evaluated: its cells with their scores, and all that has to be done for it.
    stored: the cells without other runs' mean. keys: of the other runs' scores."""

    config: RunConfig
    session: Session
    evaluates: Evaluates
    stored: list[Foretold]
    cells: list[Foretold]
    units: list[Unit]
    keys: list[str]


def evaluate(
    folder: str, design: Design, watch: running.Watcher, others: Sequence[str] = ()
) -> Evaluation:
    """Train the run in `folder` again as `design` says, and measure all its stored scores by that;
    beside them the mean of its and other runs' scores, which differ in their seed alone.

    InputError for a run that is not finished, that cannot be trained again, or whose recipe has no
    scores to hold against it, and for others that differ otherwise.
    """
    it = asked(folder, design, others)
    session, evaluates, cells, units = it.session, it.evaluates, it.cells, it.units
    with held(session.blobs):
        _train(session, evaluates, units, it.config.runtime, watch)
        if design.unrolled:
            cells = [_with_unrolled(session, cell) for cell in cells]
            steps = [unit for cell in cells for unit in _patches(session, cell, design)]
            _train(session, evaluates, steps, it.config.runtime, watch)
        rows = [row for cell in cells for row in _measures(session, cell, design)]
        of, trainings = evaluates.key(session), sum(map(is_training, units))
        what = [of, [unit.id for unit in units], asdict(design), *([it.keys] if it.keys else [])]
        kind = EVALUATION + digest(what)
        root, about = folder_of(kind), {"of": of, "design": asdict(design), "with": [*others]}
        files = dict(_files(root, rows, {**about, "trainings": trainings}))
        if cells is not it.stored:
            files[f"{root}/rows.csv"] = _csv(_made_here(it.stored, cells))
        hand_out(session.blobs, kind, files)
        assert session.recipe.report is not None  # see recipe_named
        session.recipe.report(session)  # its page has a line on it
    return Evaluation(f"{session.blobs.root}/{root}", rows, trainings)


def asked(folder: str, design: Design, others: Sequence[str] = ()) -> Asked:
    """The run in `folder`, evaluated as `design` says; InputError as `evaluate`."""
    config, session = load(folder), reopen(folder)
    evaluates = config.RECIPE.evaluates
    if evaluates is None:
        raise InputError(f"{folder}: its recipe, {config.recipe}, has no scores to evaluate")
    refuse_unfinished(session, config, folder)
    if design.unrolled:
        _check_unrolled(evaluates, session, config.recipe)
    evaluates.check(session, design.most())
    session.refuse_other_data()
    cells = stored = list(evaluates.foretold(session))
    keys: list[str] = []
    if others:
        own = Opened(folder, session, config, {cell.cell: cell for cell in cells})
        cells, keys = with_mean(own, others, evaluates)
    units = list({u.id: u for cell in cells for u in _every_unit(session, cell, design)}.values())
    return Asked(config, session, evaluates, stored, cells, units, keys)


def _train(
    session: Session, evaluates: Evaluates, units: Sequence[Unit], settings: Any,
    watch: running.Watcher,
) -> None:  # fmt: skip
    name, ids = evaluates.stage.name, {unit.id for unit in units}
    ledger = session.ledger(name)
    if ids <= ledger.committed_ids():
        return
    part, began = Part(name, name, len(ids), evaluates.stage.title), time.time()
    done = partial(running.done_of, session, name, ids)
    with closing(open_runtime(settings)) as runtime, watch(part, units, done):
        runtime.pool(session.work("distinf.engine.evaluating:body"), units, ledger)
        session.note_time(name, began, time.time() - began, runtime.busy_s)


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: each loss fp64 [Q] of the model trained on the rows that the unit keeps; of one
    that unrolls, each loss's scores fp64 [queries, N]; of single steps, see losses_after."""
    evaluates = session.recipe.evaluates
    assert evaluates is not None  # see evaluate
    job, tell = unit.job, partial(session.tell, unit)
    if UNROLLED in job:
        assert evaluates.unrolls is not None  # see _check_unrolled
        found = evaluates.unrolls.scores(session, job["cell"], slice(*job[UNROLLED]), tell)
    elif PATCH in job:
        assert evaluates.trained is not None  # see _patches
        trained = evaluates.trained(session, job["cell"])
        found = patching.losses_after(trained, job, job["queries"], tell)
    else:
        kept = np.flatnonzero(kept_rows(session.seed, job))
        draws = Draws(job["seed"], job.get("own_start", False))
        found = evaluates.losses(session, job["cell"], kept, draws, tell)
    return session.commit(unit, attempt, dict(found), may_hold_nan=list(found))


# -- the trainings ---------------------------------------------------------------------------


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


def _unit(session: Session, cell: Foretold, what: Mapping[str, Any]) -> Unit:
    evaluates = session.recipe.evaluates
    assert evaluates is not None
    keys = session.context["keys"][cell.cell]
    job = {"cell": cell.cell, "rows": cell.rows, "seed": 0, **what}
    return Unit(evaluates.stage.name, keys[evaluates.stage.name], job=job)


def _every_unit(session: Session, cell: Foretold, design: Design) -> Iterator[Unit]:
    """One by one those that a first look needs most: the whole set, then halves in turn."""
    if design.ones:
        yield _unit(session, cell, NONE_OUT)
    for repeat in range(design.repeats):
        yield from (_unit(session, cell, half) for half in _halves(design, repeat))
    if design.shares:
        yield _unit(session, cell, _highest(cell, design))
        yield from (_unit(session, cell, share) for share in _shares(design))
    yield from (_unit(session, cell, {"without": [row]}) for row in _ones(cell, design))
    if design.unrolled:
        yield from _unrolled_units(session, cell)
    yield from _patches(session, cell, design)


def is_training(unit: Unit) -> bool:
    return UNROLLED not in unit.job and PATCH not in unit.job


def _halves(design: Design, repeat: int) -> list[dict[str, Any]]:
    if not design.independent:
        return [{"half": number, "seed": repeat} for number in range(design.subsets)]
    seeds = range(1 + repeat * design.subsets, 1 + (repeat + 1) * design.subsets)
    return [{"half": half, "seed": seed, "own_start": True} for half, seed in enumerate(seeds)]


def _shares(design: Design) -> list[dict[str, Any]]:
    return [{"share": design.fraction, "draw": number} for number in range(design.shares)]


def _highest(cell: Foretold, design: Design) -> dict[str, Any]:
    """Without the rows that the report's ranking finds most helpful to all queries together."""
    order = _order(cell)
    return {"without": sorted(order[: max(1, int(design.fraction * cell.rows))].tolist())}


def _ones(cell: Foretold, design: Design) -> list[int]:
    order, count = _order(cell), min(design.ones, cell.rows)
    return [*order[: count - count // 2].tolist(), *order[len(order) - count // 2 :].tolist()]


def _order(cell: Foretold) -> np.ndarray:
    """Rows by falling mean score of the report's ranking; those without a score in the middle."""
    total_N = finite_or_0(cell.scores[cell.ranking][1]).mean(0)
    return np.argsort(-total_N, kind="stable")


def _patches(session: Session, cell: Foretold, design: Design) -> list[Unit]:
    """Single steps: on random rows first, then by each ranking."""
    evaluates = session.recipe.evaluates
    assert evaluates is not None
    if not design.patch or evaluates.trained is None:
        return []
    jobs = [patching.random_sets(session.seed, cell, min(design.patch, cell.rows))]
    jobs += [job for name in cell.scores for job in patching.top_sets(cell, name, design.patch)]
    return [_unit(session, cell, {"queries": len(cell.queries), **job}) for job in jobs]


def _unrolled_units(session: Session, cell: Foretold) -> list[Unit]:
    queries = len(cell.scores[cell.ranking][1])
    parts = row_ranges(queries, QUERIES_PER_UNIT)
    return [_unit(session, cell, {UNROLLED: [int(a), int(b)]}) for a, b in parts]


def _check_unrolled(evaluates: Evaluates, session: Session, recipe: str) -> None:
    if evaluates.unrolls is None:
        raise InputError(
            f"evaluate: --unrolled: a run of the {recipe} recipe trains by the task's own fit(), "
            "which cannot be unrolled; one of the spectral recipe can"
        )
    evaluates.unrolls.check(session)


def _with_unrolled(session: Session, cell: Foretold) -> Foretold:
    """With a ranking more for each loss: that of the run's own training, unrolled."""
    parts = [session.arrays(unit) for unit in _unrolled_units(session, cell)]
    found = {
        f"{loss}/{UNROLLED}": (loss, np.concatenate([part[loss] for part in parts]))
        for loss in parts[0]
    }
    return replace(cell, scores={**cell.scores, **found})


# -- what they say ---------------------------------------------------------------------------


def _losses(
    session: Session, cell: Foretold, jobs: Sequence[Mapping[str, Any]], loss: str
) -> np.ndarray:
    """fp64 [M, Q]."""
    units = [_unit(session, cell, job) for job in jobs]
    return np.stack([session.arrays(unit, [loss])[loss] for unit in units])


def _kept(session: Session, cell: Foretold, jobs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.stack([kept_rows(session.seed, _unit(session, cell, job).job) for job in jobs])


def _measures(session: Session, cell: Foretold, design: Design) -> Iterator[Row]:
    """One row for each ranking and measure."""
    tops: dict[str, Measure] = {}
    for name, (loss, scores_QN) in cell.scores.items():
        about = {"cell": cell.cell, "ranking": name, "loss": loss, "queries": len(scores_QN)}
        if design.subsets:
            yield about | _of_halves(session, cell, design, loss, scores_QN, tops)
        if design.shares >= FEWEST:
            jobs = _shares(design)
            losses_MQ = _losses(session, cell, jobs, loss)
            found = datamodeling(scores_QN, _kept(session, cell, jobs), losses_MQ)
            what = f"LDS, {100 * design.fraction:g} % left out"
            yield about | _row(what, found, subsets=len(jobs), repeats=1)
        if cell.wrong_N is not None and cell.wrong_N.any():
            found = wrong_labels_auc(scores_QN, cell.wrong_N)
            yield about | _row("AUC, wrong labels lowest", found)
        if design.ones:
            yield from (about | row for row in _of_ones(session, cell, design, loss, scores_QN))
    yield from _of_patches(session, cell, design)
    if design.shares:
        yield _left_out(session, cell, design)


def _row(measure: str, found: Measure, **more: Any) -> Row:
    return {"measure": measure, **asdict(found), **more}


def _of_halves(
    session: Session, cell: Foretold, design: Design, loss: str, scores_QN: np.ndarray,
    tops: dict[str, Measure],
) -> Row:  # fmt: skip
    """LDS beside its ceiling; `tops` keeps each loss's."""
    repeats = [_halves(design, repeat) for repeat in range(design.repeats)]
    losses_KMQ = np.stack([_losses(session, cell, jobs, loss) for jobs in repeats])
    if loss not in tops:
        tops[loss] = ceiling(losses_KMQ)
    top = tops[loss]
    found = datamodeling(scores_QN, _kept(session, cell, repeats[0]), losses_KMQ.mean(0))
    row = _row("LDS, half left out", found, subsets=design.subsets, repeats=design.repeats)
    row |= {f"ceiling{'' if k == 'value' else f'_{k}'}": v for k, v in asdict(top).items()}
    # A ceiling near 0 is no yardstick: nothing can be measured by trainings that disagree.
    return row | {"of_ceiling": found.value / top.value if top.value >= LEAST_CEILING else None}


def _of_ones(
    session: Session, cell: Foretold, design: Design, loss: str, scores_QN: np.ndarray
) -> Iterator[Row]:
    rows = _ones(cell, design)
    whole_Q = _losses(session, cell, [NONE_OUT], loss)[0]
    with np.errstate(invalid="ignore"):  # a loss that is infinite in both
        changes_MQ = _losses(session, cell, [{"without": [r]} for r in rows], loss) - whole_Q
    found = agreement(finite_or_0(scores_QN[:, rows]).T, changes_MQ)
    yield _row("one row left out, Spearman", found, subsets=len(rows), repeats=1)
    fit = slope(scores_QN, np.array(rows), changes_MQ)
    yield _row("loss that a score of 1 means", fit, subsets=len(rows), repeats=1)


def _of_patches(session: Session, cell: Foretold, design: Design) -> Iterator[Row]:
    units, queries = _patches(session, cell, design), len(cell.queries)
    if not units:
        return
    random, left = units[0], iter(units[1:])
    for name, (loss, _) in cell.scores.items():
        top_Q: list[float] = []
        while len(top_Q) < queries:
            top_Q += session.arrays(next(left), [loss])[loss].tolist()
        found = patching.gain(np.array(top_Q), session.arrays(random, [loss])[loss])
        what = f"loss less after one step on the top {design.patch} rows, minus random"
        about = {"cell": cell.cell, "ranking": name, "loss": loss, "queries": queries}
        yield about | _row(what, found)


def _left_out(session: Session, cell: Foretold, design: Design) -> Row:
    """What leaving out the highest scored rows adds to the mean loss, beyond random ones; of the
    queries whose losses are all finite."""
    loss, scores_QN = cell.scores[cell.ranking]
    losses_MQ = _losses(session, cell, [_highest(cell, design), *_shares(design)], loss)
    without, *random_M = losses_MQ[:, np.isfinite(losses_MQ).all(0)].mean(1)
    found = mean_over(without - np.array(random_M))
    what = f"loss added without the top {100 * design.fraction:g} %, minus random"
    about = {"cell": cell.cell, "ranking": cell.ranking, "loss": loss, "queries": len(scores_QN)}
    return about | _row(what, found, subsets=design.shares, repeats=1)


def _files(root: str, rows: Sequence[Row], about: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield f"{root}/measures.csv", _csv(rows)
    finite = [{k: _plain(v) for k, v in row.items()} for row in rows]
    yield f"{root}/measures.json", json.dumps({**about, "measures": finite}, indent=1).encode()


def _made_here(stored: Sequence[Foretold], cells: Sequence[Foretold]) -> list[Row]:
    """Each row's mean score over the queries, of the rankings that are not stored with the run."""
    rows = []
    for before, cell in zip(stored, cells, strict=True):
        means = {
            name: finite_or_0(scores_QN).mean(0).tolist()
            for name, (_, scores_QN) in cell.scores.items()
            if name not in before.scores
        }
        for row in range(cell.rows):
            values = {name: values_N[row] for name, values_N in means.items()}
            rows.append({"cell": cell.cell, "row": row, **values})
    return rows


def _csv(rows: Sequence[Row]) -> bytes:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(k for row in rows for k in row)))
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
