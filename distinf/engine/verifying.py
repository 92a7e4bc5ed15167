"""Whether all that a run committed is there and as it was written, and a way back if it is not.

The agenda says which units there ought to be, the ledger which bytes are theirs, `handed/` which
files people were given. No task is imported.
"""

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distinf.engine import source_notes
from distinf.errors import CorruptionError, in_one_line
from distinf.naming import CONFIG
from distinf.runtime import Agenda, Ledger, Part, repairs
from distinf.runtime.agenda import START
from distinf.runtime.handed import FOLDER, changed, handed, sums_of
from distinf.runtime.ledger import Examined
from distinf.runtime.litter import TOLD
from distinf.runtime.records import folders_of
from distinf.store import Blobs, damage

NOTHING = {"group": "", "files": {}, "bytes": 0}  # the manifest of a unit without arrays
REPORT, TRAIN, QUERY, EVALUATION = "report", "train", "query-", "evaluation-"
WEIGHTS = "model.safetensors"
NOTES = ("repairs", "timing", TOLD, source_notes.FOLDER)  # which no result depends on
UNIT_ID = re.compile("[0-9a-f]{20}")
LISTED = 5  # missing units of a stage that are named one by one


@dataclass
class Verification:
    """Files read and bytes checked, and one line for each thing that is wrong.

    units   by stage, ids of those whose record or files are gone or not what was committed
    names   of files that cannot be believed: records, segments, the agenda's
    handed  kinds of files that are not as they were handed out
    """

    records: int = 0
    files: int = 0
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    units: dict[str, set[str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    handed: set[str] = field(default_factory=set)

    @property
    def by_run(self) -> bool:
        """Whether something is wrong that the run itself makes again."""
        asked = [kind for kind in self.handed if kind.startswith((QUERY, EVALUATION))]
        return any(self.units.values()) or bool(self.names) or len(asked) < len(self.handed)


def verify(blobs: Blobs) -> Verification:
    """Read every committed byte of a run again; list all that is missing or altered."""
    found = Verification()
    parts = _agenda(blobs, found)
    in_order = dict.fromkeys(part.stage for part in parts)
    for stage in [*in_order, *sorted(_stages_in(blobs, found) - in_order.keys())]:
        examined = _verify_stage(blobs, stage, found)
        for part in parts:
            if part.stage == stage:
                _look_for_missing(part, examined, found)
    _verify_handed(blobs, parts, found)
    for folder in NOTES:
        try:
            names = blobs.names(folder)
        except (CorruptionError, OSError) as error:
            _not_listed(found, folder, error)
            continue
        for name in names if folder == source_notes.FOLDER else ():
            try:
                source_notes.kept(blobs, name)
            except (CorruptionError, OSError) as error:
                _not_listed(found, name, error)
    return found


def _agenda(blobs: Blobs, found: Verification) -> list[Part]:
    """What the run has to do; [] if that is not known."""
    problems: dict[str, str] = {}
    parts: list[Part] = []
    try:
        agenda = Agenda(blobs)
        parts = agenda.parts(problems)
        problems |= _config(blobs, agenda.config())
    except KeyError:
        problems[START] = (
            f"{START} is missing: what the run has to do is not known; it was deleted, or an "
            "earlier version began the run: its command says it anew"
        )
    except (CorruptionError, OSError) as error:
        problems[START] = in_one_line(error, START)
    found.problems += problems.values()
    found.names |= problems.keys()
    return parts


def _config(blobs: Blobs, kept: str) -> dict[str, str]:
    """What is wrong with config.yaml, under its name, if anything is."""
    try:
        is_kept = blobs.get(CONFIG).decode("utf-8", "replace") == kept
    except KeyError:
        return {CONFIG: f"{CONFIG} is missing"}
    except (CorruptionError, OSError) as error:
        return {CONFIG: in_one_line(error, CONFIG)}
    return {} if is_kept else {CONFIG: f"{CONFIG} was altered after it was written"}


def _stages_in(blobs: Blobs, found: Verification) -> set[str]:
    try:
        return {name.split("/")[1] for name in blobs.names("ledger") if name.count("/") > 1}
    except (CorruptionError, OSError) as error:
        _not_listed(found, "ledger", error)
        return set()


def _not_listed(found: Verification, folder: str, error: CorruptionError | OSError) -> None:
    """A folder that may not be read stays where it is; a link that leads out of the run goes."""
    found.problems.append(in_one_line(error, folder))
    found.names |= {folder} if isinstance(error, CorruptionError) else set()


def _verify_stage(blobs: Blobs, stage: str, found: Verification) -> Examined:
    try:
        examined = Ledger(blobs, stage).examine()
    except (CorruptionError, OSError) as error:
        _not_listed(found, f"ledger/{stage}", error)
        return Examined()
    found.problems += examined.problems.values()
    found.names |= examined.problems.keys()
    found.units.setdefault(stage, set()).update(_unit_ids(examined.problems))
    for unit_id, record in examined.records.items():
        manifest, where = record.get("manifest", NOTHING), examined.places[unit_id]
        lines = [f"{problem} (its record: {where})" for problem in damage(blobs, manifest)]
        if lines:
            found.problems += lines
            found.units[stage].add(unit_id)
        found.records += 1
        found.files += len(manifest["files"])
        found.bytes += manifest["bytes"]
    return examined


def _look_for_missing(part: Part, examined: Examined, found: Verification) -> None:
    """Units of a part that is over, of which no record is there."""
    if not part.is_over or part.units is None:
        return
    lost = set(part.units) - examined.records.keys()
    found.units.setdefault(part.stage, set()).update(lost)
    found.names |= {f"ledger/{part.stage}/{unit_id}.json" for unit_id in lost}  # maybe a folder
    missing = sorted(lost - _unit_ids(examined.problems))
    if any("/segment-" in name for name in examined.problems):
        missing = []  # they were in it
    for unit_id in missing[:LISTED]:
        found.problems.append(
            f"ledger/{part.stage}/{unit_id}.json is missing, of '{part.title}', which was over"
        )
    if len(missing) > LISTED:
        found.problems.append(
            f"ledger/{part.stage}: {len(missing) - LISTED} more records of '{part.title}' are "
            "missing"
        )


def _unit_ids(names: Iterable[str]) -> set[str]:
    """Of the units whose records have these names."""
    stems = {name.rsplit("/", 1)[-1].removesuffix(".json") for name in names}
    return set(filter(UNIT_ID.fullmatch, stems))


def _verify_handed(blobs: Blobs, parts: Sequence[Part], found: Verification) -> None:
    """What was handed out; the report and the weights have to be, once their part is over."""
    kinds: set[str] = set()
    try:
        kinds = _kinds(blobs)
        kinds |= {name for name in _weights(parts) if _is_there(blobs, name)}
        if blobs.names(f"ledger/{REPORT}"):
            kinds.add(REPORT)
    except (CorruptionError, OSError) as error:
        _not_listed(found, FOLDER, error)
        if isinstance(error, OSError):
            return
    over = {part.title for part in parts if part.is_over and part.units}
    kinds |= {REPORT} & over
    if {TRAIN, "curvature"} <= over:  # the Gram recipe exports none
        kinds.add(WEIGHTS)
    for kind in sorted(kinds):
        lines = changed(blobs, kind, within=folder_of(kind))
        if lines:
            found.problems += lines
            found.handed.add(kind)
            continue
        found.files += len(handed(blobs, kind))


def _weights(parts: Sequence[Part]) -> set[str]:
    """The files that a run and its variations may have written their weights to."""
    trained = [part.title for part in parts if part.stage == TRAIN and part.is_over]
    names = {title.removesuffix(f": {TRAIN}") for title in trained} - {TRAIN}
    return {*([WEIGHTS] if TRAIN in trained else []), *(f"model-{n}.safetensors" for n in names)}


def folder_of(kind: str) -> str:
    """Where files lie that are handed out; weights lie in the run's own folder."""
    if kind.startswith(QUERY):
        return f"queries/{kind.removeprefix(QUERY)}"
    if kind.startswith(EVALUATION):
        return f"evaluations/{kind.removeprefix(EVALUATION)}"
    return REPORT if kind == REPORT else ""


def _kinds(blobs: Blobs) -> set[str]:
    return {name.removeprefix(f"{FOLDER}/").removesuffix(".json") for name in blobs.names(FOLDER)}


def _is_there(blobs: Blobs, name: str) -> bool:
    try:
        return blobs.size(name) >= 0
    except KeyError:
        return False
    except CorruptionError:
        return True


def set_notes_aside(blobs: Blobs, found: Verification) -> None:
    """Move damaged notes to `damaged/`: without that the run cannot be looked at to be repaired."""
    move = repairs.moving(blobs, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    move(name for name in found.names if name.partition("/")[0] in NOTES)


def set_aside(blobs: Blobs, found: Verification) -> int:
    """Move all that is damaged to `damaged/`, so that the run makes it again -> how many units.

    What a unit's files were is remembered: should they come out otherwise, what depends on them is
    made again too (`repairs`).
    """
    move = repairs.moving(blobs, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")

    def move_folder(name: str) -> None:
        move([name])  # or what is in its way
        move(blobs.names(name))  # of a bucket, which has no folder to move

    move(found.names - {CONFIG})
    if CONFIG in found.names and START not in found.names:
        move([CONFIG])
        blobs.put(CONFIG, Agenda(blobs).config().encode())
    for stage, units in found.units.items():
        for unit_id in sorted(units):
            record = Ledger(blobs, stage).take_out(unit_id, move)
            if record is not None:
                repairs.remember(blobs, stage, unit_id, record)
            for group in folders_of(stage, unit_id):
                move_folder(group.rstrip("/"))
    weights = _kinds(blobs) - {REPORT} if found.units.get(TRAIN) else set()
    for kind in found.handed | weights:  # weights may come out otherwise too
        try:
            move(handed(blobs, kind))
        except (KeyError, CorruptionError):
            move_folder(kind)
        move([sums_of(kind)])
    return sum(map(len, found.units.values()))
