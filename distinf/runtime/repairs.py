"""Units that `distinf verify --repair` set aside: whether they came out again as they were.

repairs/STAGE/UNIT.json has the files that the unit had. A unit is made of its inputs bit for bit,
so it comes out the same, and what was made of it stands; on another machine it may not.
"""

from collections.abc import Callable, Iterable, Sequence

from distinf.blobs import Blobs
from distinf.runtime.ledger import Ledger
from distinf.runtime.records import RECORD_BYTES, Record, seal, unseal
from distinf.runtime.units import Unit

FOLDER, ASIDE = "repairs", "damaged"


def remember(blobs: Blobs, stage: str, unit_id: str, record: Record) -> None:
    """Keep the sums of the unit's files as its record has them."""
    if "manifest" in record:
        files = {"files": record["manifest"]["files"]}
        blobs.put(f"{FOLDER}/{stage}/{unit_id}.json", seal(files))


def differing(blobs: Blobs, units: Sequence[Unit]) -> list[Unit]:
    """Of these units, which are committed, those that came out otherwise than they were."""
    found = []
    for name, unit in _remembered(blobs, units):
        record = Ledger(blobs, unit.stage).get(unit)
        before = unseal(blobs.get(name, most=RECORD_BYTES), name)
        if record is not None and before.get("files") != record.get("manifest", {}).get("files"):
            found.append(unit)
    return found


def settle(blobs: Blobs, units: Sequence[Unit]) -> None:
    """Remember nothing more of these units. What was made of those that differ is out by now."""
    for name, _ in _remembered(blobs, units):
        blobs.delete(name)


def _remembered(blobs: Blobs, units: Sequence[Unit]) -> list[tuple[str, Unit]]:
    by_id = {unit.id: unit for unit in units}
    names = blobs.names(f"{FOLDER}/{units[0].stage}") if units else []
    stems = {name: name.rsplit("/", 1)[-1].removesuffix(".json") for name in names}
    return [(name, by_id[stem]) for name, stem in stems.items() if stem in by_id]


def moving(blobs: Blobs, name: str) -> Callable[[Iterable[str]], None]:
    """What moves files of a run into a folder of this name below damaged/."""

    def move(names: Iterable[str]) -> None:
        for key in names:
            blobs.move(key, f"{ASIDE}/{name}")

    return move


def forget(blobs: Blobs, units: Iterable[Unit], move: Callable[[Iterable[str]], None]) -> int:
    """Take these units' records out -> of how many there was one."""
    taken = [Ledger(blobs, unit.stage).take_out(unit.id, move) for unit in units]
    return sum(record is not None for record in taken)
