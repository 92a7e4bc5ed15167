"""TFRecords that do not fit: one line that names file, record and feature."""

import re

import numpy as np
import pytest

from distinf.errors import InputError
from distinf.store import open_root
from distinf.studies.receiver.imports.tfrecords import tensorflow
from tests.support.records import ROWS, configured, plain, random_columns, undisturbed, write
from tests.support.slots import import_records

pytest.importorskip("tensorflow", reason="importing TFRecords needs distinf[tensorflow]")


@pytest.fixture(scope="module")
def columns():
    return random_columns()


@pytest.fixture(scope="module")
def golden(columns, tmp_path_factory):
    """(records, dataset) of an import that nothing stopped."""
    return undisturbed(tmp_path_factory.mktemp("golden"), columns)


def changed(row=None, **features):
    """Records whose `row` of the evaluation split (None: every row) has other features."""

    def made(columns, number):
        found = plain(columns, number)
        if row is None or (number == row and len(columns["grid"]) == ROWS["evaluation"]):
            found |= features
        return {name: value for name, value in found.items() if value is not None}

    return made


GRID = np.ones((2, 14, 12, 2), np.float32)
WRONG = [
    (
        changed(20, grid=("float_list", GRID[:, :13])),
        {},
        r"evaluation-1: record 5: feature 'grid' has 624 values, expected 2 x 14 x 12 x 2 = 672 "
        r"\(antenna, symbol, subcarrier, part\)",
    ),
    (changed(3, snr_db=None, snr=("float_list", 1.0)), {},
     r"evaluation-0: record 3 has no feature 'snr_db'; did you mean 'snr'\?"),
    (changed(3, snr_db=("int64_list", 1)), {},
     r"record 3: feature 'snr_db' holds int64_list, expected float_list; see its encoding"),
    (changed(3, snr_db=("float_list", np.nan)), {}, r"record 3: snr_db must be finite$"),
    (changed(3, bits=("int64_list", np.full((4, 14, 12), 2))), {}, r"bits must be 0 or 1$"),
    (changed(3, grid=("float_list", GRID * np.inf)), {}, r"record 3: grid must be finite$"),
    (changed(3, grid=("float_list", GRID * 1e6)), {}, r"grid must be within float16: set features"),
    (changed(None, grid=("float_list", GRID * 1e-5)), {}, r"train-0: record 0: grid must be of"),
    (changed(None), {"grid": {"encoding": "tensor"}},
     r"'grid' holds float_list, expected bytes_list"),
    (changed(None, grid=("raw", GRID)), {"grid": {"encoding": "tensor"}},
     r"is not from tf.io.serialize_tensor; set encoding=raw"),
    (changed(None, grid=("tensor", GRID[None])), {"grid": {"encoding": "tensor"}},
     r"'grid' has shape \[1, 2, 14, 12, 2\], expected \[2, 14, 12, 2\]"),
    (changed(None, grid=("tensor", GRID)), {"grid": {"encoding": "tensor", "dtype": "float64"}},
     r"'grid' has dtype float32, expected float64"),
    (changed(None, rate=("float_list", 1.5)), {"genie_ber": {"name": "rate"}},
     r"genie_ber must be from 0 to 1$"),
    (changed(None, p=("int64_list", 1)), {"dmrs": {"name": "p", "encoding": "int64_list"}},
     r"dmrs must be a pattern's index, 0 to 0$"),
    (changed(None, m=("text", "UMi")),
     {"model": {"name": "m", "encoding": "text", "constant": None}}, r"model must be one of TDL-A"),
]  # fmt: skip


@pytest.mark.parametrize(("features", "mapped", "message"), WRONG, ids=[w[2][:45] for w in WRONG])
def test_a_record_that_does_not_fit_is_named(features, mapped, message, columns, tmp_path):
    folder = write(tmp_path / "records", columns, features)
    with pytest.raises(InputError, match=message) as caught:
        import_records(configured(folder, features=mapped), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("ledger/dataset/*"))
    if features.__closure__[1].cell_contents is None:  # every record: nothing is begun
        assert not (tmp_path / "out").exists()


def test_slots_in_both_splits_are_refused(columns, tmp_path):
    shared = {name: values.copy() for name, values in columns["evaluation"].items()}
    for row, twin in ((4, 20), (29, 49)):
        for name, values in columns["train"].items():
            shared[name][row] = values[twin]
    folder = write(tmp_path / "records", {**columns, "evaluation": shared})
    with pytest.raises(InputError) as caught:
        import_records(configured(folder), tmp_path / "out")
    assert re.search(
        r"2 of 30 slots are in the training files too \(\S+evaluation-0: record 4 = "
        r"\S+train-1: record 3; \S+evaluation-1: record 14 = \S+train-2: record 15\)",
        str(caught.value),
    )
    assert not list((tmp_path / "out").glob("ledger/dataset/*"))


def damaged(data, how):
    size = len(data) // 15  # records of a file are all of one size
    return {
        "cut in a record": data[: 3 * size + 100],
        "cut in a head": data[: 3 * size + 3],
        "flipped": data[: 4 * size + 60] + bytes([data[4 * size + 60] ^ 1]) + data[4 * size + 61 :],
        "empty": b"",
        "text": b"not a record at all",
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut in a record", r"record 3 is truncated or corrupt \(truncated record"),
        ("cut in a head", r"is truncated after record 2: \d+ of its \d+ bytes are whole records"),
        ("flipped", r"record 4 is truncated or corrupt \(corrupted record"),
        ("empty", r"holds no records"),
        ("text", r"record 0 is truncated or corrupt .*is compression right\?"),
    ],
)
def test_a_damaged_file_is_refused_before_a_row_is_stored(how, message, golden, tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    for file in golden[0].iterdir():
        (records / file.name).write_bytes(file.read_bytes())
    file = records / "evaluation-1"
    file.write_bytes(damaged(file.read_bytes(), how))
    with pytest.raises(InputError, match=rf"evaluation-1: .*{message}"):
        import_records(configured(records), tmp_path / "out")
    assert not open_root(str(tmp_path / "out")).names("rows.zarr")


def test_a_record_that_is_no_example_is_named(golden, tmp_path):
    path = tmp_path / "train-0"
    with tensorflow().io.TFRecordWriter(str(path)) as file:
        file.write(b"\xff\xff hello")
    config = configured(golden[0], files={"train": [str(path)]})
    with pytest.raises(InputError, match=r"train-0: record 0 is not a tf\.train\.Example$"):
        import_records(config, tmp_path / "out")


def test_patterns_without_files_and_files_in_both_splits_are_refused(golden, tmp_path):
    config = configured(golden[0], files={"train": ["nothing-*.tfrecord"]})
    with pytest.raises(InputError, match=r"train: no file matches '/\S+/nothing-\*.tfrecord'"):
        import_records(config, tmp_path / "out")
    config = configured(golden[0], files={"evaluation": [str(golden[0] / "*-1")]})
    with pytest.raises(InputError, match=r"train-1 was already matched by files.train"):
        import_records(config, tmp_path / "out")
