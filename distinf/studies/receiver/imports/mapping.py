"""The configuration of an import: where in a record each column of a slot is, and how it lies.

Columns are those that `link.generate` makes; `channel` is the true one, used for the genie-aided
error rate and not stored.

Shapes: N slots, A receive antennas, S = 14 symbols, W subcarriers in a record, F of them kept,
B bits a symbol, D pilot patterns, R resource elements with data.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np

from distinf.studies.receiver.scenario import CHANNEL_MODELS, SYMBOLS_PER_SLOT, ScenarioConfig

# The orders in which a column may lie, each dimension once; "one" may be anywhere.
LAYOUTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "grid": [("antenna", "symbol", "subcarrier"), ("antenna", "symbol", "subcarrier", "part")],
    "channel": [("antenna", "symbol", "subcarrier"), ("antenna", "symbol", "subcarrier", "part")],
    "bits": [("bit", "symbol", "subcarrier"), ("bit", "data"), ("coded",)],
}
COMPLEX = ("grid", "channel")
MAY_BE_UNKNOWN = ("delay_spread_ns", "doppler_hz")  # stored as NaN where nothing is mapped
UNKNOWN_MODEL = ("unknown",)


@dataclass(frozen=True)
class Feature:
    """One column: a feature of the tf.train.Example, two of them, or a constant. Empty: not mapped.

    name      the feature's key, or the two keys of [real, imaginary]
    constant  the same value for every record, instead of a name
    encoding  float_list, int64_list, tensor (tf.io.serialize_tensor), raw (the array's bytes,
              C order, little-endian), or text (a channel model's name)
    dtype     of raw bytes: complex64, float32, uint8, ...
    axes      its dimensions in their order: antenna, symbol, subcarrier; bit; part (real,
              imaginary); data (elements with data, symbol by symbol); coded (data times bit, as
              in a codeword); one (a dimension of size 1)
    scale, offset  stored is value * scale + offset
    labels    of `model`: what an index means
    """

    name: str | tuple[str, str] = ""
    constant: float | str | None = None
    encoding: Literal["float_list", "int64_list", "tensor", "raw", "text"] = "float_list"
    dtype: str = ""
    axes: tuple[str, ...] = ()
    scale: float = 1.0
    offset: float = 0.0
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name and self.constant is not None:
            raise ValueError(f"name={self.name!r} and a constant; give one of them")
        if not np.isfinite([self.scale, self.offset]).all() or self.scale == 0:
            raise ValueError(f"scale={self.scale:g}, offset={self.offset:g}: must be finite, not 0")
        if self.encoding == "raw" and not self.dtype:
            raise ValueError("encoding=raw needs the dtype of its bytes, such as complex64")
        if self.dtype and not _is_numeric(self.dtype):
            raise ValueError(f"dtype={self.dtype!r}: use a NumPy name such as complex64 or uint8")

    @property
    def mapped(self) -> bool:
        return bool(self.name) or self.constant is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Keys to read from a record."""
        if not self.name:
            return ()
        return (self.name,) if isinstance(self.name, str) else self.name


@dataclass(frozen=True)
class Features:
    """Our columns. Needed: grid, bits, snr_db, and genie_ber or the channel to compute it from."""

    grid: Feature = field(default_factory=Feature)
    bits: Feature = field(default_factory=Feature)
    channel: Feature = field(default_factory=Feature)
    snr_db: Feature = field(default_factory=Feature)
    delay_spread_ns: Feature = field(default_factory=Feature)
    doppler_hz: Feature = field(default_factory=Feature)
    model: Feature = field(default_factory=Feature)
    dmrs: Feature = field(default_factory=Feature)
    genie_ber: Feature = field(default_factory=Feature)
    baseline_ber: Feature = field(default_factory=Feature)

    def __post_init__(self) -> None:
        for name in ("grid", "bits", "snr_db"):
            if not getattr(self, name).mapped:
                raise ValueError(f"{name} is not mapped; name the feature that holds it")
        if not self.genie_ber.mapped and not self.channel.mapped:
            raise ValueError(
                "neither genie_ber nor channel is mapped; name the feature of the genie-aided bit "
                "error rate, or that of the true channel to compute it from"
            )
        for column in fields(self):
            _check_feature(column.name, getattr(self, column.name))


@dataclass(frozen=True)
class SlotShape:
    """What a slot is, in the words of a run's `settings.scenario`.

    prbs                       12 subcarriers each
    rx_antennas                receive antennas
    bits_per_symbol            4 is 16-QAM
    carrier_hz                 in Hz
    subcarrier_spacing_khz     in kHz
    dmrs_types                 configuration types of TS 38.211 section 6.4.1.1
    dmrs_additional_positions  of pilot symbols, beside the first
    record_subcarriers, first_subcarrier  where a record's grid is wider than prbs x 12 (guard
        carriers, an FFT size): its width, and the first subcarrier to keep
    """

    prbs: int
    rx_antennas: int
    bits_per_symbol: int
    carrier_hz: float = 4e9
    subcarrier_spacing_khz: int = 15
    dmrs_types: tuple[int, ...] = (1,)
    dmrs_additional_positions: tuple[int, ...] = (0,)
    record_subcarriers: int = 0
    first_subcarrier: int = 0

    def __post_init__(self) -> None:
        last = self.first_subcarrier + self.scenario.subcarriers
        if self.first_subcarrier < 0 or last > self.width:
            raise ValueError(
                f"subcarriers {self.first_subcarrier}:{last} ({self.prbs} PRBs) do not lie within "
                f"the {self.width} of a record; set record_subcarriers, first_subcarrier or prbs"
            )

    @property
    def scenario(self) -> ScenarioConfig:
        """The same slot as a scenario; what it says of channels is not used."""
        return ScenarioConfig(
            prbs=self.prbs,
            rx_antennas=self.rx_antennas,
            bits_per_symbol=self.bits_per_symbol,
            carrier_hz=self.carrier_hz,
            subcarrier_spacing_khz=self.subcarrier_spacing_khz,
            dmrs_types=self.dmrs_types,
            dmrs_additional_positions=self.dmrs_additional_positions,
        )

    @property
    def width(self) -> int:
        """W: subcarriers in a record."""
        return self.record_subcarriers or self.scenario.subcarriers

    @property
    def kept(self) -> slice:
        return slice(self.first_subcarrier, self.first_subcarrier + self.scenario.subcarriers)


@dataclass(frozen=True)
class Pilots:
    """Which pilots were sent; without a file, those of the scenario's DMRS patterns (cell 0).

    file  .npy of the sent pilots, complex [S, W] or [D, S, W], 0 where there is none
    data  .npy, true where an element carries data (default: every symbol without pilots)
    """

    file: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        if self.data and not self.file:
            raise ValueError("data says where data are beside pilots of a file; name the file too")
        for name in ("file", "data"):
            if getattr(self, name):
                object.__setattr__(self, name, os.path.abspath(getattr(self, name)))


@dataclass(frozen=True)
class Files:
    """Patterns (glob) of each split's TFRecord files. Rows keep the order of patterns and names.

    train, evaluation  one or more
    """

    train: tuple[str, ...]
    evaluation: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("train", "evaluation"):  # workers start in folders of their own
            patterns = tuple(map(os.path.abspath, getattr(self, name)))
            object.__setattr__(self, name, patterns)


@dataclass(frozen=True)
class TfrecordImport:
    """Which records are imported, and what is in them (docs/tfrecords.md).

    compression    of the files
    baseline       computed (LS channel estimate at the pilots, then LMMSE) or absent, where no
                   feature is mapped to baseline_ber
    rows_per_unit  rows that are stored, and lost by a kill, together
    chunk_rows     rows of one stored chunk, the least that is read at once
    """

    files: Files
    scenario: SlotShape
    features: Features
    pilots: Pilots = field(default_factory=Pilots)
    compression: Literal["none", "gzip", "zlib"] = "none"
    baseline: Literal["computed", "absent"] = "computed"
    rows_per_unit: int = 960
    chunk_rows: int = 24

    def __post_init__(self) -> None:
        for name in ("rows_per_unit", "chunk_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: set at least 1")
        if self.scenario.record_subcarriers and not self.pilots.file:
            raise ValueError(
                "scenario.record_subcarriers: the standard's pilots fill whole PRBs; give the sent "
                "pilots as pilots.file"
            )
        for name in LAYOUTS:
            feature = getattr(self.features, name)
            if feature.mapped:
                _check_axes(name, feature, self.scenario)

    def sizes(self, data: int) -> dict[str, int]:
        """Sizes of the named dimensions, with `data` elements that carry data."""
        bits = self.scenario.bits_per_symbol
        return {
            "antenna": self.scenario.rx_antennas, "symbol": SYMBOLS_PER_SLOT,
            "subcarrier": self.scenario.width, "bit": bits, "part": 2, "data": data,
            "coded": data * bits, "one": 1,
        }  # fmt: skip

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the channel models, by the index that is stored."""
        model = self.features.model
        if not model.mapped:
            return UNKNOWN_MODEL
        if isinstance(model.constant, str) and model.constant not in CHANNEL_MODELS:
            return model.labels or (model.constant,)
        return model.labels or CHANNEL_MODELS


def arrange(values: np.ndarray, axes: Sequence[str], order: Sequence[str]) -> np.ndarray:
    """[N, *axes] -> [N, *order]; "one" goes, what is missing comes in with size 1."""
    kept = [axis for axis in axes if axis != "one"]
    sides = [side for axis, side in zip(axes, values.shape[1:]) if axis != "one"]
    missing = [axis for axis in order if axis not in kept]
    values = values.reshape(len(values), *sides, *[1] * len(missing))
    places = [1 + [*kept, *missing].index(axis) for axis in order]
    return values.transpose(0, *places)


def _is_numeric(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "biufc"
    except TypeError:
        return False


def _check_feature(column: str, feature: Feature) -> None:
    if column in LAYOUTS:
        if feature.constant is not None:
            raise ValueError(f"{column}: a constant {column} makes no sense; name its feature")
    elif feature.axes and set(feature.axes) != {"one"}:
        raise ValueError(f"{column}: is one number a record; its axes can only be 'one'")
    elif not isinstance(feature.name, str):
        raise ValueError(f"{column}: is real; name one feature")
    if isinstance(feature.name, tuple) and column not in COMPLEX:
        raise ValueError(f"{column}: is real; name one feature")
    if feature.offset and (column in LAYOUTS or column in ("model", "dmrs")):
        raise ValueError(f"{column}: takes no offset")
    text = feature.encoding == "text" or isinstance(feature.constant, str)
    if text and column != "model":
        raise ValueError(f"{column}: text is for the name of a channel model; give numbers")


def _check_axes(column: str, feature: Feature, shape: SlotShape) -> None:
    """ValueError unless the axes are one of the column's layouts, in any order."""
    given = [axis for axis in feature.axes if axis != "one"]
    optional = {"antenna"} if shape.rx_antennas == 1 else set()
    for layout in LAYOUTS[column]:
        if len(set(given)) == len(given) and set(layout) - optional <= set(given) <= set(layout):
            break
    else:
        known = " or ".join(f"[{', '.join(layout)}]" for layout in LAYOUTS[column])
        raise ValueError(
            f"features.{column}: axes [{', '.join(feature.axes)}] do not describe it; give {known} "
            "in the record's order"
        )
    if isinstance(feature.name, tuple) and "part" in given:
        raise ValueError(f"features.{column}: two features are its parts; drop the axis 'part'")
    if column in COMPLEX and isinstance(feature.name, str) and "part" not in given:
        real = feature.encoding in ("float_list", "int64_list")
        if real or (feature.dtype and np.dtype(feature.dtype).kind != "c"):
            raise ValueError(
                f"features.{column}: is complex but its feature is real; add the axis 'part', or "
                "name two features [real, imaginary]"
            )
