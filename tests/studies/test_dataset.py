"""The receiver task on an imported dataset. TensorFlow is not needed to read one."""

import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
import yaml

from distinf.cli import main
from distinf.config import load, resolve
from distinf.engine.lease import held
from distinf.engine.run import execute
from distinf.errors import CorruptionError, InputError
from distinf.runtime import Agenda
from distinf.spectral.evaluate import evaluation
from distinf.spectral.session import Session
from distinf.store import open_root
from distinf.studies.receiver.imports import recipe, tfrecords
from distinf.studies.receiver.scenario import CHANNEL_MODELS
from distinf.tasks.task import GeneratingTask, StoredTask, Task, build_task
from tests.support.runs import ROOT, merged, same_bits, silent
from tests.support.slots import import_records, settings, without_records, write_dataset

SCENARIO = {"prbs": 1}
TINY = {
    "task": "receiver",
    "runtime": {"kind": "local"},
    "settings": {"scenario": SCENARIO, "model": {"widths": [4]}},
    "train": {"steps": 4, "batch_size": 16, "checkpoint_every": 2},
    "targets": {"count": 1, "min_reference": 1e-3},
    "curvature": {"steps": 4, "keep": 2, "samples": 24, "probes": 2},
    "gradients": {"rows_per_unit": 48, "chunk": 8},
    "scores": {"damping": 0.01, "negative": "absolute"},
    "actions": {"pool": 24, "batch_size": 12, "seeds": 1, "non_targets": 12},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "dataset"
    return folder, write_dataset(folder, {"train": 50, "evaluation": 30})


def task_of(folder, **scenario):
    return build_task("receiver", {"dataset": str(folder), "scenario": SCENARIO | scenario}, seed=1)


def test_its_rows_are_the_stored_ones_and_nothing_is_generated(dataset):
    folder, columns = dataset
    made = task_of(folder)
    assert isinstance(made, Task)
    assert isinstance(made, StoredTask)
    assert not isinstance(made, GeneratingTask)
    assert (made.rows("train"), made.rows("evaluation")) == (50, 30)
    ids = np.array([49, 3, 20])
    batch = made.batch("train", ids)
    expected = made.from_rows({k: v[ids] for k, v in columns["train"].items()})
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[k].nan_to_num(), expected[k].nan_to_num()) for k in expected)
    assert made.labels["model"][int(batch["model"][0])] == "TDL-C"
    assert made.labels["model"] == CHANNEL_MODELS
    with pytest.raises(IndexError, match="0:30"):
        made.batch("evaluation", np.array([30]))


def test_plan_knows_its_bytes_and_the_data_stage_has_no_units(dataset):
    folder, columns = dataset
    config = resolve(merged(TINY, {"settings": {"dataset": str(folder)}, "out": "memory://plan"}))
    shapes = config.identity.shapes()
    for split in ("train", "evaluation"):
        row = sum(v[0].nbytes for v in columns[split].values()) + 8  # and the slot's hash
        assert shapes.row_bytes[split] == row
    assert config.context("x")["keys"] != resolve(TINY).context("x")["keys"]


def test_a_whole_run_on_imported_slots(dataset, tmp_path, monkeypatch):
    folder, columns = dataset
    monkeypatch.chdir(folder.parent)
    raw = merged(TINY, {"settings": {"dataset": folder.name}, "out": str(tmp_path / "run")})
    config = resolve(raw)
    assert config.settings["dataset"] == str(folder)  # workers start in folders of their own
    session = execute(config, silent)
    assert not session.blobs.names("data.zarr")
    found = evaluation(session)
    assert np.array_equal(found["genie_ber"], columns["evaluation"]["genie_ber"])
    assert np.isnan(found["doppler_hz"]).all()
    page = session.blobs.get("report/index.html").decode()
    assert "imported from TFRecords" in page
    assert "LS estimate + LMMSE" in page


def test_rows_are_the_same_from_memory_and_from_chunks(dataset):
    raw = merged(TINY, {"settings": {"dataset": str(dataset[0])}})
    ids, found = np.array([49, 0, 21]), []
    for cache_mb in (100, 0):
        config = resolve({**raw, "data": {"cache_mb": cache_mb}})
        session = Session(config.context("memory://rows"), torch.device("cpu"))
        batch = session.batch("train", ids)
        found.append({name: values.numpy() for name, values in batch.items()})
        assert (session.task._sources["train"]._columns is None) == (cache_mb == 0)
    assert same_bits(*found)


def test_a_dataset_without_baseline_promises_none(dataset, tmp_path):
    write_dataset(tmp_path / "without", {"train": 2, "evaluation": 2}, baseline="absent")
    assert task_of(dataset[0]).wording.baseline == "baseline_ber"
    made = task_of(tmp_path / "without")
    assert made.wording.baseline is None
    assert "baseline_ber" not in made.batch("evaluation", np.arange(2))


