"""An import as a whole: open or resume its folder, count, read, check, and say what there is.

Units are row ranges; a kill loses those in flight, and running again gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from distinf import __version__
from distinf.engine.running import Watcher
from distinf.errors import DistinfError, InputError, Interrupted
from distinf.runtime import Ledger, Part, RuntimeSettings, Unit, Work, digest, open_runtime
from distinf.runtime.ledger import Record, seal, unseal
from distinf.runtime.units import differences, flatten
from distinf.store import Blobs, Rows, open_root, write_group
from distinf.studies.receiver import dataset
from distinf.studies.receiver.dataset import COUNTS, FILE, FORMAT, PILOTS, ROWS, STARTED
from distinf.studies.receiver.imports.mapping import MAY_BE_UNKNOWN, TfrecordImport
from distinf.studies.receiver.imports.pilots import PilotTables, check_patterns, pilot_tables
from distinf.studies.receiver.imports.rows import SLOT, SlotRows
from distinf.studies.receiver.imports.tfrecords import (
    SPLITS,
    Reader,
    Source,
    count,
    sources,
    tensorflow,
)

BLOCK_ROWS = 96  # decoded at once; bounds memory, changes no bit
SPARE_BYTES = 64 << 20
TITLES = {PILOTS: "pilot patterns", COUNTS: "count records", ROWS: "import records"}


@dataclass(frozen=True)
class Imported:
    """What an import made: rows and mean error rates by split."""

    root: str
    rows: Mapping[str, int]
    rates: Mapping[str, Mapping[str, float]]


def import_records(config: TfrecordImport, out: str, watch: Watcher) -> Imported:
    """Carry the import out, from wherever it stands.

    InputError in one line for what is wrong, most of it before anything is written.
    """
    tensorflow()
    tables = pilot_tables(config)
    check_patterns(config, tables)
    files = sources(config)
    _rehearse(config, tables, files)
    blobs = open_root(out)
    _claim(blobs, _facts(config, tables, files))
    blobs.require(STARTED)
    try:
        return _carried_out(config, tables, files, blobs, watch)
    except (DistinfError, OSError):
        if dataset.is_import(blobs):
            raise
        raise Interrupted(
            f"out: {blobs.root} is gone, or its {STARTED} (moved, deleted, unmounted); put it back "
            "and run the same command to resume"
        ) from None


def _carried_out(
    config: TfrecordImport,
    tables: PilotTables,
    files: Sequence[Source],
    blobs: Blobs,
    watch: Watcher,
) -> Imported:
    runtime = open_runtime(_runtime(config))
    try:
        files = _count(config, files, blobs, runtime, watch)
        context = context_of(config, tables, files, blobs)
        _refuse_what_cannot_fit(context, blobs)
        for stage in (PILOTS, ROWS):
            _run(stage, units_of(stage, context), context, blobs, runtime, watch)
    finally:
        runtime.close()
    return finish(context, blobs)


def _rehearse(config: TfrecordImport, tables: PilotTables, files: Sequence[Source]) -> None:
    """The first record of each split: most mistakes in a mapping show in it."""
    for split in SPLITS:
        first = next(f for f in files if f.split == split)
        reader = Reader([replace(first, records=1)], config.compression)
        SlotRows(config, tables, split).columns(reader.records(0, 1))


def _runtime(config: TfrecordImport) -> RuntimeSettings:
    if config.workers == 1:
        return RuntimeSettings(kind="local")
    return RuntimeSettings(workers=config.workers, dashboard=False)


def _facts(config: TfrecordImport, tables: PilotTables, files: Sequence[Source]) -> dict[str, Any]:
    """What a resumed import must agree on, by dotted key."""
    settings = {k: v for k, v in _plain(config).items() if k != "workers"}
    found = flatten(settings)
    found["digest.pilots"] = _pilots_digest(tables)
    return found | {f"source.{f.path}": {"split": f.split, "bytes": f.bytes} for f in files}


def _plain(config: TfrecordImport) -> dict[str, Any]:
    plain: dict[str, Any] = TypeAdapter(TfrecordImport).dump_python(config, mode="json")
    return plain


def _pilots_digest(tables: PilotTables) -> str:
    arrays = _pilot_arrays(tables).values()
    return digest([[str(a.dtype), list(a.shape), a.tobytes().hex()] for a in arrays])


def _claim(blobs: Blobs, facts: Mapping[str, Any]) -> None:
    """Mark an empty folder as this import's; InputError if it is anything else's."""
    try:
        stored = unseal(blobs.get(STARTED), f"{blobs.root}/{STARTED}")["facts"]
    except KeyError:
        if blobs.names(""):
            raise InputError(
                f"out: {blobs.root} is not empty and holds no {STARTED}; choose another --out"
            ) from None
        blobs.put(STARTED, seal({"facts": facts}))
        return
    differing = differences(stored, facts)
    if differing:
        names = ", ".join(differing[:4]) + (" …" if len(differing) > 4 else "")
        raise InputError(
            f"out: {blobs.root} is of another import (differing: {names}); choose another --out"
        )


def _count(
    config: TfrecordImport, files: Sequence[Source], blobs: Blobs, runtime: Any, watch: Watcher
) -> list[Source]:
    """The files with their numbers of records, each counted once."""
    context = {"root": blobs.root, "config": _plain(config), "files": [asdict(f) for f in files]}
    units = [
        Unit(COUNTS, digest([f.bytes, config.compression]), job={"file": f.path}) for f in files
    ]
    _run(COUNTS, units, context, blobs, runtime, watch)
    records = Ledger(blobs, COUNTS).read(units)
    return [replace(f, records=records[u.id]["records"]) for f, u in zip(files, units)]


def context_of(
    config: TfrecordImport, tables: PilotTables, files: Sequence[Source], blobs: Blobs
) -> dict[str, Any]:
    """What a worker needs to know, as JSON."""
    plain, listed = _plain(config), [asdict(f) for f in files]
    settings = {k: v for k, v in plain.items() if k != "workers"}
    return {
        "root": blobs.root,
        "config": plain,
        "files": listed,
        "key": digest([settings, listed, _pilots_digest(tables)]),
    }


def _rows(context: Mapping[str, Any], split: str) -> int:
    return sum(f["records"] for f in context["files"] if f["split"] == split)


def units_of(stage: str, context: Mapping[str, Any]) -> list[Unit]:
    key = context["key"]
    if stage == PILOTS:
        return [Unit(PILOTS, key)]
    step = context["config"]["rows_per_unit"]
    return [
        Unit(ROWS, key, start, min(start + step, rows), {"split": split})
        for split in SPLITS
        for rows in [_rows(context, split)]
        for start in range(0, rows, step)
    ]


def _run(
    stage: str, units: Sequence[Unit], context: Mapping[str, Any], blobs: Blobs, runtime: Any,
    watch: Watcher,
) -> None:  # fmt: skip
    """Map the stage's body over the units that the ledger does not hold."""
    ledger = Ledger(blobs, stage)
    wanted = {unit.id for unit in units}
    if wanted <= ledger.committed_ids():
        return
    work = Work(f"{__name__}:{stage}_body", f"{__name__}:prepare", context)
    part = Part(stage, stage, len(units), TITLES[stage])
    with watch(part, units, lambda: len(ledger.committed_ids() & wanted)):
        runtime.pool(work, units, ledger)


