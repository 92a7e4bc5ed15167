"""What code a run's processes have imported beyond what its task's files name: digests of modules,
each note under the digest of itself."""

import json
from collections.abc import Mapping

from distinf.digest import digest
from distinf.errors import SEE, CorruptionError
from distinf.store import Blobs

FOLDER = "sources"
MOST_BYTES = 64 << 20


def keep(blobs: Blobs, digests: Mapping[str, str]) -> None:
    """Note digests by module."""
    blobs.put_if_absent(_name(digests), json.dumps(digests).encode())


def kept(blobs: Blobs, name: str) -> dict[str, str]:
    """One of the blobs' names in FOLDER, read; CorruptionError if it is not what was noted."""
    try:
        found = json.loads(blobs.get(name, most=MOST_BYTES))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or name != _name(found):
        raise CorruptionError(f"{name} is not what was noted of the run's code; {SEE}")
    return found


def _name(digests: Mapping[str, str]) -> str:
    return f"{FOLDER}/{digest(digests)}.json"
