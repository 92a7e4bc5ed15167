"""Files that a run hands out (its report, its weights), and their sums kept beside.

handed/NAME.json has the sha256 of each file of one kind. It goes before any of them is written
and comes back after the last, so a kill in between leaves files without sums, never wrong ones.
"""

import contextlib
from collections.abc import Mapping

from distinf.blobs import Blobs
from distinf.digest import sha256
from distinf.errors import SEE, CorruptionError, in_one_line
from distinf.runtime.records import RECORD_BYTES, seal, unseal

FOLDER = "handed"


def hand_out(blobs: Blobs, name: str, files: Mapping[str, bytes]) -> None:
    """Put the files, by key and in this order, in place of those of this kind, then their sums."""
    folders = {key.rpartition("/")[0] for key in files}
    before: set[str] = set()
    with contextlib.suppress(KeyError, CorruptionError):
        before = {key for key in handed(blobs, name) if key.rpartition("/")[0] in folders}
    blobs.delete(sums_of(name))
    for key, data in files.items():
        blobs.put(key, data)
    for key in before - files.keys():
        blobs.delete(key)
    sums = {key: sha256(data) for key, data in files.items()}
    blobs.put(sums_of(name), seal({"files": sums}))


def sums_of(name: str) -> str:
    """The key under which the sums of one kind of file lie."""
    return f"{FOLDER}/{name}.json"


def handed(blobs: Blobs, name: str) -> dict[str, str]:
    """The files of one kind and their sums; KeyError if none were handed out."""
    key = sums_of(name)
    files = unseal(blobs.get(key, most=RECORD_BYTES), key).get("files")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise CorruptionError(f"{key} has no sums of files; {SEE}")
    return files


def changed(blobs: Blobs, name: str, within: str) -> list[str]:
    """One line for each file of one kind that is missing or is not as it was handed out.

    within  the folder that its files lie in, "" for the run's own
    """
    try:
        files = handed(blobs, name)
    except (KeyError, CorruptionError, OSError) as error:
        missing = f"{sums_of(name)} is missing: nothing says what was written"
        return [missing if isinstance(error, KeyError) else in_one_line(error, sums_of(name))]
    found = []
    for key, expected in files.items():
        if key.rpartition("/")[0] != within:
            return [f"{sums_of(name)} names {key:.80}, which was never written so"]
        try:
            if sha256(blobs.get(key)) != expected:
                found.append(f"{key} was altered after it was written")
        except KeyError:
            found.append(f"{key} is missing")
        except (CorruptionError, OSError) as error:
            found.append(in_one_line(error, key))
    return found
