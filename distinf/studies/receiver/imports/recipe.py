"""The recipe of an import: TFRecords to a dataset that a receiver run reads (see dataset.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from distinf.engine import session as engine_session
from distinf.engine.recipe import Recipe
from distinf.engine.session import row_ranges
from distinf.engine.stage import Keys, Stage, pooled
from distinf.errors import InputError
from distinf.runtime import Cost, Lever, Unit
from distinf.runtime.ledger import Record
from distinf.studies.receiver.dataset import COUNT, DATASET, FORMAT, PILOTS, ROWS, content
from distinf.studies.receiver.imports.mapping import MAY_BE_UNKNOWN, TfrecordImport
from distinf.studies.receiver.imports.pilots import check_patterns
from distinf.studies.receiver.imports.report import report
from distinf.studies.receiver.imports.rows import SLOT, SlotRows
from distinf.studies.receiver.imports.task import Records
from distinf.studies.receiver.imports.tfrecords import (
    Reader,
    Source,
    count,
    likely_records,
    tensorflow,
)
from distinf.studies.receiver.scenario import SYMBOLS_PER_SLOT
from distinf.tasks.task import SPLITS, Identified

BLOCK_ROWS = 96  # decoded at once; bounds memory, changes no bit
TENSORFLOW_BYTES = 5.5e8  # that a worker holds once it has imported it
RATES = ("genie_ber", "baseline_ber")


@dataclass(frozen=True)
class Settings:
    """All settings are the task's."""


@dataclass(frozen=True)
class Outline:
    """All that the list of units depends on. files: with as many records as their sizes tell."""

    config: TfrecordImport
    keys: Keys
    files: Sequence[Source]


class Session(engine_session.Session):
    """A run of the recipe as one process sees it."""

    @cached_property
    def outline(self) -> Outline:
        records: Records = self.task
        kind = records.settings.compression
        files = [replace(f, records=likely_records(f, kind)) for f in records.files]
        return Outline(records.settings, self.keys, files)

    def files(self) -> Sequence[Source]:
        """With their counted records; as the outline has them before all are counted."""
        units = [unit for unit, _ in count_units(self.outline)]
        records = self.done(units)
        if any(unit.id not in records for unit in units):
            return self.outline.files
        pairs = zip(self.outline.files, units, strict=True)
        return [replace(f, records=records[u.id]["summary"]["records"]) for f, u in pairs]


# -- units -------------------------------------------------------------------------------------


def pilot_units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    return [(Unit(PILOTS, outline.keys[PILOTS]), Cost(bytes=1e5))]


def count_units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    key, cost = outline.keys[COUNT], Cost(memory=TENSORFLOW_BYTES)
    return [(Unit(COUNT, key, job={"file": f.path, "bytes": f.bytes}), cost) for f in outline.files]


def row_units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    """As many as the files' sizes tell."""
    step, row = outline.config.rows_per_unit, row_bytes(outline.config)
    lever = Lever("settings.rows_per_unit", step, 2 * step * row, where="host")
    memory = TENSORFLOW_BYTES + 16 * BLOCK_ROWS * row
    return [
        (
            unit,
            Cost(
                bytes=row * (unit.stop - unit.start),
                memory=memory + 2 * row * (unit.stop - unit.start),
                levers=(lever,),
            ),
        )
        for unit in _row_units(outline, outline.files)
    ]


def wanted_rows(session: Session) -> Sequence[Unit]:
    return _row_units(session.outline, session.files())


def _row_units(outline: Outline, files: Sequence[Source]) -> list[Unit]:
    step, key = outline.config.rows_per_unit, outline.keys[ROWS]
    return [
        Unit(ROWS, key, start, stop, {"split": split})
        for split, rows in rows_in(files).items()
        for start, stop in row_ranges(rows, step)
    ]


def rows_in(files: Sequence[Source]) -> dict[str, int]:
    return {split: sum(f.records for f in files if f.split == split) for split in SPLITS}


def row_bytes(config: TfrecordImport) -> float:
    """Stored bytes of a row: a float16 grid, packed bits and a few numbers."""
    scenario = config.scenario.scenario
    grid = 4.0 * SYMBOLS_PER_SLOT * scenario.rx_antennas * scenario.subcarriers
    return grid + scenario.packed_bytes + 40


def dataset_units(outline: Outline) -> Sequence[tuple[Unit, Cost]]:
    return [(Unit(DATASET, outline.keys[DATASET]), Cost(bytes=1e4))]


# -- bodies ------------------------------------------------------------------------------------


def store_pilots(session: Session, unit: Unit, attempt: str) -> Record:
    """Rows are read by these, without the user's arrays."""
    return session.commit(unit, attempt, session.task.pilots)


def count_records(session: Session, unit: Unit, attempt: str) -> Record:
    source = next(f for f in session.task.files if f.path == unit.job["file"])
    found = count(source, session.task.settings.compression)
    return session.commit(unit, attempt, {}, summary={"records": found})


