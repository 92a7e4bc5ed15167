"""Stage data: each cell's rows, made once and stored; nothing outside the run is read after it."""

from collections.abc import Sequence

from distinf.engine.stage import Stage
from distinf.errors import InputError
from distinf.gram.session import DATA, Outline, Session, data_unit
from distinf.gram.task import Prepared
from distinf.runtime import Cost, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.tasks.rehearsal import rehearse
from distinf.tasks.task import STUDIES, error_context

NAME = DATA


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """One per cell; none for a task whose rows are there already."""
    return [
        (
            data_unit(cell.name, cell.asked_keys),
            Cost(bytes=cell.stored, memory=2 * cell.stored),
        )
        for cell in outline.cells.values()
        if cell.prepared
    ]


def run(session: Session, runtime: Runtime) -> None:
    wanted = [unit for unit, _ in units(session.outline)]
    if wanted:
        runtime.pool(session.work("distinf.gram.data:body"), wanted, session.ledger(NAME))
    if wanted and session.context["task"] not in STUDIES:
        for name in session.tasks:
            rehearse(session.task(name))  # now that there are rows, and before anything is trained


def body(session: Session, unit: Unit, attempt: str) -> Record:
    task = session.tasks[unit.job["cell"]]
    if not isinstance(task, Prepared):
        raise InputError("data: this task has nothing to prepare")
    with error_context(f"prepare() of {unit.job['cell'] or 'the task'}"):
        arrays = task.prepare()
    return session.commit(unit, attempt, arrays)


STAGE = Stage(
    NAME, "read data", reads=("task.path", "task.cell", "task.identity"), units=units, run=run
)
