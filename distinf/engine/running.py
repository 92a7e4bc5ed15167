"""How any run goes through the stages of its recipe, its variations' before the report."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from distinf.engine.session import Session
from distinf.engine.stage import Stage
from distinf.runtime import Agenda, Part, Runtime, Unit, repairs

LOG = logging.getLogger("distinf")  # the command line shows what is said here


class Watcher(Protocol):
    """Shows a part's progress: units in the ledger, and shares that workers tell of others."""

    def __call__(
        self, part: Part, units: Sequence[Unit], done: Callable[[], float]
    ) -> AbstractContextManager[None]: ...


def together(session: Session) -> list[Session]:
    """The run and its variations, in the order in which they are carried out."""
    return [session, *session.variations.values()]


def parts(session: Session) -> list[tuple[Session, Stage]]:
    """All that `run` goes through, in its order: whose, and which stage."""
    recipe = session.recipe
    working = [(each, stage) for each in together(session) for stage in recipe.working]
    return [*working, (session, recipe.last)]


def planned(session: Session) -> list[Part]:
    """The `parts`, as far as can be told from where the run stands."""
    return [part_of(*part, len(part[1].wanted_units(part[0]))) for part in parts(session)]


def part_of(session: Session, stage: Stage, units: int = 0) -> Part:
    """How people read it, of so many units; a variation's name is before it."""
    before = f"{session.name}: " if session.name else ""
    return Part(f"{before}{stage.name}", stage.name, units, f"{before}{stage.title}")


def check(session: Session) -> dict[str, str]:
    """InputError for what can only fail later, hours into the run -> the method by which the run,
    "", and each variation by name take gradients."""
    return {each.name: each.recipe.check(each) for each in together(session)}


def run(session: Session, runtime: Runtime, watch: Watcher) -> None:
    """Every stage in order; one whose units are all committed costs a look into its ledger."""
    agenda = Agenda(session.blobs)
    for place, (each, stage) in enumerate(parts(session)):
        wanted = stage.wanted_units(each)
        ids = {unit.id for unit in wanted}
        if not stage.is_done(each, wanted):
            agenda.know(place, ids)
            run_stage(each, stage, wanted, runtime, watch)
        _after_repair(session, place, wanted)
        agenda.know(place, ids & each.ledger(stage.name).committed_ids(), is_over=True)


def run_stage(
    session: Session, stage: Stage, wanted: Sequence[Unit], runtime: Runtime, watch: Watcher
) -> None:
    assert stage.run is not None  # see Recipe.working
    ids = {unit.id for unit in wanted}
    began, busy_s = time.time(), runtime.busy_s
    with watch(
        part_of(session, stage, len(ids)), wanted, partial(done_of, session, stage.name, ids)
    ):
        stage.run(session, runtime)
    seconds = time.time() - began
    session.note_time(stage.name, began, seconds, runtime.busy_s - busy_s)


def _after_repair(session: Session, place: int, units: Sequence[Unit]) -> None:
    """Of the parts after this one, take out what was made of units that came out otherwise."""
    other = repairs.differing(session.blobs, units)
    if other:
        _take_out_after(session, place, other[0])
    repairs.settle(session.blobs, units)


def _take_out_after(session: Session, place: int, unit: Unit) -> None:
    every = parts(session)
    order = [stage.name for stage in session.recipe.every]
    after = order[order.index(every[place][1].name) + 1 :]
    move = repairs.moving(session.blobs, f"after-{unit.id}")
    later = [stage.wanted_units(each) for each, stage in every[place + 1 :] if stage.name in after]
    count = sum(repairs.forget(session.blobs, each, move) for each in later)
    for each in together(session):
        each.forget_cached()
    LOG.warning(
        "warning: %s came out otherwise than before it was damaged (another machine or package?); "
        "%d units after it are computed anew", unit.describe(), count,
    )  # fmt: skip


def done_of(session: Session, stage: str, ids: set[str]) -> float:
    """Committed units, and the shares of others that their workers have told."""
    committed = session.ledger(stage).committed_ids() & ids
    return len(committed) + session.told(stage, ids - committed)