def import_rows(session: Session, unit: Unit, attempt: str) -> Record:
    """Read, check and store the unit's rows."""
    split, config = unit.job["split"], session.task.settings
    rows = SlotRows(config, session.task.tables, split)
    reader, parts = session.cached(("reader", split), lambda: _reader(session, split)), []
    for start in range(unit.start, unit.stop, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, unit.stop)
        parts.append(rows.columns(reader.records(start, stop)))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return session.commit(
        unit, attempt, arrays, chunk_rows=config.chunk_rows, may_hold_nan=MAY_BE_UNKNOWN
    )


def _reader(session: Session, split: str) -> Reader:
    files = [f for f in session.files() if f.split == split]
    return Reader(files, session.task.settings.compression)


def sum_up(session: Session, unit: Unit, attempt: str) -> Record:
    """Refuse slots that are in both splits; say what the dataset is, in the unit's summary."""
    config, files = session.task.settings, session.files()
    units = {s: [u for u in wanted_rows(session) if u.job["split"] == s] for s in SPLITS}
    rows = {split: session.rows(mine) for split, mine in units.items()}
    _refuse_shared_slots(files, {s: r.columns([SLOT])[SLOT] for s, r in rows.items()})
    first = {split: r.take(np.array([0])) for split, r in rows.items()}
    records = {PILOTS: [pilot_units(session.outline)[0][0]], **units}
    facts = {
        "format": FORMAT,
        "keys": {stage: session.keys[stage] for stage in (PILOTS, ROWS)},
        "scenario": asdict(config.scenario),
        "labels": list(config.labels),
        "rows": {split: len(r) for split, r in rows.items()},
        "columns": {split: _kinds(columns) for split, columns in first.items()},
        "digests": {name: content(session.done(u).values()) for name, u in records.items()},
        "sources": [asdict(f) for f in files],
        "rates": {
            split: {name: float(v.mean()) for name, v in r.columns(_rates(first[split])).items()}
            for split, r in rows.items()
        },
    }
    return session.commit(unit, attempt, {}, summary=facts)


def _rates(columns: Mapping[str, np.ndarray]) -> list[str]:
    return [name for name in RATES if name in columns]


def _kinds(row: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    return {k: {"dtype": str(v.dtype), "shape": list(v.shape[1:])} for k, v in row.items()}


def _refuse_shared_slots(files: Sequence[Source], hashes: Mapping[str, np.ndarray]) -> None:
    shared = np.flatnonzero(np.isin(hashes["evaluation"], hashes["train"]))
    if not len(shared):
        return
    pairs = []
    for row in shared[:3]:
        twin = int(np.flatnonzero(hashes["train"] == hashes["evaluation"][row])[0])
        pairs.append(f"{_name(files, 'evaluation', int(row))} = {_name(files, 'train', twin)}")
    more = " …" if len(shared) > 3 else ""
    raise InputError(
        f"files.evaluation: {len(shared)} of {len(hashes['evaluation'])} slots are in the training "
        f"files too ({'; '.join(pairs)}{more}); an evaluation set must be one the model never saw"
    )


def _name(files: Sequence[Source], split: str, row: int) -> str:
    for source in files:
        if source.split == split:
            if row < source.records:
                return f"{source.path}: record {row}"
            row -= source.records
    raise AssertionError(f"no row {row} in {split}")


# -- the recipe --------------------------------------------------------------------------------


def check(session: Session) -> str:
    """Import the first record of each split: most mistakes in a mapping show in it."""
    tensorflow()
    records: Records = session.task
    check_patterns(records.settings, records.tables)
    for split in SPLITS:
        first = next(f for f in records.files if f.split == split)
        reader = Reader([replace(first, records=1)], records.settings.compression)
        SlotRows(records.settings, records.tables, split).columns(reader.records(0, 1))
    return ""


def summary(session: Session) -> list[str]:
    """How many slots of each split, their mean error rates, and how a run takes them."""
    facts = session.record(dataset_units(session.outline)[0][0])["summary"]
    lines = []
    for split in SPLITS:
        rates = sorted(facts["rates"][split].items(), reverse=True)
        means = "".join(f", mean {name} {rate:.3g}" for name, rate in rates)
        lines.append(f"{split}: {facts['rows'][split]} slots{means}")
    root = session.blobs.root
    return [*lines, f"dataset: {root}; use it with --set settings.dataset={root}"]


RECIPE = Recipe(
    settings=Settings,
    stages=(
        Stage(
            PILOTS, "pilot patterns", units=pilot_units,
            run=pooled(f"{__name__}:store_pilots", PILOTS, pilot_units),
            reads=("task.path", "task.identity.pilots"),
        ),
        Stage(
            COUNT, "count records", units=count_units,
            run=pooled(f"{__name__}:count_records", COUNT, count_units),
            reads=("task.path", "task.settings.compression"),
        ),
        Stage(
            ROWS, "import records", units=row_units, wanted=wanted_rows,
            run=pooled(f"{__name__}:import_rows", ROWS, wanted=wanted_rows),
            needs=(PILOTS, COUNT), reads=("task.settings", "task.identity"),
        ),
        Stage(
            DATASET, "sum up", units=dataset_units,
            run=pooled(f"{__name__}:sum_up", DATASET, dataset_units), needs=(ROWS,)
        ),
    ),
    task=Identified,
    session=Session,
    report=report,
    check=check,
    summary=summary,
)  # fmt: skip
