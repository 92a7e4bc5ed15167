"""TFRecords that TensorFlow wrote, imported in every encoding and with their own pilots."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from distinf.cli import main
from distinf.errors import InputError
from distinf.studies.receiver import pilots
from distinf.studies.receiver.dataset import Dataset
from distinf.studies.receiver.scenario import SUBCARRIERS_PER_PRB
from distinf.tasks.task import build_task
from tests.support.records import (
    ROWS,
    SCENARIO,
    as_complex,
    check,
    configured,
    plain,
    random_columns,
    rows_of,
    undisturbed,
    write,
)
from tests.support.runs import ROOT
from tests.support.slots import import_records, settings, slots

pytest.importorskip("tensorflow", reason="importing TFRecords needs distinf[tensorflow]")


@pytest.fixture(scope="module")
def columns():
    return random_columns()


@pytest.fixture(scope="module")
def golden(columns, tmp_path_factory):
    """(records, dataset) of an import that nothing stopped."""
    return undisturbed(tmp_path_factory.mktemp("golden"), columns)


def test_lists_become_the_columns_that_the_link_makes(golden, columns):
    check(golden[1], columns)
    facts = Dataset(str(golden[1])).facts
    assert facts["rows"] == ROWS
    assert [source["records"] for source in facts["sources"]] == [17, 17, 16, 15, 15]


def in_tensors(columns, row):
    """As a Sionna link has them: singleton dimensions, complex64, bits as the mapper takes them."""
    mask = pilots.data_masks(SCENARIO)[0].numpy()
    codeword = columns["raw_bits"][row][:, mask].T.reshape(1, 1, -1)
    return {
        **plain(columns, row),
        "grid": ("tensor", as_complex(columns, row)[None]),
        "bits": ("tensor", codeword.astype(np.float32)),
        "channel": ("tensor", columns["channel"][row][None, :, None, None]),
        "snr_db": ("tensor", columns["snr_db"][row : row + 1].astype(np.float64)),
    }


TENSORS = {
    "grid": {"encoding": "tensor", "axes": ["one", "antenna", "symbol", "subcarrier"]},
    "bits": {"encoding": "tensor", "axes": ["one", "one", "coded"]},
    "channel": {
        "encoding": "tensor", "axes": ["one", "antenna", "one", "one", "symbol", "subcarrier"],
    },
    "snr_db": {"encoding": "tensor", "axes": ["one"]},
}  # fmt: skip


def in_bytes(columns, row):
    """Raw bytes in another order of axes, louder, with the genie-aided rate and a model by name."""
    mask = pilots.data_masks(SCENARIO)[0].numpy()
    return {
        **plain(columns, row),
        "grid": ("raw", 4 * as_complex(columns, row).transpose(1, 2, 0)),
        "bits": ("raw", columns["raw_bits"][row][:, mask].T),
        "rate": ("float_list", columns["genie_ber"][row]),
        "model": ("text", "TDL-C"),
    }


BYTES = {
    "grid": {
        "encoding": "raw", "dtype": "complex64", "axes": ["symbol", "subcarrier", "antenna"],
        "scale": 0.25,
    },
    "bits": {"encoding": "raw", "dtype": "uint8", "axes": ["data", "bit"]},
    "channel": {"name": "", "axes": []},
    "genie_ber": {"name": "rate"},
    "model": {"name": "model", "encoding": "text", "constant": None},
}  # fmt: skip


def in_two_features(columns, row):
    grid = as_complex(columns, row)
    return {
        **plain(columns, row),
        "real": ("float_list", grid.real),
        "imaginary": ("float_list", grid.imag),
        "model": ("int64_list", columns["model"][row]),
    }


TWO = {
    "grid": {"name": ["real", "imaginary"], "axes": ["antenna", "symbol", "subcarrier"]},
    "model": {"name": "model", "encoding": "int64_list", "constant": None},
}


@pytest.mark.parametrize(
    ("features", "mapped", "compression"),
    [
        (in_tensors, TENSORS, "none"),
        (in_bytes, BYTES, "gzip"),
        (in_two_features, TWO, "zlib"),
    ],
)
def test_every_encoding_gives_the_same_rows(features, mapped, compression, columns, tmp_path):
    options = "" if compression == "none" else compression.upper()
    folder = write(tmp_path / "records", columns, features, options)
    config = configured(folder, features=mapped, compression=compression)
    import_records(config, tmp_path / "dataset")
    check(tmp_path / "dataset", columns)
    mean = columns["evaluation"]["baseline_ber"].mean()
    facts = Dataset(str(tmp_path / "dataset")).facts
    assert facts["rates"]["evaluation"]["baseline_ber"] == pytest.approx(mean)


def test_a_wider_grid_with_pilots_of_its_own_is_cut_to_whole_prbs(columns, tmp_path):
    """15 subcarriers, one PRB from the third on; pilots, sent louder, and data are the user's."""
    width, first = 15, 2
    kept = slice(first, first + SUBCARRIERS_PER_PRB)
    rng = np.random.default_rng(3)
    sent, data = np.zeros((2, 14, width), complex), np.zeros((2, 14, width), bool)
    sent[0][:, kept], sent[1][5, ::3] = 2 * pilots.pilot_grids(SCENARIO)[0].numpy(), 2.0
    gain = np.where(sent[0][:, kept] == 0, 1, 2).astype(np.float16)[..., None]
    louder = {k: {**found, "grid": found["grid"] * gain} for k, found in columns.items()}
    data[0][:, kept] = pilots.data_masks(SCENARIO)[0].numpy()
    data[0][4, 0] = True  # outside of what is kept: its bits are dropped
    data[1] = data[0]
    data[1][5] = False
    data[1][2, 3] = True
    np.save(tmp_path / "pilots.npy", sent)
    np.save(tmp_path / "data.npy", data)

    def features(columns, row):
        grid = rng.standard_normal((2, 14, width, 2)).astype(np.float32)
        grid[:, :, kept] = columns["grid"][row]
        channel = np.ones((2, 14, width, 2), np.float32)
        channel[:, :, kept] = plain(columns, row)["channel"][1]
        bits = np.ones((4, 14, width), int)
        bits[:, :, kept] = columns["raw_bits"][row]
        changes = {"grid": grid, "channel": channel}
        return {
            **plain(columns, row),
            **{name: ("float_list", values) for name, values in changes.items()},
            "bits": ("int64_list", bits[:, data[0]]),
            "pattern": ("int64_list", 0),
        }

    mapped = {
        "bits": {"axes": ["bit", "data"]},
        "dmrs": {"name": "pattern", "encoding": "int64_list"},
    }
    changes = {
        "scenario": {"record_subcarriers": width, "first_subcarrier": first},
        "features": mapped,
    }
    folder = write(tmp_path / "records", louder, features)
    only = {"pilots": {"file": str(tmp_path / "pilots.npy"), "data": str(tmp_path / "data.npy")}}
    with pytest.raises(InputError, match=r"bits: patterns with \[.*\] elements of data differ"):
        import_records(configured(folder, **changes, **only), tmp_path / "two")
    np.save(tmp_path / "pilots.npy", sent[:1])
    np.save(tmp_path / "data.npy", data[:1])
    config = configured(folder, **changes, **only)
    import_records(config, tmp_path / "dataset")
    check(tmp_path / "dataset", louder)


