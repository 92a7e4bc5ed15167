"""An import of TFRecords that is stopped or killed and goes on, and one that is not the same."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import yaml

from distinf.cli import main
from distinf.errors import InputError, Interrupted
from distinf.studies.receiver.dataset import Dataset
from distinf.studies.receiver.imports.tfrecords import Reader, Source
from tests.support.records import ROWS, break_grid, configured, random_columns, rows_of, undisturbed
from tests.support.runs import ROOT, command, same_bits
from tests.support.slots import import_records, settings

pytest.importorskip("tensorflow", reason="importing TFRecords needs distinf[tensorflow]")


@pytest.fixture(scope="module")
def columns():
    return random_columns()


@pytest.fixture(scope="module")
def golden(columns, tmp_path_factory):
    """(records, dataset) of an import that nothing stopped."""
    return undisturbed(tmp_path_factory.mktemp("golden"), columns)


def test_a_reader_goes_on_in_the_file_it_has_open(golden):
    paths = sorted(golden[0].glob("train-*"))
    files = [Source("train", str(p), 0, n) for p, n in zip(paths, (17, 17, 16))]
    reader = Reader(files, "none")
    first, stream = list(reader.records(0, 5)), reader._open
    second = list(reader.records(5, 20))
    assert next(stream, None) is None  # read to its end, not opened anew
    assert [number for _, number, _ in first + second] == [*range(17), 0, 1, 2]
    assert list(Reader(files, "none").records(5, 20)) == second
    longer = Reader([replace(files[0], records=18)], "none")
    with pytest.raises(InputError, match=r"ends before record 17 but had 18 records when they"):
        list(longer.records(0, 18))


def bytes_of(root):
    """Everything a dataset says of itself: it covers each file's sha256."""
    return json.dumps(Dataset(str(root)).facts, sort_keys=True).encode()


def test_an_import_that_stopped_goes_on_where_it_was(golden, tmp_path):
    """A record that is broken and mended (its file keeps its size) stops an import half-way."""
    records = tmp_path / "records"
    records.mkdir()
    for file in golden[0].iterdir():
        (records / file.name).write_bytes(file.read_bytes())
    file = records / "train-1"  # rows 17:34, in units of 20
    whole = file.read_bytes()
    break_grid(file, 7)
    out = tmp_path / "dataset"
    with pytest.raises(InputError, match=r"train-1: record 7: grid must be finite$"):
        import_records(configured(records), out)
    done = {name.name for name in (out / "ledger" / "rows").iterdir()}
    assert len(done) == 1
    file.write_bytes(whole)
    before = {name: (out / "ledger" / "rows" / name).stat().st_mtime_ns for name in done}
    import_records(configured(records), out)
    after = {name: (out / "ledger" / "rows" / name).stat().st_mtime_ns for name in done}
    assert before == after
    for split in ROWS:
        assert same_bits(rows_of(out, split), rows_of(golden[1], split))
    again = bytes_of(out)
    import_records(configured(records), out)
    assert bytes_of(out) == again


def test_another_configuration_or_file_is_refused_by_name(golden):
    records, out = golden
    with pytest.raises(InputError, match=r"another run \(differing: settings.rows_per_unit\);"):
        import_records(configured(records, rows_per_unit=10), out)
    scale = {"snr_db": {"scale": 2}}
    with pytest.raises(InputError, match=r"differing: settings.features.snr_db.scale\)"):
        import_records(configured(records, features=scale), out)
    file = records / "train-1"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole + whole[: len(whole) // 17])
        with pytest.raises(InputError, match=r"differing: digest.source.*train-1\)"):
            import_records(configured(records), out)
    finally:
        file.write_bytes(whole)
    assert main(["run", "nowhere.yaml", "--out", str(out)]) == 2


def test_a_folder_of_something_else_is_left_alone(golden, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty and holds no config\.yaml"):
        import_records(configured(golden[0]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("stage", ["pilots", "count", "rows", "dataset", "report"])
def test_a_folder_that_vanished_stops_the_import_and_is_not_made_anew(golden, tmp_path, stage):
    out, elsewhere = tmp_path / "dataset", tmp_path / "elsewhere"

    @contextmanager
    def moving(part, units, done):
        if part.stage == stage:
            out.rename(elsewhere)
        yield

    with pytest.raises(Interrupted, match=r"dataset is gone, or its config.yaml .* put it back"):
        import_records(configured(golden[0]), out, moving)
    assert not out.exists()
    elsewhere.rename(out)
    for lease in (out / "driver").iterdir():  # of a process that has ended since
        lease.unlink()
    import_records(configured(golden[0]), out)
    assert bytes_of(out) == bytes_of(golden[1])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(3))
def test_an_import_killed_at_random_gives_the_same_bytes(golden, tmp_path, seed):
    file, out = tmp_path / "import.yaml", tmp_path / "dataset"
    files = {split: [str(golden[0] / f"{split}-*")] for split in ROWS}
    raw = settings(files=files, rows_per_unit=4)
    plain = {"task": "receiver.imports", "runtime": {"kind": "local"}, **raw}
    file.write_text(yaml.safe_dump(plain))
    arguments = command("run", str(file), "--out", str(out))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    records = out / "ledger" / "rows"
    for committed in sorted(random.Random(seed).sample(range(1, 20), 2)):
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment)
        while process.poll() is None and len(list(records.glob("*.json"))) < committed:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    subprocess.run(arguments, cwd=ROOT, env=environment, check=True)
    for split in ROWS:
        assert same_bits(rows_of(out, split), rows_of(golden[1], split))
    undisturbed = configured(golden[0], rows_per_unit=4)
    import_records(undisturbed, tmp_path / "other")
    assert bytes_of(out) == bytes_of(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_two_workers_import_the_same(golden, tmp_path):
    import_records(configured(golden[0]), tmp_path / "dataset", kind="ray", workers=2)
    assert bytes_of(tmp_path / "dataset") == bytes_of(golden[1])
