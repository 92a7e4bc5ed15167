"""What attempts that never committed left in a run's folder, taken away when its driver starts.

Only a driver that holds the run's lease sweeps. A worker of a dead driver may live on for a while
and commit meanwhile: whoever comes second notices. After its deletions a sweep looks for records
again and takes out those of groups that it deleted; whoever commits looks after its record whether
the group is still there (`Session.commit`).
"""

from collections.abc import Iterable, Sequence

from distinf.blobs import Blobs
from distinf.errors import CorruptionError
from distinf.runtime.ledger import Ledger
from distinf.runtime.records import JOBS, Record

TOLD = "told"  # what workers told of the units that they were at


def sweep(blobs: Blobs, stages: Sequence[str], of_jobs: Sequence[str]) -> int:
    """Delete drafts, words on units under way, and groups that no record names -> how many files.

    stages   all stages of the run; those `of_jobs` have their groups under jobs/
    """
    count = blobs.sweep()
    _delete(blobs, blobs.names(TOLD))
    for stage in stages:
        if stage not in of_jobs:
            count += _sweep_groups(blobs, f"{stage}.zarr", [stage])
    return count + _sweep_groups(blobs, JOBS, of_jobs)


def _sweep_groups(blobs: Blobs, folder: str, stages: Sequence[str]) -> int:
    try:
        named = {group for stage in stages for group in _groups(Ledger(blobs, stage).read())}
        left = [name for name in blobs.names(folder) if _group(name) not in named]
        _delete(blobs, left)
        gone = {_group(name) for name in left}
        for stage in stages if gone else ():
            for unit_id, record in Ledger(blobs, stage).read().items():
                if gone & _groups({unit_id: record}):
                    Ledger(blobs, stage).take_out(unit_id, lambda names: _delete(blobs, names))
    except CorruptionError:  # nothing is deleted for a ledger that cannot be read: `verify` tells
        return 0
    return len(left)


def _delete(blobs: Blobs, names: Iterable[str]) -> None:
    for name in names:
        blobs.delete(name)


def _group(name: str) -> str:
    """Of a file's name: stage.zarr/UNIT/ATTEMPT, or jobs/UNIT/ATTEMPT."""
    return "/".join(name.split("/")[:3])


def _groups(records: dict[str, Record]) -> set[str]:
    return {record["manifest"]["group"] for record in records.values() if "manifest" in record}
