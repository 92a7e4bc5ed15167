"""Stage factors: EK-FAC of each cell's trained model; only where it is asked for.

What its units store: tasks/factors.py. Rows whose loss or gradient is not finite are left out, and
the embedding is none of the layers.
"""

from collections.abc import Sequence

from torch import nn

from distinf.engine.session import row_ranges
from distinf.engine.stage import Names, Stage, Values
from distinf.errors import InputError
from distinf.gram.gradients import pass_cost
from distinf.gram.session import (
    TRAIN,
    Cell,
    Outline,
    Session,
    layers_of,
    pool_phases,
    units_of_cells,
)
from distinf.gram.settings import EKFAC, StageSettings
from distinf.gram.spread import batch_setting, row_batches
from distinf.gram.stopwatch import TOOK, Stopwatch, by_width
from distinf.gram.stored_gradients import finite_rows
from distinf.gram.train import trained_model
from distinf.microbatch import rows_at_once
from distinf.numerics.ekfac import EkFac
from distinf.numerics.parameters import Layout
from distinf.runtime import Cost, Lever, Runtime, Unit
from distinf.runtime.ledger import Record
from distinf.tasks.factors import (
    PHASES,
    SHARDS,
    Batches,
    Passes,
    check_sampling,
    ekfac_of,
    rotations,
    squares,
)

NAME = "factors"


def units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """All phases' units of every cell."""
    return units_of_cells(outline, cell_units, _cost)


def cell_units(settings: StageSettings, cell: Cell) -> list[Unit]:
    """A cell's units, phase by phase; none where EK-FAC is not asked for."""
    return [unit for phase in PHASES for unit in phase_units(settings, cell, phase)]


def phase_units(settings: StageSettings, cell: Cell, phase: str) -> list[Unit]:
    """A cell's units of one phase, in row order."""
    if EKFAC not in settings.scores.estimators:
        return []
    rows, job = cell.rows[TRAIN], {"cell": cell.name, "phase": phase}
    size = rows if phase == "bases" else -(-rows // SHARDS)
    return [Unit(NAME, cell.keys[NAME], a, b, job) for a, b in row_ranges(rows, size)]


def _cost(outline: Outline, cell: Cell, unit: Unit) -> Cost:
    factors, rows = 8.0 * squares(cell.forms), unit.stop - unit.start
    advice = f"leave {EKFAC} out of scores.estimators"
    if unit.job["phase"] == "bases":
        lever = Lever("scores.estimators", 1.0, 2.0 * factors, where="host", advice=advice)
        flops = 10.0 * squares(cell.forms, 3)
        return Cost(flops, bytes=factors, memory={"factors": 2.0 * factors}, levers=(lever,))
    if unit.job["phase"] == "sums":
        flops = 2.0 * max(cell.shapes.tokens_per_row or 1.0, 1.0) * squares(cell.forms)
        stored = factors
    else:
        flops, stored = rotations(cell.forms), 8.0 * sum(b.entries for b in cell.blocks.dense)
    held = factors + stored  # on the device; then what is stored, on the host
    levers = [
        Lever("scores.estimators", 1.0, size, where=where, advice=advice)
        for where, size in (("device", held), ("host", stored))
    ]
    return pass_cost(
        outline, cell, rows, flops=rows * flops, stored=stored, held={"factors": stored},
        on_device={"factors": held}, levers=levers,
    )  # fmt: skip


def check(session: Session) -> None:
    """InputError where EK-FAC is asked for and cannot be had."""
    settings = session.settings
    if EKFAC not in settings.scores.estimators:
        return
    if settings.gradients.chosen != "hooks":
        raise InputError(
            f"scores.estimators: {EKFAC} needs gradients.method: hooks, which see each layer's "
            f"input; leave {EKFAC} out"
        )
    for cell in session.outline.cells.values():
        if any(block.width != block.entries for block in cell.blocks.dense):
            raise InputError(
                f"scores.estimators: {EKFAC} needs gradients as they are; set "
                f"gradients.projection: 0, or leave {EKFAC} out"
            )
        try:
            check_sampling(session.task(cell.name))
        except InputError as error:
            raise InputError(f"scores.estimators: {error}") from None


def run(session: Session, runtime: Runtime) -> None:
    """Phase by phase: each needs all of the one before."""
    pool_phases(session, runtime, NAME, PHASES, phase_units)


def body(session: Session, unit: Unit, attempt: str) -> Record:
    watch, blocks = Stopwatch(session.device), session.cell(unit.job["cell"]).blocks.dense
    with watch.step([EKFAC], by_width(blocks)):
        arrays = _passes(session, unit).arrays(unit.job["phase"])
    return session.commit(unit, attempt, arrays, summary={TOOK: watch.notes()})


def _passes(session: Session, unit: Unit) -> Passes:
    name, settings = unit.job["cell"], session.settings
    cell = session.cell(name)
    parts, (whole,) = (phase_units(settings, cell, phase) for phase in ("sums", "bases"))

    def model() -> tuple[nn.Module, Layout]:
        found = trained_model(session, name)
        return found, layers_of(found, settings.gradients)

    return Passes(
        session.task(name), session.seed, settings.gradients.precision, session.device, cell.forms,
        model=model,
        batches=lambda: _batches(session, unit),
        setting=batch_setting(session, name),
        sums=lambda key: (session.arrays(part, [key])[key] for part in parts),
        bases=lambda: session.latest("bases", whole.id, lambda: session.arrays(whole)),
    )  # fmt: skip


def _batches(session: Session, unit: Unit) -> Batches:
    name = unit.job["cell"]
    finite_N = finite_rows(session, name, TRAIN)
    for places in row_batches(session, name, TRAIN, unit):
        ids = unit.start + places
        ids = ids[finite_N[ids]]
        for a, b in row_ranges(len(ids), rows_at_once(batch_setting(session, name), len(ids))):
            yield ids[a:b], session.batch(name, TRAIN, ids[a:b])


def _reads(values: Values) -> Names:
    """The seed samples the labels, where there are any."""
    return ("seed",) if EKFAC in values["scores"]["estimators"] else ()


STAGE = Stage(
    NAME, "Kronecker factors", needs=("gradients",), reads=_reads,
    uncounted=("scores.estimators",), units=units, run=run,
)  # fmt: skip


# -- what was stored -------------------------------------------------------------------------


def curvature(session: Session, cell: Cell) -> EkFac:
    """EK-FAC of a cell's trained model, on the CPU."""
    return session.latest("ekfac", cell.name, lambda: _curvature(session, cell))


def _curvature(session: Session, cell: Cell) -> EkFac:
    (bases,) = phase_units(session.settings, cell, "bases")
    parts = (session.arrays(part) for part in phase_units(session.settings, cell, "values"))
    rows = int(finite_rows(session, cell.name, TRAIN).sum())
    return ekfac_of(session.arrays(bases), parts, rows)