@pytest.mark.parametrize("name", ["prbs", "rx_antennas", "bits_per_symbol"])
def test_a_scenario_of_another_shape_is_refused(dataset, name):
    value = {"prbs": 2, "rx_antennas": 1, "bits_per_symbol": 2}[name]
    with pytest.raises(InputError, match=rf"scenario.{name}={value}: .* have \d; set it to \d$"):
        task_of(dataset[0], **{name: value}).rows("train")


def test_a_folder_without_dataset_is_refused(dataset, tmp_path):
    with pytest.raises(InputError, match=r"is no finished import as .* every node sees$"):
        task_of(tmp_path / "nowhere").rows("train")
    folder = tmp_path / "begun"
    write_dataset(folder, {"train": 2, "evaluation": 2})
    place = [part.title for part in Agenda(open_root(str(folder))).parts()].index("dataset")
    (folder / f"agenda/{place:04d}.json").unlink()  # as before its end
    with pytest.raises(InputError, match="finish its import"):
        task_of(folder).rows("train")


def test_one_of_an_earlier_format_is_refused(tmp_path):
    open_root(str(tmp_path)).put("dataset.json", b"{}")
    with pytest.raises(InputError, match=r"not of format 'distinf receiver slots 3'; import it"):
        task_of(tmp_path).rows("train")


@pytest.mark.parametrize("stage", ["rows", "pilots", "dataset"])
def test_verify_misses_records_of_a_finished_import(tmp_path, capsys, stage):
    write_dataset(tmp_path / "d", {"train": 50, "evaluation": 30})
    blobs = open_root(str(tmp_path / "d"))
    for name in blobs.names(f"ledger/{stage}"):
        blobs.delete(name)
    assert main(["verify", str(tmp_path / "d")]) == 3
    said = capsys.readouterr().err
    assert f"ledger/{stage}" in said
    assert "is missing" in said
    with pytest.raises(CorruptionError, match=f"{stage}|train"):
        batch_of(tmp_path / "d", "train")


def batch_of(folder, split):
    return task_of(folder).batch(split, np.arange(30))


def alter_grids(folder):
    blobs = open_root(str(folder))
    for chunk in [n for n in blobs.names("rows.zarr") if "/grid/c/" in n]:
        data = blobs.get(chunk)
        blobs.put(chunk, bytes([data[0] ^ 1, *data[1:]]))


def test_altered_rows_and_missing_records_are_corruption(tmp_path, capsys):
    write_dataset(tmp_path / "d", {"train": 50, "evaluation": 30})
    assert main(["verify", str(tmp_path / "d")]) == 0
    alter_grids(tmp_path / "d")
    with pytest.raises(CorruptionError, match="is not what was committed"):
        batch_of(tmp_path / "d", "evaluation")
    assert main(["verify", str(tmp_path / "d")]) == 3
    assert "5 problems in" in capsys.readouterr().err
    blobs = open_root(str(tmp_path / "d"))
    blobs.delete(blobs.names("ledger/rows")[0])
    with pytest.raises(CorruptionError, match="are missing or not those"):
        [task_of(tmp_path / "d").stored(split) for split in ("train", "evaluation")]


def test_what_is_damaged_is_imported_again(dataset, tmp_path, capsys):
    columns = write_dataset(tmp_path / "d", {"train": 50, "evaluation": 30})
    whole = task_of(tmp_path / "d").digests()
    alter_grids(tmp_path / "d")
    with without_records(columns):
        assert main(["verify", "--repair", str(tmp_path / "d")]) == 0
    assert task_of(tmp_path / "d").digests() == whole
    batch_of(tmp_path / "d", "evaluation")


def test_status_and_report_of_an_import(dataset, capsys):
    assert main(["status", str(dataset[0])]) == 0
    said = capsys.readouterr().out
    assert "finished: report at" in said
    assert all(f"{stage.name} " in said for stage in recipe.RECIPE.stages)
    page = (dataset[0] / "report/index.html").read_text()
    assert "50 train slots, 30 evaluation slots" in page
    assert (dataset[0] / "report/splits.csv").read_text().startswith("split,rows,genie_ber")


def test_plan_of_an_import_says_what_it_stores(dataset, tmp_path, capsys):
    folder = str(dataset[0])
    assert main(["plan", folder, "--out", str(tmp_path / "other"), "--json"]) == 0
    stages = {s["stage"]: s for s in json.loads(capsys.readouterr().out)["stages"]}
    assert [*stages] == ["pilots", "count", "rows", "dataset", "report"]
    assert stages["count"]["units"] == 2
    assert stages["rows"]["bytes"] > 0
    assert main(["plan", folder, "--gpu", "h100"]) == 2
    assert "on a GPU; leave it out" in capsys.readouterr().err


