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
    curvature,
    data,
    evaluate,
    gradients,
    queries,
    report,
    scores,
    train,
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


def check(session: Session) -> None:
    """InputError for what can only fail later, hours into the run."""
    if not isinstance(session.task, GeneratingTask):
        rehearse(session.task)
    actions.check(session.outline)
    curvature.check(session)


def run(session: Session, runtime: Runtime, watch: Watcher) -> None:
    """Every stage in order; one whose units are all committed costs a look into its ledger."""
    for stage in BASIS_ROUTE:
        wanted = [unit for unit, _ in stage.units(session.outline)]
        if is_done(session, stage, wanted):
            continue
        ids = {unit.id for unit in wanted}
        ledger = session.ledger(stage.NAME)
        began, busy_s = time.time(), runtime.busy_s
        with watch(stage.NAME, wanted, partial(_count, ledger, ids)):
            stage.run(session, runtime)
        seconds = time.time() - began
        session.note_time(stage.NAME, began, seconds, runtime.busy_s - busy_s)


def _count(ledger: Ledger, ids: set[str]) -> int:
    return len(ledger.committed_ids() & ids)


def is_done(session: Session, stage: ModuleType, wanted: Sequence[Unit]) -> bool:
    """Nothing left to do. Some stages need fewer units than planned, and say so themselves."""
    own: Callable[[Session], bool] | None = getattr(stage, "is_done", None)
    if own is not None:
        return own(session)
    return {unit.id for unit in wanted} <= session.ledger(stage.NAME).committed_ids()
