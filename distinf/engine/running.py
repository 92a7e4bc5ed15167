"""Routes: the kinds of run there are, and how any of them goes through its stages."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any, Protocol

from distinf.engine.recipe import recipe_named
from distinf.runtime import Agenda, Part, Runtime, Unit, repairs

LOG = logging.getLogger("distinf")  # the command line shows what is said here


class Watcher(Protocol):
    """Shows a stage's progress: units in the ledger, and shares that workers tell of others."""

    def __call__(
        self, stage: str, units: Sequence[Unit], done: Callable[[], float]
    ) -> AbstractContextManager[None]: ...


def stages_of(session: Any) -> Sequence[ModuleType]:
    """The stages of the session's route, in order; the last is the report."""
    return recipe_named(session.ROUTE).stages


def together(session: Any) -> list[Any]:
    """The run and its variations, in the order in which they are carried out."""
    return [session, *session.beside.values()]


def parts(session: Any) -> list[tuple[Any, ModuleType]]:
    """All that `run` goes through, in its order: whose, and which stage."""
    *stages, last = stages_of(session)
    return [*((each, stage) for each in together(session) for stage in stages), (session, last)]


def titles(session: Any) -> list[str]:
    """Of the `parts`."""
    return [titled(each, stage) for each, stage in parts(session)]


def planned(session: Any) -> list[Part]:
    """The `parts`, as far as can be told from where the run stands."""
    return [
        Part(titled(each, stage), stage.NAME, len(wanted_units(each, stage)))
        for each, stage in parts(session)
    ]


def check(session: Any) -> dict[str, str]:
    """InputError for what can only fail later, hours into the run -> the method by which the run,
    "", and each variation by name take gradients."""
    return {each.name: recipe_named(each.ROUTE).check(each) for each in together(session)}


def run(session: Any, runtime: Runtime, watch: Watcher) -> None:
    """Every stage in order; one whose units are all committed costs a look into its ledger."""
    agenda = Agenda(session.blobs)
    for place, (each, stage) in enumerate(parts(session)):
        wanted = wanted_units(each, stage)
        ids = {unit.id for unit in wanted}
        if not is_done(each, stage, wanted):
            agenda.know(place, ids)
            _run_stage(each, stage, wanted, runtime, watch)
        _after_repair(session, place, wanted)
        agenda.know(place, ids & each.ledger(stage.NAME).committed_ids(), is_over=True)


def _run_stage(
    session: Any, stage: ModuleType, wanted: Sequence[Unit], runtime: Runtime, watch: Watcher
) -> None:
    ids = {unit.id for unit in wanted}
    began, busy_s = time.time(), runtime.busy_s
    with watch(titled(session, stage), wanted, partial(_done, session, stage.NAME, ids)):
        stage.run(session, runtime)
    seconds = time.time() - began
    session.note_time(stage.NAME, began, seconds, runtime.busy_s - busy_s)


def _after_repair(session: Any, place: int, units: Sequence[Unit]) -> None:
    """Of the parts after this one, take out what was made of units that came out otherwise."""
    other = repairs.differing(session.blobs, units)
    if other:
        _take_out_after(session, place, other[0])
    repairs.settle(session.blobs, units)


def _take_out_after(session: Any, place: int, unit: Unit) -> None:
    stages, every = stages_of(session), parts(session)
    after = stages[stages.index(every[place][1]) + 1 :]
    move = repairs.moving(session.blobs, f"after-{unit.id}")
    later = [wanted_units(*part) for part in every[place + 1 :] if part[1] in after]
    count = sum(repairs.forget(session.blobs, each, move) for each in later)
    for each in together(session):
        each.forget_cached()
    LOG.warning(
        "warning: %s came out otherwise than before it was damaged (another machine or package?); "
        "%d units after it are computed anew", unit.describe(), count,
    )  # fmt: skip


def wanted_units(session: Any, stage: ModuleType) -> Sequence[Unit]:
    """What the stage has to do. Some know it only when the stages before are done."""
    own: Callable[[Any], Sequence[Unit]] | None = getattr(stage, "wanted_units", None)
    if own is not None:
        return own(session)
    return [unit for unit, _ in stage.units(session.outline)]


def titled(session: Any, stage: ModuleType) -> str:
    """The stage's name; a variation's has the variation's before it."""
    return f"{session.name}: {stage.NAME}" if session.name else str(stage.NAME)


def _done(session: Any, stage: str, ids: set[str]) -> float:
    """Committed units, and the shares of others that their workers have told."""
    committed = session.ledger(stage).committed_ids() & ids
    return len(committed) + float(session.told(stage, ids - committed))


def is_done(session: Any, stage: ModuleType, wanted: Sequence[Unit]) -> bool:
    """Nothing left to do. Some stages need fewer units than planned, and say so themselves."""
    own: Callable[[Any], bool] | None = getattr(stage, "is_done", None)
    if own is not None:
        return own(session)
    return {unit.id for unit in wanted} <= session.ledger(stage.NAME).committed_ids()