def test_rows_are_counted_ahead_by_the_length_of_the_first_record(tmp_path):
    record = (100).to_bytes(8, "little") + bytes(108)
    packed = zlib.compressobj(0, wbits=31)
    for name, data, kind in (
        ("plain", record * 7, "none"),
        ("gzip", packed.compress(record * 7) + packed.flush(), "gzip"),
        ("zlib", zlib.compress(record * 7, 0), "zlib"),
    ):
        (tmp_path / name).write_bytes(data)
        source = tfrecords.Source("train", str(tmp_path / name), len(data))
        assert tfrecords.likely_records(source, kind) == 7
    (tmp_path / "torn").write_bytes(bytes(50))
    torn = tfrecords.Source("train", str(tmp_path / "torn"), 50)
    assert tfrecords.likely_records(torn, "gzip") == 1  # which is told when it is counted


def test_a_second_import_into_a_folder_at_work_is_refused(dataset, tmp_path):
    columns = write_dataset(tmp_path / "d", {"train": 4, "evaluation": 4})
    raw = load(str(tmp_path / "d")).settings
    at_work, refused = held(open_root(str(tmp_path / "d"))), pytest.raises(InputError, match="work")
    with without_records(columns), at_work, refused:
        import_records(raw, tmp_path / "d")


def test_the_digest_is_of_the_slots_not_of_the_place(dataset, tmp_path):
    write_dataset(tmp_path / "again", {"train": 50, "evaluation": 30})
    write_dataset(tmp_path / "fewer", {"train": 49, "evaluation": 30})
    first = task_of(dataset[0]).digests()
    assert task_of(tmp_path / "again").digests() == first
    assert task_of(tmp_path / "fewer").digests()["data"] != first["data"]


# -- an import's configuration -------------------------------------------------------------


def feature(**changes):
    return {"features": merged(settings()["features"], changes)}


BAD = [
    ({"feature": {}}, r"unknown key 'feature'; did you mean 'features'\?"),
    (
        feature(grid={"axis": []}),
        r"unknown key 'settings.features.grid.axis'; did you mean 'axes'\?",
    ),
    (feature(snr={}), r"unknown key 'settings.features.snr'; did you mean 'snr_db'\?"),
    ({"scenario": {"prb": 1}}, r"unknown key 'settings.scenario.prb'; did you mean 'prbs'\?"),
    ({"scenario": {"prbs": 400}}, r"scenario: prbs=400.*allows 1 to 270 PRBs"),
    (feature(snr_db={"name": ""}), r"snr_db is not mapped; name the feature that holds it$"),
    (feature(channel={"name": "", "axes": []}), r"neither genie_ber nor channel is mapped"),
    (feature(snr_db={"constant": 3}), r"name='snr_db' and a constant; give one of them"),
    (feature(grid={"axes": ["antenna", "symbol"]}), r"features.grid: axes \[antenna, symbol\]"),
    (
        feature(grid={"axes": ["antenna", "symbol", "subcarrier"]}),
        r"features.grid: is complex but its feature is real; add the axis 'part'",
    ),
    (feature(bits={"encoding": "raw"}), r"encoding=raw needs the dtype"),
    (feature(bits={"encoding": "floats"}), r"features.bits.encoding: .*'float_list'"),
    (feature(bits={"dtype": "bit"}), r"dtype='bit': use a NumPy name"),
    (feature(snr_db={"encoding": "text"}), r"snr_db: text is for the name of a channel model"),
    (feature(snr_db={"name": ["a", "b"]}), r"snr_db: is real; name one feature"),
    (feature(grid={"scale": 0}), r"scale=0.*must be finite, not 0"),
    ({"scenario": {"prbs": 1, "first_subcarrier": 3}}, r"subcarriers 3:15 .*the 12 of a record"),
    ({"scenario": {"prbs": 1, "record_subcarriers": 20}}, r"give the sent pilots as pilots.file"),
    ({"rows_per_unit": 0}, r"rows_per_unit=0: set at least 1"),
    ({"compression": "zip"}, r"compression: .*'none', 'gzip' or 'zlib'"),
    ({"pilots": {"data": "d.npy"}}, r"name the file too"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_a_bad_import_configuration_is_one_line(tmp_path, changes, message):
    file = tmp_path / "import.yaml"
    raw = {"task": "receiver.imports", **settings(), **changes}
    if "scenario" in changes:
        raw["scenario"] = settings()["scenario"] | changes["scenario"]
    file.write_text(yaml.safe_dump(raw))
    with pytest.raises(InputError, match=message) as caught:
        load(str(file))
    assert "\n" not in str(caught.value)


def test_the_shipped_import_is_valid():
    config = load(str(ROOT / "configs/receiver/import-tfrecord.yaml"))
    assert config.identity.settings.features.grid.mapped


def test_without_tensorflow_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "records").write_bytes(b"")
    (tmp_path / "others").write_bytes(b"")
    files = {"train": [str(tmp_path / "records")], "evaluation": [str(tmp_path / "others")]}
    tfrecords.tensorflow.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r'pip install "tensorflow==2\.20\.\*"$'):
        import_records(settings(files=files), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reading_a_dataset_does_not_import_tensorflow():
    code = (
        "import sys, distinf.studies.receiver.imports.recipe, distinf.studies.receiver.task\n"
        "assert not any(name.startswith('tensorflow') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
