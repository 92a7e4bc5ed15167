"""What data and weights are, by content: for the fingerprint of a run."""

import errno
import hashlib
import stat
from collections.abc import Container, Mapping
from functools import cache
from pathlib import Path

from distinf.errors import InputError
from distinf.studies.language.pretrained import loading, location
from distinf.studies.language.settings import Pretrained

WHOLE = 1 << 30  # files above are known by size and ends
END = 1 << 20


def file_digest(path: str, setting: str = "data.path") -> str:
    """sha256 of a file; of its size, first and last MiB where it is larger than 1 GiB."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a file that ends (a pipe, a device, a folder)")
        return _content(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{setting}: {path}: {error.strerror}; give a file") from None


def model_digests(settings: Pretrained, known: Container[str] = ()) -> dict[str, str]:
    """By file of a local folder; of a hub's repository its id and commit, which need not be found
    for those `known`: a plan needs no more, and a run will say what it cannot load."""
    where = Path(location(settings))
    if where.is_file():
        return {where.name: file_digest(str(where), "model.name")}
    if not where.is_dir():
        commit = settings.revision
        try:
            with loading(settings) as (transformers, name, options):
                transformers.AutoConfig.from_pretrained(name, **options)
                commit = options["revision"]
        except InputError:
            if settings.name not in known:
                raise
        return {"hub": f"{settings.name}@{commit}"}
    kinds = (".json", ".safetensors", ".bin", ".txt", ".model", ".py", ".jinja")
    files = sorted(f for f in where.iterdir() if f.suffix in kinds and not f.is_dir())
    return {file.name: file_digest(str(file), "model.name") for file in files}


def revision_of(digests: Mapping[str, str]) -> dict[str, str]:
    """{"revision": id and commit} of a hub's model: what is named where it has moved on."""
    return {"revision": digests["hub"]} if "hub" in digests else {}


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
