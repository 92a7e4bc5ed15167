"""Reading what lies under a name, if it is a regular file: a pipe would never end, nor a device."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from distinf.errors import SEE, CorruptionError


def open_regular(path: Path) -> BinaryIO:
    """The file at `path`, open to read; CorruptionError if it is none, OSError as `open`'s."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):  # links in a ring, a socket
            raise _irregular(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return os.fdopen(descriptor, "rb")


def _irregular(path: Path) -> CorruptionError:
    return CorruptionError(f"{path} is no regular file; {SEE}")


def refuse_ring(path: str, key: str) -> None:
    """CorruptionError for a link that leads to itself: another try would end in the same way."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            what = f"{key} is no regular file, but a link to itself"
            raise CorruptionError(f"{what}; {SEE}") from None


def read_whole(file: BinaryIO, name: str, most: int | None = None) -> bytes:
    """All of an open file; CorruptionError if it is larger than `most`, or than memory."""
    size = os.fstat(file.fileno()).st_size
    if most is not None and size > most:
        raise too_large(name, size, most)
    try:
        return file.read()
    except MemoryError:
        raise CorruptionError(f"{name} has {size} bytes, more than this memory holds") from None


def read_given(path: str | Path, most: int | None = None) -> bytes:
    """All of a file that somebody names; OSError, with its reason, if it is none, or too large."""
    try:
        with open_regular(Path(path)) as file:
            return read_whole(file, str(path), most)
    except CorruptionError:
        kind = errno.EISDIR if os.path.isdir(path) else errno.EFBIG
        reason = os.strerror(kind)
        if kind == errno.EFBIG and not os.path.isfile(path):
            kind, reason = errno.EINVAL, "Not a file that ends (a pipe, a device)"
        raise OSError(kind, reason, str(path)) from None


def equals(file: BinaryIO, data: bytes | memoryview) -> bool:
    """Whether an open file has just these bytes; in pieces, which no memory has to be made for."""
    piece = bytearray(1 << 18)  # compared with a view as memory is; two views go byte by byte
    for start in range(0, len(data) + 1, len(piece)):  # once more at the end: no byte is over
        read = file.readinto(piece)  # type: ignore[attr-defined]
        wanted = memoryview(data)[start : start + len(piece)]
        if (piece if read == len(piece) else piece[:read]) != wanted:
            return False
    return True


def too_large(name: str, size: int, most: int) -> CorruptionError:
    return CorruptionError(f"{name} has {size} bytes; no more than {most} were written; {SEE}")
