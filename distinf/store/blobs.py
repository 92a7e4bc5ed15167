"""Blobs in a folder or a bucket: a local folder, s3:// and gs:// differ only here."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distinf.blobs import Blobs, Buffer
from distinf.errors import SEE, CorruptionError, InputError
from distinf.store.regular import equals, open_regular, read_whole, refuse_ring, too_large

MOST = 240  # characters of a service's own words
KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
# Whoever has no keys asks a service of its machine for a role's.
REFUSED = re.compile(r"latest/(api/token|meta-data)|token request|\b(401|403)\b|AccessDenied")
DRAFT = re.compile(r"\..+\.[0-9a-f]{12}\.partial")


class Folder:
    """A local or shared folder. A put is: temporary file, fsync, link or rename, fsync folder."""

    def __init__(self, root: str):
        self.root = str(Path(root).absolute())
        self._required = ""

    def _path(self, key: str) -> Path:
        """Where the key lies; CorruptionError if that is outside of the folder."""
        path, below = Path(self.root, key), self.root
        for part in key.split("/"):
            below = f"{below}/{part}"
            if part in ("", "..") or os.path.islink(below):
                refuse_ring(below, key)
                break
        else:
            return path  # no link and no way up
        folder = os.path.realpath(self.root)
        if os.path.commonpath([folder, os.path.realpath(path)]) != folder:
            where = f"outside of {self.root}, by a link or by its name"
            raise CorruptionError(f"{key} lies {where}; {SEE}")
        return path

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[Path]:
        """Where the key lies; CorruptionError if what it is to replace is no file, or what has to
        hold it no folder: another try would end in the same way."""
        path = self._path(key)
        try:
            yield path
        except (IsADirectoryError, NotADirectoryError):
            if not os.path.isdir(self.root):
                raise
            raise CorruptionError(
                f"{key} cannot be written: what lies there, or where its folder has to be, is in "
                "the way; move that elsewhere"
            ) from None

    def _staged(self, path: Path, data: Buffer) -> Path:
        if self._required and not path.parent.exists() and not self._path(self._required).exists():
            raise FileNotFoundError(errno.ENOENT, "the folder is gone", self.root)
        _make_durable_folder(path.parent)
        staged = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
        try:
            with open(staged, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # a full disk has no room for drafts
            with contextlib.suppress(OSError):
                os.unlink(staged)
            raise
        return staged

    def put(self, key: str, data: Buffer) -> None:
        with self._writing(key) as path:
            os.replace(self._staged(path, data), path)
        _sync_folder(path.parent)

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        with self._writing(key) as path:
            staged = self._staged(path, data)
        try:
            os.link(staged, path)  # fails if the name exists, also over NFS
        except FileExistsError:
            return False
        finally:
            os.unlink(staged)
        _sync_folder(path.parent)
        return True

    def get(self, key: str, most: int | None = None) -> bytes:
        with self._opened(key) as file:
            return read_whole(file, key, most)

    def holds(self, key: str, data: Buffer) -> bool:
        try:
            with self._opened(key) as file:
                return equals(file, data)
        except KeyError:
            return False

    def size(self, key: str) -> int:
        with self._opened(key) as file:
            return os.fstat(file.fileno()).st_size

    def _opened(self, key: str) -> BinaryIO:
        try:
            return open_regular(self._path(key))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise KeyError(key) from None

    def names(self, prefix: str) -> list[str]:
        return sorted(self._walk(prefix))

    def has_beside(self, folder: str) -> bool:
        return any(not name.startswith(f"{folder}/") for name in self._walk(""))

    def _walk(self, prefix: str) -> Iterator[str]:
        for folder, _, files in os.walk(self._path(prefix), onerror=_raise_unless_absent):
            inside = os.path.relpath(folder, self.root)
            for name in files:
                if not name.endswith(".partial"):
                    yield name if inside == "." else f"{inside}/{name}"

    def delete(self, key: str) -> None:
        absent = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with self._writing(key) as path, absent:
            path.unlink()

    def move(self, key: str, into: str) -> None:
        parts = key.split("/")
        if {"", ".", ".."} & {*parts}:
            raise CorruptionError(f"{key} names no file; {SEE}")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        key = next(filter(self._is_in_the_way, above), key)
        source = Path(self.root, key)  # of a link the link
        if not os.path.lexists(source):
            return
        target = self._path(f"{into}/{key}")
        _make_durable_folder(target.parent)
        with contextlib.suppress(FileNotFoundError):
            os.rename(source, target)
            _sync_folder(target.parent)

    def _is_in_the_way(self, folder: str) -> bool:
        """Whether what lies under the name of a folder is none, or leads out of the run."""
        try:
            path = self._path(folder)
        except CorruptionError:
            return True
        return os.path.lexists(path) and not path.is_dir()

    def sweep(self) -> int:
        drafts = [
            Path(folder, name)
            for folder, _, files in os.walk(self.root, onerror=_raise_unless_absent)
            for name in files
            if DRAFT.fullmatch(name)
        ]
        for draft in drafts:
            draft.unlink(missing_ok=True)
        return len(drafts)

    def free_bytes(self) -> int | None:
        folder = Path(self.root)
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def require(self, key: str) -> None:
        self._required = key


class Bucket:
    """An object store through obstore: a put is atomic and durable by the service's contract.

    Who may not is told in an InputError, a service that cannot be reached in a ConnectionError.
    """

    def __init__(self, store: Any, root: str):
        self.root = root
        self._store = store

    def put(self, key: str, data: Buffer) -> None:
        import obstore

        with self._told():
            obstore.put(self._store, key, bytes(data))  # one in memory keeps what it is given

    def put_if_absent(self, key: str, data: Buffer) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._told():
                obstore.put(self._store, key, bytes(data), mode="create")
        except AlreadyExistsError:
            return False
        return True

    def get(self, key: str, most: int | None = None) -> bytes:
        import obstore
        from obstore.exceptions import NotFoundError

        try:
            with self._told():
                found = obstore.get(self._store, key)
                if most is not None and found.meta["size"] > most:
                    raise too_large(key, found.meta["size"], most)
                return bytes(found.bytes())
        except (NotFoundError, FileNotFoundError):
            raise KeyError(key) from None

    def holds(self, key: str, data: Buffer) -> bool:
        try:
            return self.get(key, most=len(data)) == bytes(data)
        except KeyError:
            return False

    def size(self, key: str) -> int:
        import obstore
        from obstore.exceptions import NotFoundError

        try:
            with self._told():
                return int(obstore.head(self._store, key)["size"])
        except (NotFoundError, FileNotFoundError):
            raise KeyError(key) from None

    def names(self, prefix: str) -> list[str]:
        import obstore

        with self._told():
            return sorted(
                str(entry["path"])
                for page in obstore.list(self._store, prefix or None)
                for entry in page
            )

    def has_beside(self, folder: str) -> bool:
        import obstore

        with self._told():
            pages = obstore.list(self._store)
            paths = (str(entry["path"]) for page in pages for entry in page)
            return any(not path.startswith(f"{folder}/") for path in paths)

    def delete(self, key: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError), self._told():
            obstore.delete(self._store, key)

    def move(self, key: str, into: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError), self._told():
            obstore.rename(self._store, key, f"{into}/{key}")

    def sweep(self) -> int:
        return 0

    def free_bytes(self) -> int | None:
        return None

    def require(self, key: str) -> None:
        """A bucket has no folders, and needs nothing."""

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """A page of errors in one line; what is absent, or there already, as it is."""
        from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError

        try:
            yield
        except (BaseError, FileNotFoundError) as error:  # the latter for NotFoundError
            whole = str(error)
            reason = f"{self.root}: {whole.splitlines()[0][:MOST]}"
            if "NoSuchBucket" in whole:
                raise InputError(f"out: {reason}; there is no such bucket, make it first") from None
            if isinstance(error, AlreadyExistsError | NotFoundError | FileNotFoundError):
                raise
            if not REFUSED.search(whole):
                told = f"{reason}; is there a way to it from here?"
                raise ConnectionError(errno.EHOSTUNREACH, told) from None
            keys = KEYS.get(self.root.partition("://")[0], "its keys")
            raise InputError(
                f"out: {reason}; it wants other credentials: set {keys} for the driver and on "
                "every node"
            ) from None


_memory: dict[str, Bucket] = {}  # memory:// roots live as long as the process, for tests


def open_root(root: str) -> Blobs:
    """A folder path, or a URL (s3://, gs://, az://, memory://NAME) -> its blobs.

    Credentials of a bucket come from the environment, as its own tools take them.
    """
    if "://" not in root or root.startswith("file://"):
        return Folder(root.removeprefix("file://"))
    scheme = root.split("://", 1)[0]
    from obstore.store import HTTPStore, MemoryStore, from_url

    if scheme == "memory":
        if root not in _memory:
            _memory[root] = Bucket(MemoryStore(), root)
        return _memory[root]
    try:
        store = from_url(root)
        if isinstance(store, HTTPStore):
            raise ValueError("it is no bucket, as s3://, gs:// and az:// are")
        return Bucket(store, root)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"out: cannot open {root}: {reason}; check the URL and its keys") from None


def _raise_unless_absent(error: OSError) -> None:
    """A folder that may not be read is no empty one."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _make_durable_folder(folder: Path) -> None:
    if folder.exists():
        return
    _make_durable_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
