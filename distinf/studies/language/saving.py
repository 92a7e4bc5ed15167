"""A training on its way, kept in a run's folder: safetensors, and an index in JSON put last.

Nothing is there before the index names it, with the sha256 of every file; nothing is pickled.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from distinf.blobs import Blobs
from distinf.digest import sha256
from distinf.errors import CorruptionError

INDEX = "index.json"
FILE_BYTES = 1 << 30  # of one file, about: all that is held at once beside the model


class Saved:
    """In `folder` of `blobs`; of several saves the last is kept."""

    def __init__(self, blobs: Blobs, folder: str) -> None:
        self._blobs, self._folder = blobs, folder

    def put(
        self, step: int, tensors: Iterable[tuple[str, Tensor]], about: Mapping[str, Any]
    ) -> None:
        """All `tensors`, in their order, as of this step; what is there of other steps goes."""
        files: dict[str, str] = {}
        for part in _parts(tensors):
            data = save(part)
            name = f"{step}/{len(files):05d}.safetensors"
            self._blobs.put(f"{self._folder}/{name}", data)
            files[name] = sha256(data)
        index = {"step": step, "files": files, "about": dict(about)}
        self._blobs.put(f"{self._folder}/{INDEX}", json.dumps(index).encode())
        self._delete({f"{self._folder}/{name}" for name in (*files, INDEX)})

    def index(self) -> tuple[int, Mapping[str, Any]]:
        """The step, and what was said of it; (0, {}) where nothing was saved."""
        index = self._index()
        return index.get("step", 0), index.get("about", {})

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """In the order in which they were put, one file at a time; CorruptionError for damage."""
        for name, wanted in self._index()["files"].items():
            try:
                data = self._blobs.get(f"{self._folder}/{name}")
            except KeyError:
                data = b""
            if sha256(data) != wanted:
                raise self._damaged(name)
            yield from load(data).items()

    def clear(self) -> None:
        self._delete(set())

    def _index(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._blobs.get(f"{self._folder}/{INDEX}"))
        except KeyError:
            return {}
        except ValueError:
            raise self._damaged(INDEX) from None
        return found

    def _damaged(self, name: str) -> CorruptionError:
        return CorruptionError(
            f"{self._blobs.root}/{self._folder}/{name} is not what was saved; delete "
            f"{self._folder} there, and this training starts from its beginning"
        )

    def _delete(self, kept: set[str]) -> None:
        for name in self._blobs.names(self._folder):
            if name not in kept:
                self._blobs.delete(name)


def _parts(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    for name, values in tensors:
        part[name] = values.contiguous()
        if sum(each.nbytes for each in part.values()) >= FILE_BYTES:
            yield part
            part = {}
    if part:
        yield part
