"""What a finished run's scores are worth: held against training again on some of its rows.

trainings.py says which trainings there are, measures.py what they say of the scores.
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
from distinf.engine.measures import Row, measured
from distinf.engine.patching import PATCH
from distinf.engine.recipe import Draws, Evaluates, Foretold
from distinf.engine.run import refuse_unfinished, reopen
from distinf.engine.session import Session
from distinf.engine.several import Opened, with_mean
from distinf.engine.trainings import (
    UNROLLED,
    Design,
    every_unit,
    is_training,
    kept_rows,
    patches,
    unrolled_units,
)  # fmt: skip
from distinf.engine.verifying import EVALUATION, folder_of
from distinf.errors import InputError
from distinf.numerics.counterfactual import finite_or_0
from distinf.runtime import Part, Unit, hand_out, open_runtime
from distinf.runtime.ledger import Record


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
            cells = [with_unrolled(session, cell) for cell in cells]
            steps = [unit for cell in cells for unit in patches(session, cell, design)]
            _train(session, evaluates, steps, it.config.runtime, watch)
        rows = [row for cell in cells for row in measured(session, cell, design)]
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
        why = config.RECIPE.unevaluated
        raise InputError(f"{folder}: a run of the {config.recipe} recipe is not evaluated: {why}")
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
    units = list({u.id: u for cell in cells for u in every_unit(session, cell, design)}.values())
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
        assert evaluates.trained is not None  # see patches
        trained = evaluates.trained(session, job["cell"])
        found = patching.losses_after(trained, job, job["queries"], tell)
    else:
        kept = np.flatnonzero(kept_rows(session.seed, job))
        draws = Draws(job["seed"], job.get("own_start", False))
        found = evaluates.losses(session, job["cell"], kept, draws, tell)
    return session.commit(unit, attempt, dict(found), may_hold_nan=list(found))


def _check_unrolled(evaluates: Evaluates, session: Session, recipe: str) -> None:
    if evaluates.unrolls is None:
        raise InputError(
            f"evaluate: --unrolled: a run of the {recipe} recipe trains by the task's own fit(), "
            "which cannot be unrolled; one of the spectral recipe can"
        )
    evaluates.unrolls.check(session)


def with_unrolled(session: Session, cell: Foretold) -> Foretold:
    """With a ranking more for each loss: that of the run's own training, unrolled."""
    parts = [session.arrays(unit) for unit in unrolled_units(session, cell)]
    found = {
        f"{loss}/{UNROLLED}": (loss, np.concatenate([part[loss] for part in parts]))
        for loss in parts[0]
    }
    costs = {name: _unrolled_cost(session, cell, len(parts)) for name in found}
    return replace(cell, scores={**cell.scores, **found}, costs={**cell.costs, **costs})


def _unrolled_cost(session: Session, cell: Foretold, parts: int) -> float:
    """In gradients: two trainings a part, and of each query a Hessian product of every batch."""
    evaluates = session.recipe.evaluates
    assert evaluates is not None
    training = evaluates.passed(session, cell.cell, cell.rows)
    return training * (2 * parts + 3 * len(cell.queries))


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
