"""Stage evaluate: the trained model on every evaluation row, and the choice of targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from distinf.errors import InputError
from distinf.runtime import Cost, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.stages.session import Outline, Session, row_ranges
from distinf.stages.settings import TargetSettings
from distinf.stages.task import Task
from distinf.stages.train import trained_model

NAME = "evaluate"


@dataclass(frozen=True)
class Targets:
    """ids [T] of evaluation rows, and their gaps [T] (Eq. 9), largest first."""

    ids: np.ndarray
    gaps: np.ndarray


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Row ranges of the evaluation split."""
    shapes, settings = outline.shapes, outline.settings.evaluate
    memory = shapes.activation_bytes_per_sample * settings.batch_size
    return [
        (
            Unit(NAME, outline.basis[NAME], a, b),
            Cost(flops=shapes.flops_per_sample * (b - a), bytes=40.0 * (b - a), memory=memory),
        )
        for a, b in row_ranges(outline.rows["evaluation"], settings.rows_per_unit)
    ]


def run(session: Session, runtime: Runtime) -> None:
    wanted = [unit for unit, _ in units(session.outline)]
    runtime.pool(session.work("distinf.stages.evaluate:body"), wanted, session.ledger(NAME))
    chosen_targets(session)  # refuse now, before the expensive stages, if none is eligible


def body(session: Session, unit: Unit, attempt: str) -> Record:
    model = session.cached("trained", lambda: trained_model(session))
    found = columns(session, model, np.arange(unit.start, unit.stop))
    return session.commit(unit, attempt, found, may_hold_nan=list(found))


def columns(session: Session, model: nn.Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The task's columns [len(ids)] for evaluation rows, in the order of ids."""
    size = session.settings.evaluate.batch_size
    parts: list[dict[str, np.ndarray]] = []
    for a, b in row_ranges(len(ids), size):
        with torch.no_grad():
            batch = session.batch("evaluation", ids[a:b])
            found = session.task.evaluate(model.eval(), batch)
        parts.append({name: values.detach().cpu().numpy() for name, values in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluated(session: Session) -> bool:
    """Every evaluation unit is committed, so that the targets are known."""
    wanted = [unit for unit, _ in units(session.outline)]
    return len(session.done(wanted)) == len(wanted)


def evaluation(session: Session) -> dict[str, np.ndarray]:
    """All evaluation columns before any fine-tuning."""
    wanted = [unit for unit, _ in units(session.outline)]
    return session.cached("evaluation", lambda: session.rows(wanted).columns())


def chosen_targets(session: Session) -> Targets:
    return choose_targets(evaluation(session), session.task, session.settings.targets)


def relative_gap(columns: Mapping[str, np.ndarray], task: Task) -> np.ndarray:
    """[n] (metric - reference) / reference (Eq. 9); without a reference, the metric itself."""
    metric = columns[task.metric].astype(np.float64)
    if task.reference is None:
        return metric
    reference = columns[task.reference].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (metric - reference) / reference


def choose_targets(
    columns: Mapping[str, np.ndarray], task: Task, settings: TargetSettings
) -> Targets:
    """The eligible rows of largest gap; ties go to the lower id.

    Raises InputError if no row has a positive gap and a large enough reference.
    """
    for name in (task.metric, task.reference):
        if name is not None and name not in columns:
            raise InputError(f"task: evaluate() returned no column '{name}'")
    gaps = relative_gap(columns, task)
    eligible = np.isfinite(gaps) & (gaps > 0)
    if task.reference is not None:
        eligible &= columns[task.reference] >= settings.min_reference
    ids = np.flatnonzero(eligible)
    if not len(ids):
        if task.reference is None:
            raise InputError(
                f"targets: none of {len(gaps)} evaluation rows has a finite {task.metric} above 0; "
                "there is nothing to improve"
            )
        raise InputError(
            f"targets: none of {len(gaps)} evaluation rows has {task.reference} >= "
            f"{settings.min_reference:g} and a gap above 0; lower targets.min_reference"
        )
    order = np.argsort(-gaps[ids], kind="stable")[: settings.count]
    return Targets(ids[order], gaps[ids[order]])
