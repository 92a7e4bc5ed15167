"""What data and weights are, by content: for the fingerprint of a run."""

import hashlib
from functools import cache
from pathlib import Path

from distinf.errors import InputError
from distinf.studies.noisy_labels.known import KNOWN
from distinf.studies.noisy_labels.models import load_config, location
from distinf.studies.noisy_labels.settings import ModelSettings

WHOLE = 1 << 30  # files above are known by size and ends
END = 1 << 20


def file_digest(path: str, setting: str = "data.path") -> str:
    """sha256 of a file; of its size, first and last MiB where it is larger than 1 GiB."""
    try:
        status = Path(path).stat()
        return _content(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{setting}: {path}: {error.strerror}; give a file") from None


def model_digests(settings: ModelSettings) -> dict[str, str]:
    """By file of a local folder; of a hub's repository its id and commit."""
    where = Path(location(settings))
    if not where.is_dir():
        try:
            commit = getattr(load_config(settings), "_commit_hash", None)
        except InputError:  # a plan needs no more; a run will say what it cannot load
            if settings.name not in KNOWN:
                raise
            commit = None
        return {"hub": f"{settings.name}@{commit or settings.revision}"}
    kinds = (".json", ".safetensors", ".bin", ".txt", ".model", ".py")
    files = sorted(file for file in where.iterdir() if file.suffix in kinds)
    return {file.name: file_digest(str(file)) for file in files}


@cache
def _content(path: str, size: int, changed: int) -> str:
    """`changed` makes a rewritten file another one."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        if size <= WHOLE:
            for block in iter(lambda: file.read(END), b""):
                total.update(block)
        else:
            total.update(str(size).encode() + file.read(END))
            file.seek(-END, 2)
            total.update(file.read(END))
    return total.hexdigest()
