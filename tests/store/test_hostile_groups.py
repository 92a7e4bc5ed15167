"""Groups from somebody else, checksums and all: read as they were written here, or refused."""

import hashlib
import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.errors import CorruptionError
from distinf.store import Rows, damage, open_root, read_group, write_group
from tests.support.hostile import changed, put_metadata

ARRAYS = {"grid": np.arange(24, dtype=np.float32).reshape(6, 4), "flags": np.ones(6, bool)}
LONG = 5_000
REGULAR = {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}


@pytest.fixture
def blobs(tmp_path):
    return open_root(str(tmp_path))


@pytest.fixture
def manifest(blobs):
    return write_group(blobs, "s.zarr/u/1", ARRAYS)


def metadata(blobs, manifest, name="grid"):
    return json.loads(blobs.get(f"{manifest['group']}/{name}/zarr.json"))


def refused(blobs, manifest, match="."):
    """Each reader of the group refuses it; nothing large was allocated for that."""
    tracemalloc.start()
    with pytest.raises(CorruptionError, match=match):
        read_group(blobs, manifest)
    with pytest.raises(CorruptionError, match=match):
        Rows(blobs, [(0, 6, manifest)]).columns()
    with pytest.raises(CorruptionError, match=match):
        Rows(blobs, [(0, 6, manifest)]).take(np.array([1]))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert damage(blobs, manifest)


@pytest.mark.parametrize("chunk", [10**12, 6])
def test_a_shape_that_cannot_be_is_refused_before_it_is_allocated(blobs, manifest, chunk):
    found = metadata(blobs, manifest)
    found["shape"][0] = 10**12
    found["chunk_grid"]["configuration"]["chunk_shape"][0] = chunk
    refused(blobs, put_metadata(blobs, manifest, "grid/zarr.json", found), "bytes by its|asks for")


def test_a_large_array_is_allocated_only_where_its_chunks_have_their_size(blobs, manifest):
    found = metadata(blobs, manifest)
    found["shape"][0] = found["chunk_grid"]["configuration"]["chunk_shape"][0] = 10**9
    made = put_metadata(blobs, manifest, "grid/zarr.json", found)
    made["bytes"] += 16 * (10**9 - 6)
    refused(blobs, made, "grid/c/0/0 has 96 bytes instead of 16000000000")


@pytest.mark.parametrize(
    "changes",
    [
        {"codecs": [{"name": "numcodecs.pickle"}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]},
        {"codecs": []},
        {"data_type": "object"},
        {"data_type": "string"},
        {"zarr_format": 2},
        {"storage_transformers": [{"name": "x"}]},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "/"}}},
        {"chunk_grid": {"name": "rectilinear"}},
        {"fill_value": "NaN"},
        {"attributes": {"x": 1}},
        {"dimension_names": ["a", "b"]},
        {"shape": [6, 4.0]},
        {"shape": [True, 24]},
        {"shape": [2**62, 0], "chunk_grid": REGULAR},
        {"shape": [2**70, 0], "chunk_grid": REGULAR},
        {"node_type": "group"},
    ],
)
def test_metadata_that_is_not_written_here_is_refused(blobs, manifest, changes):
    found = {**metadata(blobs, manifest), **changes}
    refused(blobs, put_metadata(blobs, manifest, "grid/zarr.json", found), "not metadata")


def test_metadata_of_zarr_2_does_not_reach_zarr(blobs, manifest):
    """Whose object arrays are decoded by a codec named in them, pickle among those."""
    old = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None,
        "fill_value": None, "order": "C", "filters": [{"id": "pickle"}],
    }  # fmt: skip
    for key, value in {".zgroup": {"zarr_format": 2}, "x/.zarray": old}.items():
        data = json.dumps(value).encode()
        blobs.put(f"{manifest['group']}/{key}", data)
        manifest["files"][key] = hashlib.sha256(data).hexdigest()
        manifest["bytes"] += len(data)
    refused(blobs, manifest, "belongs to no array of its group")


@pytest.mark.parametrize(
    "name", ["../v/1/x", "/etc/passwd", "a//b", ".", "a\\b", "a\x00", "x" * 300]
)
def test_a_name_outside_of_the_group_is_refused(blobs, manifest, name):
    manifest["files"][name] = "0" * 64
    refused(blobs, manifest, "holds no")


