"""Commit records from somebody else, checksums and all: of a unit as it is here, or refused."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.errors import CorruptionError
from distinf.runtime import Ledger, Unit
from distinf.runtime.records import seal
from distinf.store import open_root
from tests.support.hostile import ANYTHING, changed, signed

UNITS = [Unit("s", "key", i, i + 1, {"split": "train"}) for i in range(3)]


def record(unit):
    manifest = {"group": f"s.zarr/{unit.id}/1-a", "files": {"x": "0" * 64}, "bytes": 3}
    content = {"unit": unit.id, **unit.as_json(), "attempt": 1, "committed": 1.5}
    return {**content, "manifest": manifest, "summary": {"loss": 1.0}, "name": "1-a"}


@pytest.fixture
def blobs(tmp_path):
    return open_root(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"start": 7}, "of no unit of stage 's'"),  # its id is the hash of another's content
        ({"stage": "t"}, "of no unit"),
        ({"job": {"x": float("nan")}}, "of no unit"),
        ({"attempt": "1"}, "when it was committed"),
        ({"attempt": True}, "when it was committed"),
        ({"committed": None}, "when it was committed"),
        ({"summary": []}, "no summary"),
        ({"manifest": {"group": "t.zarr/x/1", "files": {"x": "0"}, "bytes": 1}}, "another unit"),
        ({"manifest": {"group": "../x", "files": {"x": "0"}, "bytes": 1}}, "another unit"),
    ],
)
def test_a_record_that_no_unit_can_have_is_refused(blobs, changes, match):
    unit = UNITS[0]
    blobs.put(f"ledger/s/{unit.id}.json", seal({**record(unit), **changes}))
    for read in (Ledger(blobs, "s").read, lambda: Ledger(blobs, "s").get(unit)):
        with pytest.raises(CorruptionError, match=match):
            read()
    examined = Ledger(blobs, "s").examine()
    assert len(examined.problems) == 1
    assert not examined.records


def test_swapped_records_are_refused(blobs):
    one, two, _ = UNITS
    for name, unit in ((one, two), (two, one)):
        blobs.put(f"ledger/s/{name.id}.json", seal(record(unit)))
    examined = Ledger(blobs, "s").examine()
    assert [line.split(" of unit")[0] for line in examined.problems.values()] == [
        f"ledger/s/{unit.id}.json holds the record"
        for unit in sorted((one, two), key=lambda u: u.id)
    ]


@pytest.mark.parametrize("content", [{"records": 3}, {"records": [3]}, {"number": "1"}, {}])
def test_a_segment_that_was_not_sealed_here_is_refused(blobs, content):
    whole = {"stage": "s", "number": 1, "records": [record(UNITS[0])]}
    blobs.put("ledger/s/segment-a.json", seal({**whole, **content} if content else {}))
    with pytest.raises(CorruptionError):
        Ledger(blobs, "s").read()
    assert len(Ledger(blobs, "s").examine().problems) == 1


def test_a_pipe_in_place_of_a_record_ends(blobs, tmp_path):
    folder = tmp_path / "ledger" / "s"
    folder.mkdir(parents=True)
    os.mkfifo(folder / f"{UNITS[0].id}.json")
    with pytest.raises(CorruptionError, match="no regular file"):
        Ledger(blobs, "s").get(UNITS[0])
    assert "no regular file" in next(iter(Ledger(blobs, "s").examine().problems.values()))


def only_clean_errors(data):
    blobs = open_root("memory://hostile-records")
    for name in blobs.names(""):
        blobs.delete(name)
    unit = UNITS[0]
    content = data.draw(st.one_of(changed(record(unit)), ANYTHING))
    if data.draw(st.booleans()):
        content = data.draw(changed({"stage": "s", "number": 1, "records": [content]}))
        blobs.put("ledger/s/segment-a.json", signed(content))
    else:
        blobs.put(f"ledger/s/{unit.id}.json", signed(content))
    wanted = json.dumps(unit.as_json(), sort_keys=True)
    for read in (
        lambda: Ledger(blobs, "s").read(),
        lambda: Ledger(blobs, "s").read([unit]),
        lambda: {unit.id: Ledger(blobs, "s").get(unit)},
        lambda: Ledger(blobs, "s").examine().records,
    ):
        try:
            found = read().get(unit.id)
        except CorruptionError:
            continue
        if found is not None:
            assert json.dumps({k: found[k] for k in unit.as_json()}, sort_keys=True) == wanted
            assert isinstance(found["attempt"], int)
            assert isinstance(found.get("summary", {}), dict)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_nothing_but_clean_errors(data):
    only_clean_errors(data)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@settings(max_examples=20_000, deadline=None)
@given(data=st.data())
def test_nothing_but_clean_errors_at_length(data):
    only_clean_errors(data)
