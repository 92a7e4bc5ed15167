"""Slots over random channels, without a simulator; and an imported dataset of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from distinf.store import open_root
from distinf.studies.receiver import detectors, link, pilots
from distinf.studies.receiver.imports import importing
from distinf.studies.receiver.imports.mapping import TfrecordImport
from distinf.studies.receiver.imports.pilots import pilot_tables
from distinf.studies.receiver.imports.rows import SLOT
from distinf.studies.receiver.imports.tfrecords import SPLITS, Source
from distinf.studies.receiver.scenario import CHANNEL_MODELS, ScenarioConfig


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


def write_dataset(out: Path, rows: Mapping[str, int], **changes: Any) -> dict[str, Any]:
    """An imported dataset of random slots, put together without TFRecords -> its columns."""
    config = build(settings(**{"rows_per_unit": 20, **changes}))
    tables, blobs = pilot_tables(config), open_root(str(out))
    found = {split: slots(config.scenario.scenario, split, rows[split]) for split in SPLITS}
    if config.baseline == "absent":
        found = {
            split: {k: v for k, v in columns.items() if k != "baseline_ber"}
            for split, columns in found.items()
        }
    files = [Source(split, f"{split}-0", 1, rows[split]) for split in SPLITS]
    importing._claim(blobs, {})
    context = importing.context_of(config, tables, files, blobs)
    state = importing.prepare(context, torch.device("cpu"))
    importing.pilots_body(state, importing.units_of("pilots", context)[0], "1-a")
    for unit in importing.units_of("import", context):
        split = unit.job["split"]
        columns = {k: v[unit.start : unit.stop] for k, v in stored(found[split], split).items()}
        columns[SLOT] = np.arange(unit.start, unit.stop, dtype=np.uint64)
        columns[SLOT] += 1_000 * SPLITS.index(split)
        state.commit(unit, "1-a", columns)
    importing.finish(context, blobs)
    return {split: stored(columns, split) for split, columns in found.items()}
