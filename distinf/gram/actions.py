"""Stage actions: leave out the rows of lowest score and train again from the same start.

A configuration (random, full, or an estimator, group and aggregation) leads to a set of rows that
are kept; a job is named by that set, so that configurations that keep the same rows are one job.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from distinf.collective import Collective
from distinf.digest import sha256
from distinf.engine.session import draw
from distinf.engine.stage import Stage
from distinf.errors import InputError
from distinf.gram.configurations import (
    all_scores,
    configurations,
    named_configuration,
    not_among,
)
from distinf.gram.scores import cell_units
from distinf.gram.session import TRAIN, Cell, Outline, Session
from distinf.gram.settings import BASELINES, GRID, StageSettings
from distinf.gram.task import METRICS, Fit, Labelled
from distinf.gram.train import (
    WEIGHT,
    curves,
    fit_cost,
    fit_summary,
    fitted,
    fitted_together,
    gang_size,
    history_arrays,
    train,
)
from distinf.numerics.metrics import ndr, removed
from distinf.runtime import Cost, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.runtime.protocol import Resources
from distinf.runtime.units import ending_together

NAME = "actions"
FULL = (
    "actions.configurations: 'full' leaves out known noise first, but cell '{}' does not know any; "
    "leave it out"
)


@dataclass(frozen=True)
class Filtered:
    """What a configuration keeps of a cell's rows (int64, ascending), and the job that trains."""

    cell: str
    configuration: str
    kept: np.ndarray
    job: Unit


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """As many jobs as there can be; configurations that keep the same rows share one."""
    found = []
    for cell in outline.cells.values():
        if not cell.trained:
            continue
        cost = fit_cost(outline, cell, kept_count(outline, cell))
        if not outline.settings.actions.adapters:
            cost = replace(cost, bytes=0.0)
        for name in _planned(outline, cell):
            job = Unit(NAME, cell.keys[NAME], job={"cell": cell.name, "planned": name})
            found.append((job, cost))
    return found


def kept_count(outline: Outline, cell: Cell) -> int:
    """How many rows are kept."""
    rows = cell.rows[TRAIN]
    return rows - removed(rows, outline.settings.actions.fraction)


def _planned(outline: Outline, cell: Cell) -> list[str]:
    found: list[str] = []
    for name in outline.settings.actions.configurations:
        found += [*BASELINES, *configurations(outline, cell)] if name == GRID else [name]
    return list(dict.fromkeys(found))


def _scored(session: Session) -> bool:
    cells = session.outline.cells.values()
    wanted = [unit for cell in cells for unit in cell_units(session.settings, cell)]
    return len(session.done(wanted)) == len(wanted)


def wanted_units(session: Session) -> list[Unit]:
    """The jobs that the scores lead to; until there are scores, as many as planned."""
    if _scored(session):
        return jobs(session)
    return [unit for unit, _ in units(session.outline)]


def is_done(session: Session) -> bool:
    """All jobs that the scores lead to are committed."""
    wanted = wanted_units(session)
    return _scored(session) and len(session.done(wanted)) == len(wanted)


def job_resources(settings: StageSettings) -> Resources | None:
    """What a job's worker holds; None: what every worker does."""
    share = settings.actions.resources_gpus
    return Resources(num_gpus=share) if share else None


def run(session: Session, runtime: Runtime) -> None:
    wanted = jobs(session)
    if not wanted:
        return
    train(session, runtime, NAME, wanted, job_resources(session.settings))


def gang(session: Session, collective: Collective, attempt: str) -> None:
    rows = {f.job.id: f.kept for f in filterings(session)}
    for unit, fit in fitted_together(session, collective, jobs(session), lambda u: rows[u.id]):
        _commit(session, unit, attempt, fit, rows[unit.id])


def check(session: Session) -> None:
    """InputError for configurations that can be nothing, before anything is computed."""
    outline = session.outline
    if outline.settings.actions.resources_gpus and outline.settings.train.deepspeed:
        raise InputError(
            "actions.resources_gpus: with train.deepspeed the ranks of a job are the run's workers "
            "(runtime.num_gpus); leave it out"
        )
    for cell in outline.cells.values():
        known = configurations(outline, cell)
        for name in outline.settings.actions.configurations:
            if name == "full" and not isinstance(session.task(cell.name), Labelled):
                raise InputError(FULL.format(cell.name))
            if name not in (GRID, *BASELINES, *known):
                raise InputError(f"actions.configurations: {not_among(name, known)}")
        if outline.settings.actions.configurations and not cell.trained:
            raise InputError(
                "actions.configurations: this task cannot be trained (it has no fit); leave them "
                "out, and the rows are ranked only"
            )


def jobs(session: Session) -> list[Unit]:
    """Each distinct job once, those first whose results say most: baselines, then the
    configurations that catch most of the known noise, each over all cells before the next; but the
    last ones so that workers end together."""
    found: dict[str, Unit] = {}
    for filtered in filterings(session):
        found.setdefault(filtered.job.id, filtered.job)
    outline = session.outline
    flops = {
        cell.name: fit_cost(outline, cell, kept_count(outline, cell)).flops
        for cell in outline.cells.values()
        if cell.trained
    }
    return ending_together([*found.values()], lambda unit: flops[unit.job["cell"]])


