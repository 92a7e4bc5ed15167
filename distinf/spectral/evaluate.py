"""Stage evaluate: the trained model on every evaluation row, and the choice of targets.

Shape legend: E evaluation rows, T targets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from distinf.digest import digest
from distinf.engine.session import row_ranges
from distinf.engine.stage import Keys, Stage, Values
from distinf.errors import InputError
from distinf.microbatch import each_part
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.spectral.session import Outline, Session
from distinf.spectral.settings import TargetSettings
from distinf.spectral.train import trained_model
from distinf.tasks.task import Task, error_context

NAME = "evaluate"
# Without a backward pass few activations live at once: a share of all, .085 of a wide network.
LIVE = 0.125

Gap = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # of evaluate's columns


@dataclass(frozen=True)
class Targets:
    """ids [T] of evaluation rows and their gaps [T]: largest first, or as targets.ids has them.

    conditions [T]: targets of one number were measured under the same conditions.
    """

    ids: np.ndarray
    gaps: np.ndarray
    conditions: np.ndarray


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Row ranges of the evaluation split."""
    shapes, settings = outline.shapes, outline.settings.evaluate
    passed = LIVE * shapes.activation_bytes_per_sample * settings.batch_size
    return [
        (
            Unit(NAME, outline.keys[NAME], a, b),
            Cost(
                flops=shapes.flops_per_sample * (b - a),
                bytes=40.0 * (b - a),
                device={"weights": shapes.model_bytes, "activations": passed},
                staged=shapes.model_bytes,
                levers=(Lever("evaluate.batch_size", settings.batch_size, passed),),
                work={"forward": b - a},
                loaded=outline.loaded,
            ),
        )
        for a, b in row_ranges(outline.rows["evaluation"], settings.rows_per_unit)
    ]


def run(session: Session, runtime: Runtime) -> None:
    wanted = [unit for unit, _ in units(session.outline)]
    runtime.pool(session.work("distinf.spectral.evaluate:body"), wanted, session.ledger(NAME))
    chosen_targets(session)  # refuse now, before the expensive stages, if none is eligible


def body(session: Session, unit: Unit, attempt: str) -> Record:
    model = session.cached("trained", lambda: trained_model(session))
    found = columns(session, model, np.arange(unit.start, unit.stop))
    return session.commit(unit, attempt, found, may_hold_nan=list(found))


