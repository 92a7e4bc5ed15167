"""Groups: what was committed comes back, and anything else raises. On a folder and in a bucket."""

import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from distinf.errors import CorruptionError, InputError
from distinf.store import (
    Blobs,
    Rows,
    damage,
    groups,
    open_group,
    open_root,
    read_group,
    write_group,
)
from distinf.store import rows as rows_module
from distinf.store.blobs import Folder
from distinf.store.groups import encode


@pytest.fixture(params=["folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return open_root(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")


def sample() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "grid": random.standard_normal((50, 2, 3)).astype(np.float16),
        "bits": random.integers(0, 255, (50, 7), dtype=np.uint8),
        "zeros": np.zeros((50, 2), dtype=np.float32),
        "scalar": np.asarray(3.5),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }


def chunk_key(manifest: dict, name: str) -> str:
    return next(k for k in manifest["files"] if k.startswith(f"{name}/c"))


@pytest.mark.smoke
def test_arrays_come_back_bit_for_bit(blobs):
    written = sample()
    manifest = write_group(blobs, "data.zarr/u/1", written, chunk_rows=24)
    found = read_group(blobs, manifest)
    assert found.keys() == written.keys()
    for name, values in written.items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name], values)


def test_plain_zarr_reads_it_too(tmp_path):
    written = {**sample(), "flags": np.arange(50) % 3 == 0, "phase": np.full((9, 2), 1 - 2j)}
    write_group(open_root(str(tmp_path)), "data.zarr/u/1", written, chunk_rows=24)
    found = zarr.open_group(tmp_path / "data.zarr/u/1", mode="r", zarr_format=3)
    assert set(found.array_keys()) == written.keys()
    for name, values in written.items():
        assert found[name].dtype == values.dtype
        assert np.array_equal(found[name][...], values)


@given(st.lists(st.integers(0, 49), max_size=60), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=40)
def test_rows_of_an_array_are_those_of_it_whole(rows, start, stop):
    blobs, values = open_root("memory://rows"), np.arange(150_000).reshape(50, 3_000)
    manifest = write_group(blobs, "g", {"x": values}, chunk_rows=7)
    found = open_group(blobs, manifest)["x"]
    assert found.layout.chunks == 8
    rows = np.sort(np.array(rows, dtype=np.int64))
    assert np.array_equal(found.take(rows), values[rows])
    assert np.array_equal(found.values(start, stop), values[start:stop])


def test_all_zero_chunks_are_stored(blobs):
    manifest = write_group(blobs, "g", {"zeros": np.zeros((4, 2), np.float32)})
    assert any("/c/" in key for key in manifest["files"])


def test_a_missing_chunk_raises_and_never_reads_as_zeros(blobs):
    manifest = write_group(blobs, "g", sample(), chunk_rows=24)
    blobs.delete(f"g/{chunk_key(manifest, 'grid')}")
    with pytest.raises(CorruptionError, match="missing but was committed"):
        read_group(blobs, manifest, ["grid"])
    (told,) = damage(blobs, manifest)
    assert "missing but was committed" in told


