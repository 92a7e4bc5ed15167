"""The ledger: the first commit wins, nothing altered is believed, segments change no answer."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.digest import digest
from distinf.errors import CorruptionError
from distinf.runtime import Ledger, Unit
from distinf.runtime import ledger as module
from distinf.runtime.records import believed, seal, unseal
from distinf.store import open_root


def units(count: int, stage: str = "s") -> list[Unit]:
    return [Unit(stage, "key", i, i + 1) for i in range(count)]


@pytest.fixture
def blobs(tmp_path):
    return open_root(str(tmp_path))


def test_a_units_id_depends_on_what_it_computes_alone():
    one = Unit("s", "b", 0, 5, {"x": 1, "y": 2})
    assert one.id == Unit("s", "b", 0, 5, {"y": 2, "x": 1}).id
    others = [
        Unit("t", "b", 0, 5),
        Unit("s", "c", 0, 5),
        Unit("s", "b", 0, 6),
        Unit("s", "b", 1, 5),
    ]
    assert len({one.id, *(unit.id for unit in others)}) == 5


def test_the_first_commit_wins_and_the_late_one_is_told_so(blobs):
    unit = units(1)[0]
    first = Ledger(blobs, "s").commit(unit, 1, {"word": "first"})
    late = Ledger(blobs, "s").commit(unit, 2, {"word": "late"})
    assert first["word"] == late["word"] == "first"
    assert Ledger(blobs, "s").read([unit])[unit.id]["word"] == "first"


def test_an_altered_record_is_refused_by_name(blobs):
    unit = units(1)[0]
    Ledger(blobs, "s").commit(unit, 1, {"word": {"bytes": 10}})
    name = f"ledger/s/{unit.id}.json"
    blobs.put(name, blobs.get(name).replace(b'"bytes": 10', b'"bytes": 11'))
    with pytest.raises(CorruptionError, match=f"{unit.id}.json was altered"):
        Ledger(blobs, "s").read()


def test_a_torn_record_is_refused(blobs):
    unit = units(1)[0]
    Ledger(blobs, "s").commit(unit, 1, {})
    name = f"ledger/s/{unit.id}.json"
    blobs.put(name, blobs.get(name)[:-10])
    with pytest.raises(CorruptionError, match="is not a commit record"):
        Ledger(blobs, "s").read()


def test_a_record_under_another_units_name_is_refused(blobs):
    one, two = units(2)
    Ledger(blobs, "s").commit(one, 1, {})
    blobs.put(f"ledger/s/{two.id}.json", blobs.get(f"ledger/s/{one.id}.json"))
    with pytest.raises(CorruptionError, match="holds the record of unit"):
        Ledger(blobs, "s").read()


def test_sealing_changes_no_answer(blobs, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_RECORDS", 10)
    wanted = units(25)
    ledger = Ledger(blobs, "s")
    for unit in wanted:
        ledger.commit(unit, 1, {"value": unit.start})
    before = ledger.read()
    assert ledger.seal_full_segments() == 2
    names = blobs.names("ledger/s")
    assert len([n for n in names if "segment-" in n]) == 2
    assert len(names) == 2 + 5
    fresh = Ledger(blobs, "s")
    assert fresh.read() == before
    assert fresh.committed_ids() == {unit.id for unit in wanted}
    assert fresh.seal_full_segments() == 0


def sealed(blobs, monkeypatch):
    """Two units in a segment -> the first."""
    monkeypatch.setattr(module, "SEGMENT_RECORDS", 2)
    wanted = units(2)
    ledger = Ledger(blobs, "s")
    for unit in wanted:
        ledger.commit(unit, 1, {"word": "sealed"})
    ledger.seal_full_segments()
    return wanted[0]


def test_a_late_commit_beside_a_segment_changes_nothing(blobs, monkeypatch):
    unit = sealed(blobs, monkeypatch)
    Ledger(blobs, "s").commit(unit, 9, {"word": "zombie"})
    assert Ledger(blobs, "s").read()[unit.id]["word"] == "sealed"


def sealed_and_late(blobs, monkeypatch):
    """A sealed unit, and a loose record that a writer with an old listing put beside it."""
    unit = sealed(blobs, monkeypatch)
    late = {"unit": unit.id, **unit.as_json(), "attempt": 9, "committed": 1.0}
    blobs.put(f"ledger/s/{unit.id}.json", seal({**late, "word": "late"}))
    return unit


@pytest.mark.parametrize("first", ["get", "read", "read one", "get after read"])
def test_a_sealed_record_stands_against_a_late_one_however_it_is_read(blobs, monkeypatch, first):
    unit = sealed_and_late(blobs, monkeypatch)
    fresh = Ledger(blobs, "s")
    if first == "get after read":
        fresh.read()
    found = {
        "get": lambda: fresh.get(unit),
        "read": lambda: fresh.read()[unit.id],
        "read one": lambda: fresh.read([unit])[unit.id],
        "get after read": lambda: fresh.get(unit),
    }[first]()
    assert found["word"] == "sealed"
    assert fresh.get(unit) == fresh.read()[unit.id] == fresh.read([unit])[unit.id]


def test_late_records_that_are_sealed_again_change_nothing(blobs, monkeypatch):
    unit = sealed_and_late(blobs, monkeypatch)
    other = Unit("s", "key", 7, 8)
    Ledger(blobs, "s").commit(other, 1, {"word": "new"})
    Ledger(blobs, "s").seal_full_segments()
    assert Ledger(blobs, "s").get(unit)["word"] == "sealed"
    assert blobs.names("ledger/s").count(f"ledger/s/{unit.id}.json") == 0
    late = {"unit": unit.id, **unit.as_json(), "attempt": 9, "committed": 1.0, "word": "late"}
    segment = seal({"stage": "s", "number": 9, "records": [late]})  # of a driver that did seal it
    blobs.put("ledger/s/segment-0000.json", segment)
    assert Ledger(blobs, "s").get(unit)["word"] == "sealed"
    assert Ledger(blobs, "s").read()[unit.id]["word"] == "sealed"


def test_a_segment_is_read_back_before_the_records_in_it_go(blobs, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_RECORDS", 2)
    ledger = Ledger(blobs, "s")
    for unit in units(2):
        ledger.commit(unit, 1, {"word": "loose"})
    put = type(blobs).put_if_absent
    monkeypatch.setattr(
        type(blobs), "put_if_absent",
        lambda self, key, data: put(self, key, data[:-9] if "segment-" in key else data),
    )  # fmt: skip
    with pytest.raises(CorruptionError):
        ledger.seal_full_segments()
    assert len([n for n in blobs.names("ledger/s") if "segment-" not in n]) == 2


def test_of_segments_the_first_stands_in_whatever_order_they_are_seen(blobs, monkeypatch):
    unit = sealed(blobs, monkeypatch)
    first = blobs.names("ledger/s")[0]
    late = {"unit": unit.id, **unit.as_json(), "attempt": 9, "committed": 1.0, "word": "late"}
    second = seal({"stage": "s", "number": 9, "records": [late]})
    blobs.put("ledger/s/segment-0000.json", second)
    kept = blobs.get(first)
    blobs.delete(first)
    ledger = Ledger(blobs, "s")
    assert ledger.read()[unit.id]["word"] == "late"
    blobs.put(first, kept)
    assert len(ledger.committed_ids()) == 2
    assert ledger.get(unit)["word"] == "sealed"


def test_a_segment_that_could_not_be_read_once_hides_no_other(blobs, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_RECORDS", 2)
    ledger = Ledger(blobs, "s")
    for unit in units(4):
        ledger.commit(unit, 1, {})
    assert ledger.seal_full_segments() == 2
    get, last = type(blobs).get, blobs.names("ledger/s")[-1]

    def broken(self, key, most=None):
        if key == last:
            raise OSError("the network is away")
        return get(self, key, most)

    fresh = Ledger(blobs, "s")
    monkeypatch.setattr(type(blobs), "get", broken)
    with pytest.raises(OSError, match="network"):
        fresh.read()
    monkeypatch.setattr(type(blobs), "get", get)
    assert fresh.read().keys() == {unit.id for unit in units(4)}


def test_an_altered_segment_is_refused(blobs, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_RECORDS", 2)
    ledger = Ledger(blobs, "s")
    for unit in units(2):
        ledger.commit(unit, 1, {"value": 5})
    ledger.seal_full_segments()
    name = blobs.names("ledger/s")[0]
    blobs.put(name, blobs.get(name).replace(b'"value": 5', b'"value": 6'))
    with pytest.raises(CorruptionError, match="was altered"):
        Ledger(blobs, "s").read()


def test_reading_none_of_the_units_reads_none(blobs):
    ledger = Ledger(blobs, "s")
    ledger.commit(units(1)[0], 1, {})
    assert ledger.read([]) == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(content=st.dictionaries(st.text().filter(lambda k: k != "sha256"), json_values, max_size=4))
def test_what_is_sealed_comes_back(content):
    assert unseal(seal(content), "x") == json.loads(json.dumps(content))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=80))
def test_arbitrary_bytes_never_pass_for_a_record(data):
    with pytest.raises(CorruptionError):
        unseal(data, "x")


def test_digest_refuses_nan():
    with pytest.raises(ValueError):
        digest([float("nan")])


@pytest.mark.parametrize(
    "manifest",
    [None, [], 3, {}, {"group": None, "files": None, "bytes": None},
     {"group": "g", "files": {"a": None}, "bytes": 1}],
)  # fmt: skip
def test_a_record_with_a_right_checksum_and_no_manifest_is_damaged(blobs, manifest):
    unit = units(1)[0]
    content = {"unit": unit.id, **unit.as_json(), "attempt": 1, "committed": 0.0}
    whole = {"manifest": {"group": f"s.zarr/{unit.id}/1", "files": {"a": "b"}, "bytes": 1}}
    assert believed({**content, **whole}, "s", "a record")
    with pytest.raises(CorruptionError, match="a record has no manifest of its files"):
        believed({**content, "manifest": manifest}, "s", "a record")


def test_a_record_of_brackets_is_damaged():
    with pytest.raises(CorruptionError, match="a record is not a commit record"):
        unseal(b"[" * 100_000, "a record")
