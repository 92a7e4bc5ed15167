"""TFRecords of random slots, written by TensorFlow, and what an import makes of them."""

import numpy as np

from distinf.studies.receiver.dataset import Dataset
from distinf.studies.receiver.imports.rows import SLOT
from distinf.studies.receiver.imports.tfrecords import tensorflow
from distinf.studies.receiver.pilots import PILOT_SYMBOLS
from distinf.studies.receiver.scenario import ScenarioConfig
from tests.support.runs import merged, same_bits
from tests.support.slots import import_records, settings, slots, stored

SCENARIO = ScenarioConfig(prbs=1, rx_antennas=2, dmrs_types=(1,), dmrs_additional_positions=(0,))
ROWS = {"train": 50, "evaluation": 30}
FILES = {"train": 3, "evaluation": 2}  # over how many files a split is spread


def random_columns(scenario=SCENARIO):
    """Columns of both splits."""
    return {split: slots(scenario, split, count) for split, count in ROWS.items()}


def undisturbed(folder, columns):
    """(records, dataset) of an import that nothing stopped."""
    write(folder / "records", columns)
    import_records(configured(folder / "records"), folder / "dataset")
    return folder / "records", folder / "dataset"


def feature_of(encoding, values):
    """A tf.train.Feature of an array."""
    tf = tensorflow()
    if encoding == "float_list":
        return tf.train.Feature(float_list=tf.train.FloatList(value=np.ravel(values)))
    if encoding == "int64_list":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(values).astype(int)))
    data = {
        "tensor": lambda: tf.io.serialize_tensor(values).numpy(),
        "raw": lambda: np.asarray(values, order="C").tobytes(),
        "text": lambda: str(values).encode(),
    }[encoding]()
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))


def plain(columns, row):
    """Features of a record as tests.support.slots.settings maps them: {name: (encoding, array)}.

    Where pilots are, the record has ones for bits, which an import drops.
    """
    channel = columns["channel"][row]
    data = np.ones(14, bool)
    data[list(PILOT_SYMBOLS[int(columns["dmrs"][row])])] = False
    return {
        "grid": ("float_list", columns["grid"][row].astype(np.float32)),
        "bits": ("int64_list", np.where(data[:, None], columns["raw_bits"][row], 1)),
        "channel": ("float_list", np.stack([channel.real, channel.imag], -1)),
        "snr_db": ("float_list", columns["snr_db"][row]),
        "delay_spread_s": ("float_list", np.float32(columns["delay_spread_ns"][row] * 1e-9)),
    }


def as_complex(columns, row):
    grid = columns["grid"][row].astype(np.float32)
    return (grid[..., 0] + 1j * grid[..., 1]).astype(np.complex64)


def write(folder, columns, features=plain, options=""):
    """The splits over several files each: folder/train-0, …"""
    tf = tensorflow()
    folder.mkdir(exist_ok=True)
    for split, found in columns.items():
        for number, rows in enumerate(np.array_split(np.arange(len(found["grid"])), FILES[split])):
            with tf.io.TFRecordWriter(str(folder / f"{split}-{number}"), options) as file:
                for row in rows:
                    record = {k: feature_of(*v) for k, v in features(found, row).items()}
                    example = tf.train.Example(features=tf.train.Features(feature=record))
                    file.write(example.SerializeToString())
    return folder


def configured(folder, **changes):
    files = {split: [str(folder / f"{split}-*")] for split in ROWS}
    return merged(settings(files=files, rows_per_unit=20), changes)


def rows_of(root, split):
    return Dataset(str(root)).rows(split).columns()


def expected_rows(columns, split):
    """What is stored but for the hash; delays went through seconds in float32."""
    return {k: v for k, v in stored(columns[split], split).items() if k != "delay_spread_ns"}


def check(root, columns):
    for split in ROWS:
        found = rows_of(root, split)
        delays = found.pop("delay_spread_ns")
        np.testing.assert_allclose(delays, columns[split]["delay_spread_ns"], rtol=1e-6)
        assert len(np.unique(found.pop(SLOT))) == ROWS[split]
        assert same_bits(
            dict(sorted(found.items())), dict(sorted(expected_rows(columns, split).items()))
        )


def break_grid(path, number):
    """Put a NaN into a record's grid; the file keeps its size, and its checksums are right."""
    tf = tensorflow()
    size, records = path.stat().st_size, list(tf.data.TFRecordDataset(str(path)))
    records = [record.numpy() for record in records]
    example = tf.train.Example.FromString(records[number])
    example.features.feature["grid"].float_list.value[100] = float("nan")
    records[number] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as file:
        for record in records:
            file.write(record)
    assert path.stat().st_size == size