def test_a_group_outside_of_the_folder_is_refused(blobs, manifest):
    refused(blobs, {**manifest, "group": "../elsewhere"}, "none of a run")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket", "link", "ring"])
def test_only_regular_files_inside_the_folder_are_read(blobs, manifest, kind, tmp_path, request):
    path = tmp_path / manifest["group"] / "grid" / "c" / "0" / "0"
    data = path.read_bytes()
    path.unlink()
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_bytes(data)  # whose checksum would be right
    request.addfinalizer(outside.unlink)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        os.chdir(path.parent)  # a socket's path is short
        request.addfinalizer(lambda: os.chdir("/"))
        socket.socket(socket.AF_UNIX).bind(path.name)
    else:
        path.symlink_to({"device": "/dev/zero", "link": outside, "ring": path}[kind])
    refused(blobs, manifest, "no regular file|lies outside")


def test_a_linked_folder_is_not_followed_out_of_the_run(blobs, manifest, tmp_path, request):
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    (tmp_path / "s.zarr").rename(outside)
    (tmp_path / "s.zarr").symlink_to(outside)
    refused(blobs, manifest, "lies outside")
    with pytest.raises(CorruptionError, match="lies outside"):
        blobs.names("s.zarr")


def test_what_is_in_the_way_of_a_file_is_no_stop_to_wait_out(blobs):
    blobs.put("a", b"")
    os.makedirs(os.path.join(blobs.root, "c"))
    for write in (blobs.put, blobs.put_if_absent):
        with pytest.raises(CorruptionError, match="a/b cannot be written"):
            write("a/b", b"")
    with pytest.raises(CorruptionError, match="c cannot be written"):
        blobs.put("c", b"")
    blobs.delete("a/b")
    blobs.move("a/b", "aside")
    assert blobs.names("aside") == ["aside/a"]
    with pytest.raises(NotADirectoryError):  # the run's folder itself is the user's to name
        open_root(f"{blobs.root}/aside/a").put("b", b"")


def test_the_folder_itself_may_be_a_link(blobs, manifest, tmp_path):
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    assert np.array_equal(read_group(open_root(str(link)), manifest)["grid"], ARRAYS["grid"])


def test_a_folder_that_may_not_be_read_is_no_empty_one(blobs, manifest, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        blobs.names("s.zarr")


def test_units_of_other_rows_or_arrays_than_said_are_refused(blobs, manifest):
    with pytest.raises(CorruptionError, match="does not hold rows 0:7"):
        Rows(blobs, [(0, 7, manifest)]).columns()
    other = write_group(blobs, "s.zarr/v/1", {"grid": np.ones((2, 5), np.float32)})
    for read in (lambda rows: rows.columns(), lambda rows: rows.take(np.array([7]))):
        rows = Rows(blobs, [(0, 6, manifest), (6, 8, other)])
        rows.take(np.array([0]))
        with pytest.raises(CorruptionError, match="does not hold rows 6:8"):
            read(rows)


def test_an_array_that_was_not_committed_is_told(blobs, manifest):
    with pytest.raises(CorruptionError, match="u/1 has no array 'other'"):
        read_group(blobs, manifest, ["other"])


def only_clean_errors(data):
    blobs = open_root("memory://hostile-groups")
    manifest = write_group(blobs, "s.zarr/u/1", ARRAYS)
    key = data.draw(st.sampled_from(["zarr.json", "grid/zarr.json", "flags/zarr.json", ""]))
    if key:
        value = data.draw(changed(json.loads(blobs.get(f"{manifest['group']}/{key}"))))
        manifest = put_metadata(blobs, manifest, key, value)
    else:
        manifest = data.draw(changed(manifest))
    try:
        read_group(blobs, manifest)
        assert not damage(blobs, manifest)
    except CorruptionError:
        return


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_nothing_but_clean_errors(data):
    only_clean_errors(data)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@settings(max_examples=LONG, deadline=None)
@given(data=st.data())
def test_nothing_but_clean_errors_at_length(data):
    only_clean_errors(data)