class Importer:
    """What a worker holds for as long as it works on one import."""

    def __init__(self, context: Mapping[str, Any]):
        self.config = TypeAdapter(TfrecordImport).validate_python(context["config"])
        self.blobs = open_root(context["root"])
        self.blobs.require(STARTED)
        self.files = [Source(**f) for f in context["files"]]
        self.readers = {
            split: Reader([f for f in self.files if f.split == split], self.config.compression)
            for split in SPLITS
        }

    @cached_property
    def tables(self) -> PilotTables:
        return pilot_tables(self.config)

    def commit(self, unit: Unit, attempt: str, arrays: Mapping[str, np.ndarray]) -> Record:
        """Write the unit's group, verify it, put its record: after this it is done."""
        manifest = write_group(
            self.blobs, f"{unit.stage}.zarr/{unit.id}/{attempt}", arrays,
            chunk_rows=self.config.chunk_rows, may_hold_nan=MAY_BE_UNKNOWN,
        )  # fmt: skip
        columns = {
            name: {"dtype": str(values.dtype), "shape": list(values.shape[1:])}
            for name, values in arrays.items()
        }
        entry = {"manifest": manifest, "files": digest(manifest["files"]), "columns": columns}
        return Ledger(self.blobs, unit.stage).commit(unit, int(attempt.split("-")[0]), entry)


def prepare(context: Mapping[str, Any], device: torch.device) -> Importer:
    return Importer(context)


