"""Pilots of imported slots: tables by pattern, from the standard or from arrays of the user's.

Shapes: D patterns, S = 14 symbols, W subcarriers in a record, F of them kept.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distinf.errors import InputError
from distinf.store.regular import read_given
from distinf.studies.receiver import pilots
from distinf.studies.receiver.imports.mapping import TfrecordImport
from distinf.studies.receiver.pilots import PilotPattern
from distinf.studies.receiver.scenario import SYMBOLS_PER_SLOT


@dataclass(frozen=True)
class PilotTables:
    """sent_DSF: pilots, 0 elsewhere. data_DSF: true at data. record_data_DSW: before the cut."""

    sent_DSF: Tensor  # complex64
    data_DSF: Tensor  # bool
    record_data_DSW: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.sent_DSF)

    def pattern(self, index: int) -> PilotPattern | None:
        """The pattern as symbols times subcarriers; None if its symbols differ in subcarriers."""
        used_SF = self.sent_DSF[index].abs() > 0
        symbols = torch.nonzero(used_SF.any(1)).flatten().tolist()
        first_F = used_SF[symbols[0]]
        if not bool((used_SF[symbols] == first_F).all()):
            return None
        return PilotPattern(0, tuple(symbols), torch.nonzero(first_F).flatten().numpy())


def pilot_tables(config: TfrecordImport) -> PilotTables:
    """The patterns that a row's `dmrs` counts. InputError for arrays that do not fit the slots."""
    slot = config.scenario
    if not config.pilots.file:
        scenario = slot.scenario
        data_DSF = pilots.data_masks(scenario)
        return PilotTables(pilots.pilot_grids(scenario), data_DSF, data_DSF.numpy())
    sent_DSW = _loaded(config.pilots.file, "pilots.file", slot.width)
    if not np.isfinite(sent_DSW).all():
        raise InputError(f"pilots.file: {config.pilots.file} has a non-finite value")
    if config.pilots.data:
        data_DSW = _loaded(config.pilots.data, "pilots.data", slot.width) != 0
        if len(data_DSW) != len(sent_DSW):
            raise InputError(
                f"pilots.data: has {len(data_DSW)} patterns and pilots.file {len(sent_DSW)}; give "
                "one for each"
            )
    else:
        data_DSW = np.repeat((sent_DSW == 0).all(-1, keepdims=True), slot.width, axis=-1)
    for index, (sent_SW, data_SW) in enumerate(zip(sent_DSW, data_DSW)):
        kept_SF, open_SF = sent_SW[:, slot.kept], data_SW[:, slot.kept]
        if not kept_SF.any() or not open_SF.any():
            raise InputError(
                f"pilots.file: pattern {index} leaves no pilots or no data in the slot"
            )
        if (data_SW & (sent_SW != 0)).any():
            raise InputError(f"pilots.data: pattern {index} has data where pilots.file has pilots")
    sent = np.ascontiguousarray(sent_DSW[:, :, slot.kept], dtype=np.complex64)
    kept = np.ascontiguousarray(data_DSW[:, :, slot.kept])
    return PilotTables(torch.from_numpy(sent), torch.from_numpy(kept), data_DSW)


def check_patterns(config: TfrecordImport, tables: PilotTables) -> None:
    """InputError where the mapping needs more of the patterns than they give."""
    features = config.features
    if len(tables) > 1 and not features.dmrs.mapped:
        raise InputError(
            f"features.dmrs: there are {len(tables)} pilot patterns; name the feature with the "
            "index of a record's, or give a constant"
        )
    counts = sorted({int(data.sum()) for data in tables.record_data_DSW})
    if {"data", "coded"} & set(features.bits.axes) and len(counts) > 1:
        raise InputError(
            f"features.bits: patterns with {counts} elements of data differ in length; import one "
            "pattern at a time, or map bits by symbol and subcarrier"
        )
    if config.baseline == "computed" and not features.baseline_ber.mapped:
        odd = [index for index in range(len(tables)) if tables.pattern(index) is None]
        if odd:
            raise InputError(
                f"baseline: pilot pattern {odd[0]} has other subcarriers in each symbol, which the "
                "LS estimate here does not know; set baseline=absent or map baseline_ber"
            )


def _loaded(path: str, key: str, width: int) -> np.ndarray:
    """[D, S, W] of an .npy file."""
    try:
        values = np.load(io.BytesIO(read_given(path)), allow_pickle=False)
    except OSError as error:
        raise InputError(f"{key}: {path}: {error.strerror or error}; give an .npy file") from None
    except (ValueError, EOFError):
        values = None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biufc":
        raise InputError(f"{key}: {path} is no .npy array of numbers; see np.save")
    values = values if values.ndim == 3 else values[None]
    if values.shape[1:] != (SYMBOLS_PER_SLOT, width) or not len(values):
        raise InputError(
            f"{key}: {path} has shape {list(values.shape[1:])}; expected "
            f"[{SYMBOLS_PER_SLOT}, {width}], or one such array for each pattern"
        )
    return values
