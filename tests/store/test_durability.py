"""What must lie on the disk before a name says so, and of two writers at once one."""

import errno
import multiprocessing
import os

import numpy as np
import pytest

from distinf.errors import CorruptionError
from distinf.runtime import Work
from distinf.runtime.worker import Worker
from distinf.store import open_root, write_group
from distinf.store.blobs import Folder

ROUNDS, WRITERS = 60, 4


@pytest.fixture
def order(monkeypatch):
    """What is done to the disk, in order: ("sync", path), ("link", path), ("mkdir", path)."""
    done, fsync, link, mkdir, replace = [], os.fsync, os.link, os.mkdir, os.replace

    def synced(descriptor):
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted(name, call):
        def wrapped(*arguments, **named):
            call(*arguments, **named)
            done.append((name, str(arguments[1] if name in ("link", "replace") else arguments[0])))

        return wrapped

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", noted("link", link))
    monkeypatch.setattr(os, "replace", noted("replace", replace))
    monkeypatch.setattr(os, "mkdir", noted("mkdir", mkdir))
    return done


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")


@needs_proc
@pytest.mark.parametrize(("verb", "step"), [("put_if_absent", "link"), ("put", "replace")])
def test_a_name_lies_on_the_disk_before_it_counts(tmp_path, order, verb, step):
    folder = tmp_path / "ledger"
    folder.mkdir()
    order.clear()
    getattr(open_root(str(tmp_path)), verb)("ledger/1.json", b"record")
    named = order.index((step, str(folder / "1.json")))
    assert order[named - 1][0] == "sync"  # the bytes before the name
    assert order[named - 1][1].endswith(".partial")
    assert ("sync", str(folder)) in order[named + 1 :]  # the name before anybody is told


@needs_proc
def test_every_new_folder_lies_on_the_disk_in_its_parent(tmp_path, order):
    open_root(str(tmp_path / "run")).put_if_absent("a/b/1.json", b"record")
    for folder in ("run", "run/a", "run/a/b"):
        made = order.index(("mkdir", str(tmp_path / folder)))
        assert ("sync", str((tmp_path / folder).parent)) in order[made + 1 :], folder
    assert ("sync", str(tmp_path / "run" / "a" / "b")) in order


def race(root, writer, start):
    blobs = open_root(root)
    won = []
    for number in range(ROUNDS):
        start.wait(timeout=120)
        if blobs.put_if_absent(f"ledger/{number}.json", f"{writer}".encode() * 1000):
            won.append(number)
    blobs.put(f"won/{writer}", ",".join(map(str, won)).encode())


def test_of_writers_at_once_one_wins_and_its_bytes_stand(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(WRITERS)
    writers = [
        context.Process(target=race, args=(str(tmp_path), writer, start))
        for writer in range(WRITERS)
    ]
    for process in writers:
        process.start()
    for process in writers:
        process.join(timeout=240)
        assert process.exitcode == 0
    blobs = open_root(str(tmp_path))
    won = {
        number: writer
        for writer in range(WRITERS)
        for number in blobs.get(f"won/{writer}").decode().split(",")
        if number
    }
    assert (
        len(won)
        == ROUNDS
        == sum(
            len(blobs.get(f"won/{w}").split(b",")) for w in range(WRITERS) if blobs.get(f"won/{w}")
        )
    )
    for number, writer in won.items():
        assert blobs.get(f"ledger/{number}.json") == f"{writer}".encode() * 1000


@pytest.mark.parametrize("values", [3, 1 << 15, (1 << 15) + 1])  # 256 KiB are a piece
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"",
    ],
    ids=["last byte", "first byte", "short", "long", "empty"],
)
def test_what_the_disk_did_not_keep_is_not_committed(tmp_path, monkeypatch, damage, values):
    put = Folder.put

    def lossy(blobs, key, data):
        put(blobs, key, damage(bytes(data)) if "/c/" in key else data)

    monkeypatch.setattr(Folder, "put", lossy)
    with pytest.raises(CorruptionError):
        write_group(open_root(str(tmp_path)), "g", {"x": np.ones(values)})


def test_a_full_disk_commits_nothing_and_keeps_no_drafts(tmp_path, monkeypatch):
    calls, fsync = [], os.fsync

    def filling(descriptor):
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(OSError, match="No space left"):
        write_group(open_root(str(tmp_path)), "g", {"x": np.ones((64, 1 << 13))}, chunk_rows=1)
    assert not list(tmp_path.rglob("*.partial"))


class Prepared:
    """A session that only says which attempt it was."""


def prepare(context, device):
    return Prepared()


def pool(session, unit, name):
    return {"name": name}


def gang(session, collective, name):
    return {"name": name}


def test_no_two_attempts_have_one_name():
    home = "tests.store.test_durability"
    names = []
    for _ in range(2):  # as of two drivers, each at its first attempt
        worker = Worker(1)
        work = Work(f"{home}:pool", f"{home}:prepare", {})
        names.append(worker.run(work, None, 1).value["name"])
        work = Work(f"{home}:gang", f"{home}:prepare", {})
        names.append(worker.run_rank(work, 0, 1, "", 60.0).value["name"])
    assert len(set(names)) == 4


def test_what_else_lies_in_a_folder_is_looked_for_no_further_than_the_first(tmp_path, monkeypatch):
    """`--out /` would read the whole disk otherwise."""
    for name in ("driver", "a", "b", "c"):
        (tmp_path / name).mkdir()
    blobs, seen, walk = open_root(str(tmp_path)), [], os.walk

    def noted(*arguments, **named):
        for found in walk(*arguments, **named):
            seen.append(found[0])
            yield found

    monkeypatch.setattr(os, "walk", noted)
    blobs.put("driver/1.json", b"{}")
    assert not blobs.has_beside("driver")
    assert len(seen) == 5
    seen.clear()
    (tmp_path / "file").write_text("")
    assert blobs.has_beside("driver")
    assert seen == [str(tmp_path)]
    bucket = open_root("memory://beside")
    bucket.put("driver/1.json", b"{}")
    assert not bucket.has_beside("driver")
    bucket.put("drivers/1.json", b"{}")
    assert bucket.has_beside("driver")
