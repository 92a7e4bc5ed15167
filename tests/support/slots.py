"""Slots over random channels, without a simulator; and an imported dataset of them."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from pydantic import TypeAdapter

from distinf.config import resolve
from distinf.engine.run import execute
from distinf.engine.session import Session
from distinf.studies.receiver import detectors, link, pilots
from distinf.studies.receiver.imports import recipe
from distinf.studies.receiver.imports.mapping import TfrecordImport
from distinf.studies.receiver.imports.rows import SLOT
from distinf.studies.receiver.imports.tfrecords import SPLITS, Source
from distinf.studies.receiver.scenario import CHANNEL_MODELS, ScenarioConfig
from tests.support.runs import silent


def settings(**changes: Any) -> dict[str, Any]:
    """The keys of an import of one-PRB slots, whose features have the names of our columns."""
    return {
        "files": {"train": ["train-*"], "evaluation": ["evaluation-*"]},
        "scenario": {"prbs": 1, "rx_antennas": 2, "bits_per_symbol": 4},
        "features": {
            "grid": {"name": "grid", "axes": ["antenna", "symbol", "subcarrier", "part"]},
            "bits": {
                "name": "bits", "encoding": "int64_list", "axes": ["bit", "symbol", "subcarrier"],
            },
            "channel": {"name": "channel", "axes": ["antenna", "symbol", "subcarrier", "part"]},
            "snr_db": {"name": "snr_db"},
            "delay_spread_ns": {"name": "delay_spread_s", "scale": 1e9},
            "model": {"constant": "TDL-C"},
        },
        **changes,
    }  # fmt: skip


def build(raw: Mapping[str, Any]) -> TfrecordImport:
    return TypeAdapter(TfrecordImport).validate_python(raw)


def slots(scenario: ScenarioConfig, split: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns as `link.generate` makes them, and `channel` complex64 [N, A, S, F], `raw_bits`.

    One pilot pattern (the scenario's first); the channel is smooth over the slot.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    shape = (count, scenario.rx_antennas, 14, scenario.subcarriers)
    ends = rng.standard_normal((2, 2, *shape[:2], 1, 1)) / 2**0.5
    slope = np.linspace(0, 0.4, 14)[:, None] + np.linspace(0, 0.4, scenario.subcarriers)
    parts = ends[0] * (1 - slope) + ends[1] * slope
    channel = torch.from_numpy((parts[0] + 1j * parts[1]).astype(np.complex64))
    snr_db = rng.uniform(0, 10, count).astype(np.float32)
    bits, sent = link.transmit(scenario, 0, count, rng)
    grid = torch.cat(
        [link.receive(s[None], h[None], snr, rng) for s, h, snr in zip(sent, channel, snr_db)]
    )
    received = torch.view_as_complex(grid.float())
    pattern = pilots.patterns(scenario)[0]
    estimate = detectors.estimate_channel(received, pilots.pilot_grids(scenario)[0], pattern)
    at = pattern.data_symbols
    rates = [
        detectors.bit_error_rate(received[:, :, at], h[:, :, at], bits[:, :, at]).numpy()
        for h in (channel, estimate)
    ]
    return {
        "grid": grid.numpy(),
        "bits": np.packbits(bits.flatten(1).numpy(), axis=1),
        "snr_db": snr_db,
        "delay_spread_ns": np.float32(rng.uniform(10, 300, count)),
        "doppler_hz": np.full(count, np.nan, dtype=np.float32),
        "model": np.full(count, CHANNEL_MODELS.index("TDL-C"), dtype=np.uint8),
        "dmrs": np.zeros(count, dtype=np.uint8),
        "genie_ber": rates[0],
        "baseline_ber": rates[1],
        "channel": channel.numpy(),
        "raw_bits": bits.numpy(),
    }


def stored(columns: Mapping[str, np.ndarray], split: str) -> dict[str, np.ndarray]:
    """What a dataset holds of `slots`."""
    left_out = {"channel", "raw_bits"} | ({"baseline_ber"} if split == "train" else set())
    return {name: values for name, values in columns.items() if name not in left_out}


def import_records(
    raw: Mapping[str, Any], out: Path | str, watch: Any = silent, **more: Any
) -> Session:
    """Carry an import of these settings out, as `distinf run` does -> its session."""
    runtime = {"kind": "local", "dashboard": False, **more}
    config = {"task": "receiver.imports", "settings": raw, "runtime": runtime, "out": str(out)}
    return execute(resolve(config), watch)


class Stored:
    """In place of what reads and decodes records: the rows as they are."""

    def __init__(self, columns: Mapping[str, Mapping[str, np.ndarray]]):
        self._columns = columns

    def count(self, source: Source, compression: str) -> int:
        return len(self._columns[source.split]["grid"])

    def reader(self, files: Any, compression: str) -> Any:
        return SimpleNamespace(records=range)

    def rows(self, config: Any, tables: Any, split: str) -> Any:
        return SimpleNamespace(columns=lambda ids: self._rows(split, np.array(ids)))

    def _rows(self, split: str, ids: np.ndarray) -> dict[str, np.ndarray]:
        hashes = (ids + 1_000 * SPLITS.index(split)).astype(np.uint64)
        return {**{k: v[ids] for k, v in self._columns[split].items()}, SLOT: hashes}


def write_dataset(out: Path, rows: Mapping[str, int], **changes: Any) -> dict[str, Any]:
    """An imported dataset of random slots, put together without TFRecords -> its columns."""
    records = out.parent / f"{out.name}-records"
    records.mkdir(parents=True)
    for split in SPLITS:
        (records / f"{split}-0").write_bytes(b"")
    files = {split: [str(records / f"{split}-*")] for split in SPLITS}
    raw = settings(**{"rows_per_unit": 20, "files": files, **changes})
    scenario = build(raw).scenario.scenario
    found = {split: stored(slots(scenario, split, rows[split]), split) for split in SPLITS}
    if raw.get("baseline") == "absent":
        found["evaluation"].pop("baseline_ber")
    with without_records(found):
        import_records(raw, out)
    return found


def without_records(columns: Mapping[str, Mapping[str, np.ndarray]]) -> Any:
    """While it lasts, an import takes these rows, whatever is in its files."""
    given = Stored(columns)
    names = {"tensorflow": lambda: None, "count": given.count}
    return patch.multiple(recipe, **names, Reader=given.reader, SlotRows=given.rows)