@pytest.mark.parametrize("place", ["chunk", "metadata"])
def test_one_flipped_bit_raises(blobs, place):
    manifest = write_group(blobs, "g", sample(), chunk_rows=24)
    key = f"g/{chunk_key(manifest, 'bits') if place == 'chunk' else 'bits/zarr.json'}"
    data = bytearray(blobs.get(key))
    data[len(data) // 2] ^= 1
    blobs.put(key, bytes(data))
    with pytest.raises(CorruptionError, match="sha256 differs"):
        read_group(blobs, manifest, ["bits"])


def test_a_chunk_that_was_not_committed_is_not_read(blobs):
    manifest = write_group(blobs, "g", sample(), chunk_rows=24)
    files = {k: v for k, v in manifest["files"].items() if k != chunk_key(manifest, "grid")}
    with pytest.raises(CorruptionError, match="never committed"):
        read_group(blobs, {**manifest, "files": files}, ["grid"])


def test_nan_is_refused_unless_it_is_expected(blobs):
    bad = {"x": np.array([1.0, np.nan], dtype=np.float32)}
    with pytest.raises(ValueError, match="'x' has a non-finite value; nothing committed"):
        write_group(blobs, "g", bad)
    assert blobs.names("g") == []
    manifest = write_group(blobs, "g", bad, may_hold_nan=["x"])
    assert np.isnan(read_group(blobs, manifest)["x"][1])


def test_rows_are_one_array_over_units_in_any_order(blobs, monkeypatch):
    monkeypatch.setattr(groups, "LEAST_BYTES", 1)  # several chunks a unit
    monkeypatch.setattr(rows_module, "OPEN_UNITS", 2)
    values = np.arange(60, dtype=np.float32).reshape(30, 2)
    spans = [(20, 30), (0, 8), (8, 20)]
    units = [
        (a, b, write_group(blobs, f"g/{a}", {"x": values[a:b]}, chunk_rows=3)) for a, b in spans
    ]
    rows = Rows(blobs, units)
    assert len(rows) == 30
    assert np.array_equal(rows.columns()["x"], values)
    ids = np.array([29, 0, 7, 8, 7, 20])
    assert np.array_equal(rows.take(ids)["x"], values[ids])
    with pytest.raises(IndexError, match="0:30"):
        rows.take(np.array([30]))


def test_rows_with_a_gap_are_refused(blobs):
    manifest = write_group(blobs, "g", {"x": np.zeros((2, 1), np.float32)})
    with pytest.raises(CorruptionError, match="rows 2:4 have no committed unit"):
        Rows(blobs, [(0, 2, manifest), (4, 6, manifest)])


@settings(max_examples=25, deadline=None)
@given(
    values=arrays_of.arrays(
        dtype=st.sampled_from([np.float32, np.int64, np.uint8, np.bool_]),
        shape=arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    chunk_rows=st.integers(1, 6),
)
def test_any_array_survives(values, chunk_rows):
    blobs = open_root("memory://any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "LEAST_BYTES", 1)
        manifest = write_group(blobs, "g", {"x": values}, chunk_rows=chunk_rows)
    assert np.array_equal(read_group(blobs, manifest)["x"], values)


def test_put_if_absent_keeps_the_first(blobs):
    assert blobs.put_if_absent("a/b.json", b"first")
    assert not blobs.put_if_absent("a/b.json", b"second")
    assert blobs.get("a/b.json") == b"first"
    assert blobs.names("a") == ["a/b.json"]
    blobs.delete("a/b.json")
    blobs.delete("a/b.json")
    with pytest.raises(KeyError):
        blobs.get("a/b.json")


def test_half_written_files_are_invisible(tmp_path):
    store = open_root(str(tmp_path))
    store.put("a/x", b"data")
    (tmp_path / "a" / ".y.0123.partial").write_bytes(b"half")
    assert store.names("a") == ["a/x"]


def test_an_unknown_scheme_is_bad_input():
    with pytest.raises(InputError, match="out: cannot open nowhere://x"):
        open_root("nowhere://x")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "zarr.json", "a\0", "a" * 300])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(ValueError, match="cannot be called that"):
        encode({name: np.ones(3)})


def test_large_objects_are_read_back_one_at_a_time(tmp_path, monkeypatch):
    store, wide = open_root(str(tmp_path)), {"x": np.ones((8, 1 << 17))}
    holds, now, seen = Folder.holds, [], []

    def counted(blobs, key, data):
        now.append(key)
        seen.append(len(now))
        time.sleep(0.01)
        now.remove(key)
        return holds(blobs, key, data)

    monkeypatch.setattr(Folder, "holds", counted)
    write_group(store, "g", wide, chunk_rows=1)
    assert max(seen) > 1
    seen.clear()
    monkeypatch.setattr(groups, "AT_ONCE_BYTES", 1 << 20)
    write_group(store, "h", wide, chunk_rows=1)
    assert max(seen) == 1


def test_numbers_that_change_after_they_were_written_are_stored_as_they_were(tmp_path):
    for root in (str(tmp_path), f"memory://{tmp_path.name}"):
        store, rows = open_root(root), np.zeros((4, 1 << 14))
        manifest = write_group(store, "g", {"x": rows}, chunk_rows=2)
        rows += 1.0
        assert not read_group(store, manifest)["x"].any()


def test_encode_chunks_along_rows_only():
    objects = encode({"x": np.ones((10, 8_192), np.float32)}, chunk_rows=4)
    assert sorted(k for k in objects if "/c/" in k) == ["x/c/0/0", "x/c/1/0", "x/c/2/0"]


def test_a_narrow_column_is_not_cut_into_tiny_files():
    objects = encode({"x": np.ones(960, np.float32)}, chunk_rows=24)
    assert [k for k in objects if "/c/" in k] == ["x/c/0"]