def index_body(state: Importer, unit: Unit, attempt: str) -> Record:
    """Count a file's records."""
    source = next(f for f in state.files if f.path == unit.job["file"])
    nothing = {"group": "", "files": {}, "bytes": 0}
    entry = {"records": count(source, state.config.compression), "manifest": nothing}
    return Ledger(state.blobs, COUNTS).commit(unit, int(attempt.split("-")[0]), entry)


def pilots_body(state: Importer, unit: Unit, attempt: str) -> Record:
    """Store the pilot tables, so that rows can be read without the user's arrays."""
    return state.commit(unit, attempt, _pilot_arrays(state.tables))


def import_body(state: Importer, unit: Unit, attempt: str) -> Record:
    """Read, check and store the unit's rows."""
    split = unit.job["split"]
    rows = SlotRows(state.config, state.tables, split)
    reader, parts = state.readers[split], []
    for start in range(unit.start, unit.stop, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, unit.stop)
        parts.append(rows.columns(reader.records(start, stop)))
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return state.commit(unit, attempt, arrays)


def _pilot_arrays(tables: PilotTables) -> dict[str, np.ndarray]:
    return {"sent": tables.sent_DSF.numpy(), "data": tables.data_DSF.numpy()}


def _refuse_what_cannot_fit(context: Mapping[str, Any], blobs: Blobs) -> None:
    config = TypeAdapter(TfrecordImport).validate_python(context["config"])
    scenario = config.scenario.scenario
    row = 4 * 14 * scenario.rx_antennas * scenario.subcarriers + scenario.packed_bytes + 40
    done = sum(record["manifest"]["bytes"] for record in Ledger(blobs, ROWS).read().values())
    needed = row * sum(_rows(context, split) for split in SPLITS) - done + SPARE_BYTES
    free = blobs.free_bytes()
    if free is not None and needed > free:
        raise InputError(
            f"out: the import stores about {needed / 1e9:.1f} GB but {blobs.root} has "
            f"{free / 1e9:.1f} GB free; choose another --out"
        )


def finish(context: Mapping[str, Any], blobs: Blobs) -> Imported:
    """Refuse slots that are in both splits, put dataset.json, and sum up."""
    found = list(Ledger(blobs, ROWS).read(units_of(ROWS, context)).values())
    of = {split: [r for r in found if r["job"]["split"] == split] for split in SPLITS}
    rows = {
        split: Rows(blobs, [(r["start"], r["stop"], r["manifest"]) for r in records])
        for split, records in of.items()
    }
    _refuse_shared_slots(context, {k: r.columns([SLOT])[SLOT] for k, r in rows.items()})
    of[PILOTS] = list(Ledger(blobs, PILOTS).read(units_of(PILOTS, context)).values())
    facts: dict[str, Any] = {
        "format": FORMAT,
        "distinf": __version__,
        "key": context["key"],
        "scenario": context["config"]["scenario"],
        "labels": list(TypeAdapter(TfrecordImport).validate_python(context["config"]).labels),
        "rows": {split: len(r) for split, r in rows.items()},
        "columns": {split: of[split][0]["columns"] for split in SPLITS},
        "digests": {name: dataset.content(records) for name, records in of.items()},
        "sources": context["files"],
    }
    blobs.put(FILE, seal(facts))
    rates = {}
    for split, held in rows.items():
        names = [n for n in ("genie_ber", "baseline_ber") if n in facts["columns"][split]]
        rates[split] = {name: float(v.mean()) for name, v in held.columns(names).items()}
    return Imported(blobs.root, facts["rows"], rates)


def _refuse_shared_slots(context: Mapping[str, Any], hashes: Mapping[str, np.ndarray]) -> None:
    shared = np.flatnonzero(np.isin(hashes["evaluation"], hashes["train"]))
    if not len(shared):
        return
    pairs = []
    for row in shared[:3]:
        twin = int(np.flatnonzero(hashes["train"] == hashes["evaluation"][row])[0])
        pairs.append(f"{_name(context, 'evaluation', int(row))} = {_name(context, 'train', twin)}")
    more = " …" if len(shared) > 3 else ""
    raise InputError(
        f"files.evaluation: {len(shared)} of {len(hashes['evaluation'])} slots are in the training "
        f"files too ({'; '.join(pairs)}{more}); an evaluation set must be one the model never saw"
    )


def _name(context: Mapping[str, Any], split: str, row: int) -> str:
    for source in context["files"]:
        if source["split"] == split:
            if row < source["records"]:
                return f"{source['path']}: record {row}"
            row -= source["records"]
    raise AssertionError(f"no row {row} in {split}")