def test_every_row_has_the_pilots_that_its_record_names(tmp_path):
    """One and two pilot symbols in turn, among the scenario's two patterns."""
    both = replace(SCENARIO, dmrs_additional_positions=(0, 1))
    columns = {}
    for split, count in ROWS.items():
        one, two = (
            slots(replace(SCENARIO, dmrs_additional_positions=(added,)), split, count)
            for added in (0, 1)
        )
        second = np.arange(count) % 2 == 1
        columns[split] = one | {
            name: np.where(second.reshape(-1, *[1] * (values.ndim - 1)), two[name], values)
            for name, values in one.items()
        }
        columns[split]["dmrs"] = second.astype(np.uint8)

    def features(found, row):
        return {**plain(found, row), "pattern": ("int64_list", found["dmrs"][row])}

    folder = write(tmp_path / "records", columns, features)
    scenario = {"dmrs_additional_positions": [0, 1]}
    with pytest.raises(InputError, match=r"features.dmrs: there are 2 pilot patterns; name the"):
        import_records(configured(folder, scenario=scenario), tmp_path / "none")
    mapped = {"dmrs": {"name": "pattern", "encoding": "int64_list"}}
    config = configured(folder, scenario=scenario, features=mapped)
    import_records(config, tmp_path / "dataset")
    check(tmp_path / "dataset", columns)
    sent_DSF, data_DSF = Dataset(str(tmp_path / "dataset")).pilot_tables
    assert torch.equal(sent_DSF, pilots.pilot_grids(both))
    assert torch.equal(data_DSF, pilots.data_masks(both))


