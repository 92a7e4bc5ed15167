"""Decoded records to the columns of `link.generate`: laid out, checked, and error rates added.

Shapes: N slots, A receive antennas, S = 14 symbols, W subcarriers in a record, F of them kept,
B bits a symbol, R resource elements with data.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.studies.receiver import detectors
from distinf.studies.receiver.imports.mapping import (
    COMPLEX,
    MAY_BE_UNKNOWN,
    TfrecordImport,
    arrange,
)
from distinf.studies.receiver.imports.pilots import PilotTables
from distinf.studies.receiver.imports.tfrecords import Decoder
from distinf.studies.receiver.scenario import SYMBOLS_PER_SLOT

# Below this root mean square a slot's float16 loses digits: its smallest normal number is 6e-5.
LEAST_RMS = 1e-2
SLOT = "slot_hash"  # stored beside the columns: equal for slots of equal grids


class SlotRows:
    """Records of one split to stored columns; nothing depends on which rows come together."""

    def __init__(self, config: TfrecordImport, tables: PilotTables, split: str):
        self._config = config
        self._tables = tables
        self._split = split
        data = int(tables.record_data_DSW[0].sum())
        self._decode = Decoder(config, data)
        self._sizes = config.sizes(data)

    def columns(self, records: Iterable[tuple[str, int, bytes]]) -> dict[str, np.ndarray]:
        """Columns [N, ...] of the records. InputError naming the first record that is wrong.

        As `link.generate`, with slot_hash uint64 [N] beside them.
        """
        names, decoded = [], []
        for path, number, data in records:
            names.append(f"{path}: record {number}")
            row = self._decode(path, number, data)
            if "bits" in row:  # eight bytes a bit would be most of a unit's memory
                _refuse([not np.isin(row["bits"], (0, 1)).all()], names[-1:], "bits", "0 or 1")
                row["bits"] = row["bits"].astype(np.uint8)
            decoded.append(row)
        stacked = {name: np.stack([row[name] for row in decoded]) for name in decoded[0]}
        rows = self._numbers(stacked, names)
        rows["grid"] = _stored_grid(self._pairs("grid", stacked["grid"]), names)
        received = torch.view_as_complex(torch.from_numpy(rows["grid"]).float())
        bits = self._bits(stacked["bits"], rows["dmrs"])
        rows["bits"] = np.packbits(bits.reshape(len(bits), -1), axis=1)
        if "genie_ber" not in rows:
            pairs = self._pairs("channel", stacked["channel"])
            _refuse(~_finite(pairs), names, "channel", "finite")
            channel = torch.view_as_complex(torch.from_numpy(pairs))
            rows["genie_ber"] = self._error_rate(received, channel, bits, rows["dmrs"])
        if self._split == "evaluation" and "baseline_ber" not in rows:
            if self._config.baseline == "computed":
                estimate = self._estimated(received, rows["dmrs"])
                rows["baseline_ber"] = self._error_rate(received, estimate, bits, rows["dmrs"])
        elif self._split == "train":
            rows.pop("baseline_ber", None)
        rows[SLOT] = np.array([_hash(grid) for grid in rows["grid"]], dtype=np.uint64)
        return dict(sorted(rows.items()))

    def _numbers(
        self, stacked: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Columns of one number a record, from features and constants, each within its range."""
        count, found = len(names), {}
        for column, feature in vars(self._config.features).items():
            if column in (*COMPLEX, "bits", "model"):
                continue
            if column in stacked:
                values = stacked[column].reshape(count).astype(np.float64)
            elif feature.constant is not None:
                values = np.full(count, float(feature.constant))
            elif column in MAY_BE_UNKNOWN:
                values = np.full(count, np.nan)
            elif column == "dmrs":
                values = np.zeros(count)
            else:
                continue
            found[column] = values * feature.scale + feature.offset
        _refuse(~np.isfinite(found["snr_db"]), names, "snr_db", "finite")
        for column in ("genie_ber", "baseline_ber"):
            if column in found:
                inside = (found[column] >= 0) & (found[column] <= 1)
                _refuse(~inside, names, column, "from 0 to 1")
        known = np.isin(found["dmrs"], np.arange(len(self._tables)))
        _refuse(~known, names, "dmrs", f"a pattern's index, 0 to {len(self._tables) - 1}")
        rows = {name: values.astype(np.float32) for name, values in found.items()}
        rows["dmrs"] = found["dmrs"].astype(np.uint8)
        rows["model"] = self._models(stacked.get("model"), names)
        return rows

    def _models(self, values: np.ndarray | None, names: Sequence[str]) -> np.ndarray:
        """uint8 [N], an index into the labels."""
        labels, feature = self._config.labels, self._config.features.model
        if values is None:
            values = np.full(len(names), 0 if feature.constant is None else feature.constant)
        values = values.reshape(len(names))
        if values.dtype.kind == "U":
            _refuse(~np.isin(values, labels), names, "model", f"one of {', '.join(labels)}")
            return np.array([labels.index(name) for name in values], dtype=np.uint8)
        values = values * feature.scale
        _refuse(
            ~np.isin(values, np.arange(len(labels))), names, "model",
            f"an index into the {len(labels)} labels",
        )  # fmt: skip
        return values.astype(np.uint8)

    def _pairs(self, column: str, values: np.ndarray) -> np.ndarray:
        """float32 [N, A, S, F, 2] (real, imaginary) of a grid as it lies in the records."""
        feature = getattr(self._config.features, column)
        axes = feature.axes
        if "part" not in axes:
            values = np.stack([values.real, values.imag], axis=-1)
            axes = (*axes, "part")
        values = arrange(values, axes, ("antenna", "symbol", "subcarrier", "part"))
        values = values[..., self._config.scenario.kept, :]
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused
            return np.ascontiguousarray(values * feature.scale, dtype=np.float32)

    def _bits(self, values: np.ndarray, dmrs: np.ndarray) -> np.ndarray:
        """uint8 [N, B, S, F], 0 where there is no data."""
        slot, axes = self._config.scenario, self._config.features.bits.axes
        if "symbol" in axes:
            bits = arrange(values, axes, ("bit", "symbol", "subcarrier"))[..., slot.kept]
            return bits * self._tables.data_DSF.numpy()[dmrs][:, None]
        if "coded" in axes:  # bit after bit of an element, as a mapper takes them
            values = values.reshape(len(values), -1, slot.bits_per_symbol).transpose(0, 2, 1)
        else:
            values = arrange(values, axes, ("bit", "data"))
        shape = (len(values), slot.bits_per_symbol, SYMBOLS_PER_SLOT, slot.width)
        flat = np.zeros((*shape[:2], shape[2] * shape[3]), dtype=np.uint8)
        for index in np.unique(dmrs):
            rows = np.flatnonzero(dmrs == index)
            places = np.flatnonzero(self._tables.record_data_DSW[index])
            flat[np.ix_(rows, np.arange(slot.bits_per_symbol), places)] = values[rows]
        return flat.reshape(shape)[..., slot.kept]

    def _error_rate(
        self, received: Tensor, channel: Tensor, bits: np.ndarray, dmrs: np.ndarray
    ) -> np.ndarray:
        """float32 [N]: bit error rate of combining with `channel`, over elements with data."""
        rates = np.empty(len(bits), dtype=np.float32)
        for index in np.unique(dmrs):
            rows = np.flatnonzero(dmrs == index)
            data_SF = self._tables.data_DSF[index]
            parts = (received[rows], channel[rows], torch.from_numpy(bits[rows]))
            found = detectors.bit_error_rate(*(part[:, :, data_SF] for part in parts))
            rates[rows] = found.numpy()
        return rates

    def _estimated(self, received: Tensor, dmrs: np.ndarray) -> Tensor:
        """complex64 [N, A, S, F]: the channel by least squares at the pilots, interpolated."""
        estimate = torch.empty_like(received)
        for index in np.unique(dmrs):
            rows = np.flatnonzero(dmrs == index)
            pattern = self._tables.pattern(int(index))
            assert pattern is not None  # refused before
            sent = self._tables.sent_DSF[index]
            unit = torch.where(sent == 0, sent, sent / sent.abs().square().clamp_min(1e-30))
            estimate[rows] = detectors.estimate_channel(received[rows], unit, pattern)
        return estimate


