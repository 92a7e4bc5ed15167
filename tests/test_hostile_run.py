"""A run's folder from somebody else, checksums and all: whoever looks at it gets clean errors."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distinf.engine.rewriting import rewrite_report
from distinf.engine.run import reopen
from distinf.engine.standing import stages_of
from distinf.engine.verifying import verify
from distinf.errors import CorruptionError, DistinfError
from distinf.runtime.records import seal, unseal
from tests.support.hostile import changed, put_metadata, signed
from tests.support.runs import run_points


@pytest.fixture(scope="module")
def blobs(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("hostile") / "run").blobs


def looked_at(blobs):
    """Everything that reads a run without computing -> how many of them refused it."""
    refused = 0
    looks = [
        lambda: stages_of(blobs), lambda: verify(blobs), lambda: rewrite_report(reopen(blobs.root))
    ]  # fmt: skip
    for look in looks:
        try:
            look()
        except DistinfError:
            refused += 1
    return refused


def test_a_summary_that_no_stage_writes_is_told_in_one_line(blobs):
    kept = {name: blobs.get(name) for name in blobs.names("ledger/curvature")}
    for name, data in kept.items():
        blobs.put(name, seal({**unseal(data, name), "summary": {"left_out": 5}}))
    try:
        with pytest.raises(CorruptionError, match="does not hold what a run commits"):
            rewrite_report(reopen(blobs.root))
    finally:
        for name, data in kept.items():
            blobs.put(name, data)
    assert looked_at(blobs) == 0


def only_clean_errors(blobs, data):
    name = data.draw(st.sampled_from(blobs.names("ledger")))
    kept = {name: blobs.get(name)}
    record = unseal(kept[name], name)
    manifest = record["manifest"]
    keys = [key for key in manifest["files"] if key.endswith("zarr.json")]
    key = data.draw(st.sampled_from(["", *keys]))
    if key:
        place = f"{manifest['group']}/{key}"
        kept[place] = blobs.get(place)
        value = data.draw(changed(json.loads(kept[place])))
        record["manifest"] = put_metadata(blobs, manifest, key, value)
    else:
        record = data.draw(changed(record))
    blobs.put(name, signed(record))
    try:
        looked_at(blobs)
    finally:
        for place, content in kept.items():
            blobs.put(place, content)


QUIET = [HealthCheck.function_scoped_fixture]


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=QUIET)
@given(data=st.data())
def test_nothing_but_clean_errors(blobs, data):
    only_clean_errors(blobs, data)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
@settings(max_examples=3_000, deadline=None, suppress_health_check=QUIET)
@given(data=st.data())
def test_nothing_but_clean_errors_at_length(blobs, data):
    only_clean_errors(blobs, data)