def test_bits_by_element_go_where_the_record_s_own_pattern_has_data(columns, tmp_path):
    """Two patterns with as many elements of data, elsewhere."""
    sent = np.zeros((2, 14, 12), complex)
    sent[0, 2], sent[1, 7] = 1, 1
    np.save(tmp_path / "pilots.npy", sent)
    data = sent == 0
    sent_bits = np.random.default_rng(0).integers(2, size=(ROWS["train"], 4, 14, 12))

    def features(found, row):
        return {
            **plain(found, row),
            "bits": ("int64_list", sent_bits[row][:, data[row % 2]]),
            "pattern": ("int64_list", row % 2),
        }

    mapped = {
        "bits": {"axes": ["bit", "data"]},
        "dmrs": {"name": "pattern", "encoding": "int64_list"},
    }
    config = configured(
        write(tmp_path / "records", columns, features),
        features=mapped,
        pilots={"file": str(tmp_path / "pilots.npy")},
    )
    import_records(config, tmp_path / "dataset")
    found = np.unpackbits(rows_of(tmp_path / "dataset", "train")["bits"], axis=1)
    expected = sent_bits * data[np.arange(ROWS["train"]) % 2][:, None]
    assert np.array_equal(found[:, : expected[0].size], expected.reshape(ROWS["train"], -1))


def test_the_command_shows_what_it_made_and_the_task_reads_it(golden, columns, tmp_path, capsys):
    file, out = tmp_path / "import.yaml", tmp_path / "dataset"
    files = {split: [str(golden[0] / f"{split}-*")] for split in ROWS}
    raw = {"task": "receiver.imports", "runtime": {"kind": "local"}, **settings(files=files)}
    file.write_text(yaml.safe_dump(raw))
    assert main(["run", str(file), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "train: 50 slots, mean genie_ber 0." in shown.out
    assert "baseline_ber" in shown.out
    assert f"--set settings.dataset={out}" in shown.out
    assert "done import records" in shown.err
    made = build_task("receiver", {"dataset": str(out), "scenario": {"prbs": 1}}, seed=0)
    batch = made.batch("train", np.array([40, 2]))
    bits = torch.from_numpy(columns["train"]["raw_bits"][[40, 2]])
    assert torch.equal(batch["bits"], bits)
    assert torch.equal(batch["mask"], pilots.data_masks(SCENARIO)[[0, 0]])


def test_the_sample_of_the_docs_is_imported_and_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "docs/sample/import.yaml", "--out", "data/sample"]) == 0
    assert "train: 48 slots" in capsys.readouterr().out
    found = rows_of("data/sample", "evaluation")
    assert len(found["snr_db"]) == 16
    assert (found["genie_ber"] <= found["baseline_ber"]).mean() > 0.5
    assert main(["run", "docs/sample/sample.yaml", "--set", "runtime.kind=local"]) == 0