def columns(session: Session, model: nn.Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The task's columns [len(ids)] for evaluation rows, in the order of ids."""
    size = session.settings.evaluate.batch_size
    parts: list[dict[str, np.ndarray]] = []

    @torch.no_grad()
    def evaluated_on(mine: np.ndarray) -> dict[str, np.ndarray]:
        found = session.task.evaluate(model.eval(), session.batch("evaluation", mine))
        return {name: values.detach().cpu().numpy() for name, values in found.items()}

    for mine, found in each_part(ids, evaluated_on, "evaluate.batch_size", size):
        if parts and found.keys() != parts[0].keys():
            odd = ", ".join(sorted(found.keys() ^ parts[0].keys()))
            raise InputError(
                f"task: evaluate() returned '{odd}' for some evaluation rows only (not alike "
                f"before row {mine[0]} and from it on); return every column for every row"
            )
        parts.append(found)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluated(session: Session) -> bool:
    """Every evaluation unit is committed, so that the targets are known."""
    wanted = [*(unit for unit, _ in units(session.outline)), *_choosing_units(session)]
    return len(session.done(wanted)) == len({unit.id for unit in wanted})


def evaluation(session: Session) -> dict[str, np.ndarray]:
    """All evaluation columns before any fine-tuning."""
    wanted = [unit for unit, _ in units(session.outline)]
    return session.cached("evaluation", lambda: session.rows(wanted).columns())


def _choosing_units(session: Session) -> list[Unit]:
    """The evaluation in which the targets are chosen, which a variation may have of its run."""
    rows, where = session.outline.rows["evaluation"], session.context["chosen_in"]
    if "late" in session.context:  # targets that came after the run
        return [unit for unit, _ in units(session.outline)]
    ranges = row_ranges(rows, where["rows_per_unit"])
    return [Unit(NAME, where["evaluate"], a, b) for a, b in ranges]


def chosen_targets(session: Session) -> Targets:
    """The targets: in a variation the run's, less those without a usable gap in its own model.

    InputError if none is left.
    """
    task, settings = session.task, session.settings.targets
    chosen, own = _chosen_in_the_run(session), evaluation(session)
    usable = eligible_rows(own, task, settings)[chosen.ids]
    if not usable.any():
        raise InputError(
            f"variations.{session.name}: {_listed(chosen.ids.tolist())} without a usable gap in "
            "this model, and the run has no other targets; give the variation "
            "targets.ids of its own"
        )
    gaps = gap(own, task, settings.criterion)[chosen.ids]
    return Targets(chosen.ids[usable], gaps[usable], chosen.conditions[usable])


def unusable_targets(session: Session) -> list[int]:
    """The run's targets that a variation leaves out."""
    return sorted({*_chosen_in_the_run(session).ids.tolist()} - {*chosen_targets(session).ids})


def _chosen_in_the_run(session: Session) -> Targets:
    wanted = _choosing_units(session)
    columns = session.cached("choosing", lambda: session.rows(wanted).columns())
    return choose_targets(columns, session.task, session.settings.targets)


def check(session: Session) -> None:
    """InputError, before anything is computed, for targets that are not there, or named twice, and
    for a criterion that the task does not have."""
    settings, known = session.settings.targets, criteria_of(session.task)
    if settings.criterion not in known:
        raise InputError(
            f"targets.criterion: '{settings.criterion}' is none of this task's: {', '.join(known)}"
        )
    _refuse_absent(settings.ids, session.outline.rows["evaluation"])


def _refuse_absent(ids: Sequence[int], rows: int) -> None:
    absent = [row for row in dict.fromkeys(ids) if not 0 <= row < rows]
    if absent:
        raise InputError(
            f"targets.ids: {_listed(absent)} not among the evaluation rows, which are 0 to "
            f"{rows - 1}"
        )
    twice = [row for row in dict.fromkeys(ids) if ids.count(row) > 1]
    if twice:
        raise InputError(f"targets.ids: {_listed(twice)} named more than once; name each row once")


def criteria_of(task: Task) -> dict[str, Gap]:
    """Of the gap by which rows are ranked: those of any task, and the task's own."""
    own = getattr(task, "criteria", {})
    if not isinstance(own, Mapping) or not all(map(callable, own.values())):
        raise InputError("task: criteria is no mapping of names to functions of evaluate's columns")
    return {"relative": partial(_relative, task), "absolute": partial(_absolute, task), **own}


def gap(columns: Mapping[str, np.ndarray], task: Task, criterion: str) -> np.ndarray:
    """[E]: how far the metric is from the reference, by one of `criteria_of`; NaN: not known.

    relative  (metric - reference) / reference (Tuononen et al., Eq. 9)
    absolute  metric - reference
    Without a reference both are the metric itself.
    """
    with error_context(f"criterion '{criterion}'"):
        gap_E = np.asarray(criteria_of(task)[criterion](columns), dtype=np.float64)
    rows = columns[task.metric].shape
    if gap_E.shape != rows:
        raise InputError(f"task: criterion '{criterion}' gives {gap_E.shape}, not one gap a row")
    return gap_E


def _absolute(task: Task, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    metric = columns[task.metric].astype(np.float64)
    return metric if task.reference is None else metric - columns[task.reference]


def _relative(task: Task, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    if task.reference is None:
        return _absolute(task, columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _absolute(task, columns) / columns[task.reference].astype(np.float64)


def eligible_rows(
    columns: Mapping[str, np.ndarray], task: Task, settings: TargetSettings
) -> np.ndarray:
    """bool [E]: a gap above 0, and a reference of at least min_reference."""
    gap_E = gap(columns, task, settings.criterion)
    eligible_E = np.isfinite(gap_E) & (gap_E > 0)
    if task.reference is not None:
        eligible_E &= columns[task.reference] >= settings.min_reference
    return eligible_E


def choose_targets(
    columns: Mapping[str, np.ndarray], task: Task, settings: TargetSettings
) -> Targets:
    """The eligible rows of largest gap, ties to the lower id; or the rows that settings name.

    Of rows under the same conditions, which may be one draw of them, only the first few are taken.
    Raises InputError if no row is eligible, or one of those named is not.
    """
    for name in (task.metric, task.reference):
        if name is not None and name not in columns:
            raise InputError(f"task: evaluate() returned no column '{name}'")
    gap_E = gap(columns, task, settings.criterion)
    eligible_E = eligible_rows(columns, task, settings)
    conditions_E = conditions(columns, task)
    if settings.ids:
        _refuse_absent(settings.ids, len(gap_E))
        named = np.array(settings.ids, dtype=np.int64)
        _refuse_unusable(named[~eligible_E[named]].tolist(), task, settings)
        return Targets(named, gap_E[named], conditions_E[named])
    ids = np.flatnonzero(eligible_E)
    if not len(ids):
        if task.reference is None:
            raise InputError(
                f"targets: none of {len(gap_E)} evaluation rows has a finite {task.metric} above "
                "0; there is nothing to improve"
            )
        raise InputError(
            f"targets: none of {len(gap_E)} evaluation rows has {task.reference} >= "
            f"{settings.min_reference:g} and a gap above 0; lower targets.min_reference"
        )
    ranked = ids[np.argsort(-gap_E[ids], kind="stable")]
    earlier = _earlier_alike(conditions_E[ranked])
    chosen = ranked[earlier < (settings.per_condition or len(ranked))][: settings.count]
    return Targets(chosen, gap_E[chosen], conditions_E[chosen])


def conditions(columns: Mapping[str, np.ndarray], task: Task) -> np.ndarray:
    """[E]: a number for each set of conditions that rows share, by the columns that the task names.

    A row that cannot be told from others has a number of its own.
    """
    names = getattr(task, "conditions", ())
    rows = len(columns[task.metric])
    if not names or any(name not in columns for name in names):
        return np.arange(rows)
    values = np.stack([columns[name].astype(np.float64) for name in names], 1)
    return np.unique(values, axis=0, return_inverse=True)[1].reshape(-1)


def _earlier_alike(numbers: np.ndarray) -> np.ndarray:
    """For each place, how many places before it have the same number."""
    seen: dict[int, int] = {}
    found = []
    for number in numbers.tolist():
        found.append(seen.get(number, 0))
        seen[number] = found[-1] + 1
    return np.array(found, dtype=np.int64)


def _refuse_unusable(rows: Sequence[int], task: Task, settings: TargetSettings) -> None:
    if not rows:
        return
    wanted, way_out = f"a finite {task.metric} above 0", "leave them out"
    if task.reference is not None:
        wanted = f"{task.reference} >= {settings.min_reference:g} and a {task.metric} above it"
        way_out += " or lower targets.min_reference"
    raise InputError(f"targets.ids: {_listed(rows)} without a usable gap ({wanted}); {way_out}")


def _listed(rows: Sequence[int]) -> str:
    """ "rows 3, 7 are": at most ten of them."""
    names = ", ".join(map(str, rows[:10])) + (" …" if len(rows) > 10 else "")
    return f"row {names} is" if len(rows) == 1 else f"rows {names} are"


STAGE = Stage(
    NAME, "evaluate, choose targets", needs=("train",), reads=("evaluate",), uncounted=("targets",),
    units=units, run=run,
)  # fmt: skip


def targets_of_the_run(
    keys: Keys, values: Values, lends: Mapping[str, Any]
) -> tuple[Keys, dict[str, Any]]:
    """Recipe.lent: in which evaluation the targets are chosen, the run's where a variation has the
    same rows and settings of targets."""
    chosen_in = {
        "evaluate": keys[NAME],
        "rows_per_unit": values[NAME]["rows_per_unit"],
        "choice": digest([keys["data"], values["targets"]]),
        "targets": keys["targets"],
    }
    lent = lends.get("chosen_in", chosen_in)
    if lent["choice"] == chosen_in["choice"]:
        chosen_in = dict(lent)
    return {"targets": chosen_in["targets"]}, {"chosen_in": chosen_in}


TARGETS = Stage("targets", "choose targets", needs=(NAME,), reads=("targets",))  # made on the way