def filterings(session: Session) -> list[Filtered]:
    """Every configuration of every cell, in that order."""
    cells = [cell for cell in session.outline.cells.values() if cell.trained]
    every = {cell.name: _of_cell(session, cell) for cell in cells}
    names = list(dict.fromkeys(name for found in every.values() for name in found))
    caught = {name: _caught(session, cells, name) for name in names if name not in BASELINES}
    order = [n for n in BASELINES if n in names]
    order += sorted(caught, key=lambda name: -caught[name])
    return [every[cell.name][name] for name in order for cell in cells if name in every[cell.name]]


def _caught(session: Session, cells: Sequence[Cell], name: str) -> float:
    """The mean noise detection rate over cells; 0 where no noise is known."""
    rates, share = [], session.settings.actions.fraction
    for cell in cells:
        noise = flipped_rows(session, cell.name)
        scores = all_scores(session, cell)
        key = named_configuration(name, scores)
        if noise is not None and noise.any():
            ordered = torch.from_numpy(lowest_first(scores[key]))
            rates.append(ndr(ordered, torch.from_numpy(noise), share))
    return float(np.mean(rates)) if rates else 0.0


def lowest_first(scores_N: np.ndarray) -> np.ndarray:
    """The same scores with rows that have none below all others: they are left out first."""
    finite_N = np.isfinite(scores_N)
    least = scores_N[finite_N].min() if finite_N.any() else 0.0
    return np.where(finite_N, scores_N, least - 1.0 - abs(least))


def _of_cell(session: Session, cell: Cell) -> dict[str, Filtered]:
    kept = kept_count(session.outline, cell)
    found = {}
    noise = flipped_rows(session, cell.name)
    for name in _planned(session.outline, cell):
        if name == "full" and noise is not None and not noise.any():
            continue  # nothing is known to be wrong: it would be "random" under another name
        rows = _kept_rows(session, cell, name, kept)
        job = {"cell": cell.name, "kept": rows_digest(rows)}
        found[name] = Filtered(cell.name, name, rows, Unit(NAME, cell.keys[NAME], job=job))
    return found


def _kept_rows(session: Session, cell: Cell, name: str, kept: int) -> np.ndarray:
    rows = cell.rows[TRAIN]
    shuffled = draw(session.seed, f"filter {cell.name}", rows, None)
    if name == "random":
        order = shuffled
    elif name == "full":
        noise = flipped_rows(session, cell.name)
        if noise is None:
            raise InputError(FULL.format(cell.name))
        order = shuffled[np.argsort(~noise[shuffled], kind="stable")]
    else:
        scores = all_scores(session, cell)
        order = np.argsort(lowest_first(scores[named_configuration(name, scores)]), kind="stable")
    return np.sort(order[rows - kept :]).astype(np.int64)


def rows_digest(rows: np.ndarray) -> str:
    """Names a set of rows."""
    return sha256(np.ascontiguousarray(rows, dtype=np.int64).tobytes())[:20]


def flipped_rows(session: Session, cell: str) -> np.ndarray | None:
    """bool [N]: training rows whose label is known to be wrong; None where nothing is known."""
    task = session.task(cell)
    found = task.flipped() if isinstance(task, Labelled) else None
    return None if found is None else np.asarray(found, dtype=bool)


def body(session: Session, unit: Unit, attempt: str) -> Record:
    """Arrays: METRICS by epoch, best, and the kept rows; weight.<name> if they are asked for."""
    cell = session.cell(unit.job["cell"])
    found = session.cached(("filtered", cell.name), lambda: _of_cell(session, cell))
    rows = next(f.kept for f in found.values() if f.job.id == unit.id)
    return _commit(session, unit, attempt, fitted(session, unit, rows), rows)


def _commit(session: Session, unit: Unit, attempt: str, fit: Fit, rows: np.ndarray) -> Record:
    arrays = {**history_arrays(fit), "kept": rows}
    if session.settings.actions.adapters:
        arrays |= {f"{WEIGHT}{name}": np.asarray(v) for name, v in fit.weights.items()}
    return session.commit(
        unit, attempt, arrays, summary=fit_summary(fit), may_hold_nan=list(METRICS)
    )


def histories(session: Session) -> Iterator[tuple[Filtered, Mapping[str, np.ndarray]]]:
    """Every configuration of every cell with its history, whichever job it shares."""
    for filtered in filterings(session):
        yield filtered, session.arrays(filtered.job)


STAGE = Stage(  # a job is named by the rows that it keeps
    NAME, "fine-tune", needs=("train",), reads=("actions.adapters",),
    uncounted=("actions", "scores"),
    units=units, run=run, wanted=wanted_units, done=is_done, resources=job_resources, is_jobs=True,
    ranks=gang_size, sharing="train.devices", curves=curves,
)  # fmt: skip
