"""The short form of the fuzzing; the long one is `python -m tests.faults.fuzz`."""

import random
from pathlib import Path

import numpy as np
import pytest

from distinf.config import load, resolve
from distinf.errors import InputError
from distinf.printable import shortened
from distinf.store import damage, open_root, write_group
from tests.faults.torn import Configurations, Folder
from tests.support.runs import run_points

pytestmark = pytest.mark.faults


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["tree", pytest.param("text", marks=pytest.mark.slow), "override"])
def test_configurations_end_in_nothing_but_clean_errors(tmp_path, name):
    case = getattr(Configurations(tmp_path), name)
    for number in range(700):
        case(random.Random(number))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_runs_files_end_in_nothing_but_clean_errors(tmp_path):
    folder = Folder(Path(run_points(tmp_path / "run").blobs.root))
    for number in range(40):
        folder.look(random.Random(number))
    for number in range(6):
        folder.repair(random.Random(number))


@pytest.mark.parametrize("name", ["look", "repair"])
def test_a_reader_that_fails_otherwise_is_seen(tmp_path, monkeypatch, name):
    def broken(*_):
        raise KeyError("x")

    folder = Folder(Path(run_points(tmp_path / "run").blobs.root))
    monkeypatch.setattr("tests.faults.torn.verify", broken)
    with pytest.raises(KeyError):
        getattr(folder, name)(random.Random(0))


@pytest.mark.parametrize("line", ['out: "a\\ud800"', 'settings: {"a\\ud800": 1}'])
def test_half_a_character_is_no_text(tmp_path, line):
    (tmp_path / "half.yaml").write_text(f"task: tests.support.blobs_task:task\n{line}\n")
    with pytest.raises(InputError, match="half of a character"):
        load(str(tmp_path / "half.yaml"))


@pytest.mark.parametrize(
    ("value", "match"), [("a\ud800", "half of a character"), ([], "nested too deep")]
)
def test_a_mapping_is_refused_as_a_file_is(value, match):
    for _ in range(60 if value == [] else 0):
        value = [value]
    with pytest.raises(InputError, match=match):
        resolve({"task": "tests.support.blobs_task:task", "settings": {"x": value}})


def test_numbers_that_cannot_be_reckoned_with_are_refused():
    with pytest.raises(InputError, match="a number of the settings is out of range"):
        resolve({"task": "receiver", "settings": {"scenario": {"train_slots": 10**400}}})


def test_a_manifest_without_a_group_is_damage(tmp_path):
    blobs = open_root(str(tmp_path))
    manifest = dict(write_group(blobs, "s.zarr/u/1", {"x": np.ones(2)}))
    del manifest["group"]
    assert len(damage(blobs, manifest)) == 1


def test_a_long_line_keeps_both_ends():
    assert shortened("a" * 10) == "a" * 10
    assert shortened("a" * 3_000 + "b" * 3_000) == f"{'a' * 1_000} … {'b' * 1_000}"
