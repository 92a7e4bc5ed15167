"""Named byte strings: the few verbs that store and runtime stand on."""

from typing import Protocol

Buffer = bytes | memoryview  # of single bytes


class Blobs(Protocol):
    """Keys are '/'-separated, relative to the root; values are whole byte strings."""

    root: str

    def put(self, key: str, data: Buffer) -> None:
        """Write durably, replacing what was there."""

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        """Write durably unless the key exists, atomically; True if this call wrote it."""

    def get(self, key: str, most: int | None = None) -> bytes:
        """The bytes; KeyError if there are none, CorruptionError if they are more than `most`, or
        if it is no regular file in the folder."""

    def holds(self, key: str, data: Buffer) -> bool:
        """Whether the bytes are there and just these, as they are read again."""

    def size(self, key: str) -> int:
        """How many bytes there are; errors as in `get`."""

    def names(self, prefix: str) -> list[str]:
        """Sorted keys below `prefix/` (all depths), as keys relative to the root."""

    def has_beside(self, folder: str) -> bool:
        """Whether there is any key that is not below `folder/`; looks no further than the first."""

    def delete(self, key: str) -> None:
        """Remove the key if it is there."""

    def move(self, key: str, into: str) -> None:
        """Put what is there, whatever it is, below the folder `into`; so what lies where one of
        the key's own folders has to be. Nothing if nothing is there."""

    def sweep(self) -> int:
        """Delete the drafts of puts that never ended -> how many."""

    def free_bytes(self) -> int | None:
        """Room left, or None where the backend has no such limit."""

    def require(self, key: str) -> None:
        """From now on no folder is made while this key is not there: one that was moved or
        unmounted is a FileNotFoundError, and not begun anew."""
