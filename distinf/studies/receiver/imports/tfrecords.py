"""TFRecord files to rows of slots. The one place that imports TensorFlow: on first use, on the CPU.

Shapes: N slots, A receive antennas, S = 14 symbols, F subcarriers, B bits a symbol.
"""

import glob
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import numpy as np

from distinf.errors import InputError, install_command
from distinf.studies.receiver.imports.mapping import Feature, TfrecordImport

SPLITS = ("train", "evaluation")
FRAME_BYTES = 16  # around a record: its length (8), and a checksum (4) of that and of the data
KINDS = {"float_list": np.float32, "int64_list": np.int64}


@dataclass(frozen=True)
class Source:
    """One file of a split; `records` is -1 until they are counted."""

    split: str
    path: str
    bytes: int
    records: int = -1


@lru_cache(maxsize=1)
def tensorflow() -> Any:
    """TensorFlow, without its log and without a GPU. InputError if it is not installed."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(
            f"reading TFRecords needs TensorFlow ({error}): {install_command('tensorflow')}"
        ) from None
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
    tf.config.set_visible_devices([], "GPU")
    tf.get_logger().setLevel("ERROR")
    return tf


def sources(config: TfrecordImport) -> list[Source]:
    """The files of both splits, by pattern and then by name; InputError if a pattern has none."""
    found: dict[str, Source] = {}
    for split in SPLITS:
        patterns: Sequence[str] = getattr(config.files, split)
        if not patterns:
            raise InputError(f"files.{split}: names no files; give at least one pattern")
        for pattern in patterns:
            paths = sorted(os.path.abspath(path) for path in glob.glob(pattern, recursive=True))
            if not paths:
                raise InputError(f"files.{split}: no file matches '{pattern}'; check the path")
            for path in paths:
                if path in found:
                    raise InputError(
                        f"files.{split}: {path} was already matched by files.{found[path].split}; "
                        "a file belongs to one split, once"
                    )
                found[path] = Source(split, path, os.path.getsize(path))
    return list(found.values())


def likely_records(source: Source, compression: str) -> int:
    """How many records a file has if all are as long as its first; at least 1."""
    try:
        with open(source.path, "rb") as file:
            head = file.read(1_024)
        if compression != "none":
            head = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(head, 8)
    except (OSError, zlib.error):  # told when it is counted
        return 1
    return max(1, source.bytes // (int.from_bytes(head[:8], "little") + FRAME_BYTES))


def count(source: Source, compression: str) -> int:
    """Records of a file, each with its checksum verified; InputError if it is damaged or empty."""
    records, size = 0, 0
    for data in _stream(source.path, compression, 0):
        records += 1
        size += len(data) + FRAME_BYTES
    # TensorFlow takes less than a record's head at the end of a file for its end.
    if compression == "none" and size != os.path.getsize(source.path):
        raise InputError(
            f"{source.path}: is truncated after record {records - 1}: {size} of its "
            f"{os.path.getsize(source.path)} bytes are whole records; copy it again"
        )
    if not records:
        raise InputError(f"{source.path}: holds no records; leave it out, or copy it again")
    return records


class Reader:
    """Records of a split by row range; a range that follows the last one goes on reading."""

    def __init__(self, files: Sequence[Source], compression: str):
        self._files = list(files)
        self._compression = compression
        self._at: tuple[str, int] = ("", 0)
        self._open: Iterator[bytes] = iter(())

    def records(self, start: int, stop: int) -> Iterator[tuple[str, int, bytes]]:
        """(path, number in the file from 0, bytes) of rows start:stop."""
        first = 0
        for source in self._files:
            for number in range(max(start - first, 0), min(stop - first, source.records)):
                yield source.path, number, self._next(source, number)
            first += source.records

    def _next(self, source: Source, number: int) -> bytes:
        if self._at != (source.path, number):
            self._open = _stream(source.path, self._compression, number)
        data = next(self._open, None)
        if data is None:
            raise InputError(
                f"{source.path}: ends before record {number} but had {source.records} records when "
                "they were counted; a file must not change during its import"
            )
        self._at = (source.path, number + 1)
        return data


def _stream(path: str, compression: str, start: int) -> Iterator[bytes]:
    """Records of a file from number `start` on."""
    tf = tensorflow()
    kind = "" if compression == "none" else compression.upper()
    dataset = tf.data.TFRecordDataset(path, compression_type=kind)
    number = start
    try:
        for data in dataset.skip(start).as_numpy_iterator():
            yield data
            number += 1
    except tf.errors.OpError as error:
        reason = str(error.message).rpartition("}} ")[2].partition(" [Op:")[0]
        hint = "; is compression right?" if not number else ""
        raise InputError(
            f"{path}: record {number} is truncated or corrupt ({reason}); copy it again{hint}"
        ) from None


class Decoder:
    """Mapped features of one record as checked arrays, by column."""

    def __init__(self, config: TfrecordImport, data_elements: int):
        self._config = config
        self._sizes = config.sizes(data_elements)

    def __call__(self, path: str, number: int, data: bytes) -> dict[str, np.ndarray]:
        """{column: array of its axes}; InputError naming file, record and feature."""
        from google.protobuf.message import DecodeError

        where = f"{path}: record {number}"
        try:
            features = tensorflow().train.Example.FromString(data).features.feature
        except DecodeError:
            raise InputError(f"{where} is not a tf.train.Example") from None
        found = {}
        for column, feature in self._mapped().items():
            parts = []
            for name in feature.names:
                if name not in features:
                    raise InputError(f"{where} has no feature '{name}'{_nearest(name, features)}")
                parts.append(self._array(features[name], feature, f"{where}: feature '{name}'"))
            found[column] = parts[0] if len(parts) == 1 else _joined(*parts)
        return found

    def _mapped(self) -> Mapping[str, Feature]:
        return {
            column: feature
            for column, feature in vars(self._config.features).items()
            if feature.name
        }

    def _array(self, value: Any, feature: Feature, where: str) -> np.ndarray:
        """The array of a feature in the shape of its axes."""
        shape = tuple(self._sizes[axis] for axis in feature.axes)
        kind = value.WhichOneof("kind") or "nothing"
        wanted = feature.encoding if feature.encoding in KINDS else "bytes_list"
        if kind != wanted:
            raise InputError(f"{where} holds {kind}, expected {wanted}; see its encoding")
        values = getattr(value, kind).value
        if wanted != "bytes_list":
            array = np.array(values, dtype=KINDS[kind])
            return _shaped(array, shape, feature, where)
        if len(values) != 1:
            raise InputError(f"{where} holds {len(values)} byte strings, expected 1")
        if feature.encoding == "text":
            return np.array(values[0].decode(errors="replace"))
        if feature.encoding == "raw":
            kind_of = np.dtype(feature.dtype).newbyteorder("<")
            if len(values[0]) % kind_of.itemsize:
                raise InputError(
                    f"{where} has {len(values[0])} bytes, no whole number of {feature.dtype}"
                )
            return _shaped(np.frombuffer(values[0], kind_of), shape, feature, where)
        return _checked(_tensor(values[0], where), shape, feature, where)


def _joined(real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    """Complex, without arithmetic, which would make NaN of infinity."""
    joined = np.empty(real.shape, np.result_type(real, imaginary, np.complex64))
    joined.real, joined.imag = real, imaginary
    return joined


def _tensor(data: bytes, where: str) -> np.ndarray:
    """What tf.io.serialize_tensor wrote."""
    from google.protobuf.message import DecodeError

    tf = tensorflow()
    proto = type(tf.make_tensor_proto(0.0))
    try:
        return tf.make_ndarray(proto.FromString(data))
    except (DecodeError, TypeError, ValueError, KeyError):
        raise InputError(
            f"{where} is not from tf.io.serialize_tensor; set encoding=raw for an array's bytes"
        ) from None


def _shaped(array: np.ndarray, shape: tuple[int, ...], feature: Feature, where: str) -> np.ndarray:
    """A flat array in its shape."""
    if array.size != np.prod(shape, dtype=int):
        product = " x ".join(map(str, shape)) or "1"
        axes = f" ({', '.join(feature.axes)})" if feature.axes else ""
        total = "" if len(shape) < 2 else f" = {np.prod(shape, dtype=int)}"
        raise InputError(f"{where} has {array.size} values, expected {product}{total}{axes}")
    return array.reshape(shape)


def _checked(array: np.ndarray, shape: tuple[int, ...], feature: Feature, where: str) -> np.ndarray:
    """An array that brings its own shape and type."""
    if array.shape != shape:
        axes = f" ({', '.join(feature.axes)})" if feature.axes else ""
        raise InputError(f"{where} has shape {list(array.shape)}, expected {list(shape)}{axes}")
    if feature.dtype and array.dtype != np.dtype(feature.dtype):
        raise InputError(f"{where} has dtype {array.dtype}, expected {feature.dtype}")
    if array.dtype.kind not in "biufc":
        raise InputError(f"{where} has dtype {array.dtype}, expected numbers")
    return array


def _nearest(name: str, features: Mapping[str, Any]) -> str:
    known = sorted(features)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; it has {', '.join(known[:8])}" + (", …" if len(known) > 8 else "")
