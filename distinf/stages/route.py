"""The basis route: its stages in order, what each will cost, and how a run goes through them."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Protocol

from distinf.runtime import Cost, Ledger, Runtime, Unit
from distinf.stages import (
    actions,
    attribution,
    curvature,
    data,
    evaluate,
    gradients,
    queries,
    report,
    scores,
    train,
    trajectory,
)
from distinf.stages.session import Outline, Session
from distinf.stages.task import GeneratingTask, rehearse

BASIS_ROUTE: Sequence[ModuleType] = (
    data,
    train,
    evaluate,
    curvature,
    queries,
    gradients,
    scores,
    trajectory,
    attribution,
    actions,
    report,
)


class Watcher(Protocol):
    """Shows a stage's progress; it reads the ledger, so it sees what is committed and no more."""

    def __call__(
        self, stage: str, units: Sequence[Unit], done: Callable[[], int]
    ) -> AbstractContextManager[None]: ...


def all_units(outline: Outline) -> Mapping[str, Sequence[tuple[Unit, Cost]]]:
    """Stage name -> its units and their costs, before anything runs."""
    return {stage.NAME: stage.units(outline) for stage in BASIS_ROUTE}


def together(session: Session) -> list[Session]:
    """The run and its variations, in the order in which they are carried out."""
    return [session, *session.beside.values()]


def check(session: Session) -> None:
    """InputError for what can only fail later, hours into the run."""
    for each in together(session):
        _check(each)


def _check(session: Session) -> None:
    if not isinstance(session.task, GeneratingTask):
        rehearse(session.task)
    evaluate.check(session.outline)
    trajectory.check(session.outline)
    actions.check(session.outline)
    train.check(session)
    curvature.check(session)
    attribution.check(session)


def run(session: Session, runtime: Runtime, watch: Watcher) -> None:
    """Every stage in order; one whose units are all committed costs a look into its ledger."""
    for each in together(session):
        for stage in BASIS_ROUTE[:-1]:
            _run_stage(each, stage, runtime, watch)
    _run_stage(session, BASIS_ROUTE[-1], runtime, watch)


def _run_stage(session: Session, stage: ModuleType, runtime: Runtime, watch: Watcher) -> None:
    wanted = [unit for unit, _ in stage.units(session.outline)]
    if is_done(session, stage, wanted):
        return
    ids = {unit.id for unit in wanted}
    ledger = session.ledger(stage.NAME)
    began, busy_s = time.time(), runtime.busy_s
    with watch(titled(session, stage), wanted, partial(_count, ledger, ids)):
        stage.run(session, runtime)
    seconds = time.time() - began
    session.note_time(stage.NAME, began, seconds, runtime.busy_s - busy_s)


def titled(session: Session, stage: ModuleType) -> str:
    """The stage's name; a variation's has the variation's before it."""
    return f"{session.name}: {stage.NAME}" if session.name else str(stage.NAME)


def _count(ledger: Ledger, ids: set[str]) -> int:
    return len(ledger.committed_ids() & ids)


def is_done(session: Session, stage: ModuleType, wanted: Sequence[Unit]) -> bool:
    """Nothing left to do. Some stages need fewer units than planned, and say so themselves."""
    own: Callable[[Session], bool] | None = getattr(stage, "is_done", None)
    if own is not None:
        return own(session)
    return {unit.id for unit in wanted} <= session.ledger(stage.NAME).committed_ids()