def _stored_grid(pairs: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """float16 of the pairs [N, A, S, F, 2]; InputError for what float16 cannot hold."""
    _refuse(~_finite(pairs), names, "grid", "finite")
    stored = torch.from_numpy(pairs).half().numpy()
    remedy = "within float16: set features.grid.scale so that it is about 1"
    _refuse(~_finite(stored), names, "grid", remedy)
    rms = np.sqrt(2 * np.square(pairs).reshape(len(pairs), -1).mean(1))
    _refuse(rms < LEAST_RMS, names, "grid", f"of RMS {LEAST_RMS:g} or more to keep its digits in "
            "float16: set features.grid.scale so that it is about 1")  # fmt: skip
    return stored


def _finite(values: np.ndarray) -> np.ndarray:
    """bool [N]"""
    return np.isfinite(values).reshape(len(values), -1).all(1)


def _refuse(
    wrong: Sequence[bool] | np.ndarray, names: Sequence[str], column: str, must: str
) -> None:
    """InputError naming the first rows that are wrong."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        more = f" (and {len(rows) - 3} more)" if len(rows) > 3 else ""
        raise InputError(
            f"{', '.join(names[row] for row in rows[:3])}{more}: {column} must be {must}"
        )


def _hash(grid: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(grid.tobytes(), digest_size=8).digest(), "little")
