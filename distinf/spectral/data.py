"""Stage data: generate the task's rows, unit by unit. A task with data of its own skips it."""

from collections.abc import Sequence

from distinf.engine.stage import Stage, pooled
from distinf.errors import InputError
from distinf.runtime import Cost, Unit
from distinf.runtime.ledger import Record
from distinf.spectral.session import DATA, Outline, Session, split_units
from distinf.tasks.task import GeneratingTask

NAME = DATA


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """Row ranges of the splits."""
    bytes_of = outline.shapes.row_bytes
    found = []
    for split in outline.rows:
        for unit in split_units(outline, split):
            rows = unit.stop - unit.start
            work = {f"generate {split}": rows}
            found.append((unit, Cost(bytes=rows * bytes_of.get(split, 0.0), work=work)))
    return found


def body(session: Session, unit: Unit, attempt: str) -> Record:
    task = session.task
    if not isinstance(task, GeneratingTask):
        raise InputError("data: this task has nothing to generate")
    arrays = task.generate(unit.job["split"], unit.start, unit.stop)
    lengths = {len(values) for values in arrays.values()}
    if lengths != {unit.stop - unit.start}:
        raise InputError(
            f"task: generate({unit.job['split']}, {unit.start}, {unit.stop}) returned arrays of "
            f"{sorted(lengths)} rows instead of {unit.stop - unit.start}"
        )
    return session.commit(unit, attempt, arrays, chunk_rows=session.settings.data.chunk_rows)


run = pooled(f"{__name__}:body", NAME, units)
STAGE = Stage(
    NAME, "generate data",
    reads=(
        "task.path", "seed", "task.data", "task.rows", "task.rows_per_unit",
        "data", "-data.cache_mb",
    ),
    units=units, run=run,
)  # fmt: skip
