"""The receiver study as a task: generated or imported slots, DeepRx, its losses and error rates.

Shapes: N slots, A receive antennas, C = 2(2A + 1) channels, S = 14 symbols, F subcarriers, B bits
a symbol.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from distinf.digest import sha256
from distinf.numerics.randomness import number, uniform
from distinf.store import Rows
from distinf.studies.receiver import losses, pilots
from distinf.studies.receiver.capacity import capacity_gap
from distinf.studies.receiver.dataset import Dataset
from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig, deeprx_inputs
from distinf.studies.receiver.lamb import Lamb
from distinf.studies.receiver.scenario import CHANNEL_MODELS, SYMBOLS_PER_SLOT, ScenarioConfig
from distinf.studies.receiver.wording import BASELINES, IMPORTED, OF_GENERATED, TRUST, WORDING
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import RowSource, Wording

Batch = dict[str, Tensor]

# Stored columns that a batch and an evaluation pass through as they are.
CONDITIONS = ("snr_db", "delay_spread_ns", "doppler_hz", "model", "genie_ber")
# Settings that change neither a slot nor how many there are.
NOT_DATA = ("frames_per_unit",)


@dataclass(frozen=True)
class ReceiverSettings:
    """The scenario, the network, and the training loss of a receiver run.

    loss_weight      of a slot: log2(1 + SNR) (see losses.CapacityBce), or none
    loss_units       of the training loss: nats or bits
    ber_temperature  of the smooth bit error rate
    trust_ratio      LAMB's, of matrices and kernels alone (it is 1 for biases and scales), or of
                     all tensors
    dataset          a folder or URL of imported slots (docs/tfrecords.md) to use instead of
                     generated ones; the scenario then says what a slot looks like, and nothing of
                     channels or how many there are
    """

    scenario: ScenarioConfig = field(default_factory=ScenarioConfig)
    model: DeepRxConfig = field(default_factory=DeepRxConfig)
    loss_weight: Literal["log2snr", "none"] = "log2snr"
    loss_units: Literal["nats", "bits"] = "nats"
    ber_temperature: float = 1.0
    trust_ratio: Literal["matrices", "all"] = "matrices"
    dataset: str = ""

    def __post_init__(self) -> None:
        if self.dataset and "://" not in self.dataset:  # workers start in folders of their own
            object.__setattr__(self, "dataset", os.path.abspath(self.dataset))
        if self.loss_weight not in ("log2snr", "none"):
            raise ValueError(f"loss_weight={self.loss_weight!r}: use 'log2snr' or 'none'")
        if self.loss_units not in ("nats", "bits"):
            raise ValueError(f"loss_units={self.loss_units!r}: use 'nats' or 'bits'")
        if self.ber_temperature <= 0:
            raise ValueError(f"ber_temperature={self.ber_temperature}: must be above 0")


class ReceiverTask(ABC):
    """DeepRx on slots that are read from `attach`ed rows; where they come from is the subclass's.

    A batch: inputs float32 [N, C, S, F] channels_last, bits uint8 [N, B, S, F], mask bool
    [N, S, F] (true at data), and float32 [N] snr_db, delay_spread_ns, doppler_hz, model (an index
    into labels["model"]), genie_ber and, for the evaluation split, baseline_ber
    and (of generated slots) lmmse_ber.
    """

    metric = "ber"
    reference = "genie_ber"
    axis = "snr_db"
    conditions = ("snr_db", "delay_spread_ns", "doppler_hz", "model")  # of a frame, its slots alike
    part_axes = ("symbol", "subcarrier")
    criteria = MappingProxyType({"capacity": capacity_gap})

    def __init__(self, settings: ReceiverSettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.losses = {
            "bce": losses.CapacityBce(settings.loss_weight, settings.loss_units),
            "ber": losses.SmoothBer(settings.ber_temperature),
        }
        self._sources: dict[str, RowSource] = {}

    def model(self) -> nn.Module:
        """DeepRx with weights that depend on the seed alone; torch's own generator is untouched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number(self.seed, "receiver model"))
            return self._build()

    @property
    def wording(self) -> Wording:
        own = (TRUST,) if self.settings.trust_ratio == "matrices" else ()
        return replace(WORDING, deviations=(*WORDING.deviations, *own))

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        return {"model": CHANNEL_MODELS}

    @abstractmethod
    def rows(self, split: str) -> int:
        """How many slots the split has."""

    @abstractmethod
    def pilot_tables(self) -> tuple[Tensor, Tensor]:
        """By a slot's `dmrs`: pilots complex64 [D, S, F], 0 elsewhere; bool [D, S, F] at data."""

    @abstractmethod
    def _data_digest(self) -> str:
        """Identity of the slots."""

    @abstractmethod
    def _row_bytes(self, split: str) -> float:
        """Stored bytes of one slot."""

    def attach(self, split: str, rows: RowSource) -> None:
        self._sources[split] = rows

    def batch(self, split: str, ids: np.ndarray) -> Batch:
        """Rows in the order of ids; a row is the same whichever others come with it."""
        return self.from_rows(self._source(split).take(ids))

    def _source(self, split: str) -> RowSource:
        if split not in self._sources:
            raise ValueError(f"no {split} slots attached; generate them and attach the rows first")
        return self._sources[split]

    def from_rows(self, rows: Mapping[str, np.ndarray]) -> Batch:
        """Stored columns to a batch: pilots, raw channel and mask are derived here."""
        scenario = self.settings.scenario
        dmrs = torch.from_numpy(rows["dmrs"].astype(np.int64))
        shape = (scenario.bits_per_symbol, SYMBOLS_PER_SLOT, scenario.subcarriers)
        bits = np.unpackbits(rows["bits"], axis=1, count=int(np.prod(shape)))
        sent_DSF, data_DSF = self.pilot_tables()
        grid = torch.from_numpy(np.ascontiguousarray(rows["grid"]))
        batch = {
            "inputs": deeprx_inputs(grid, sent_DSF[dmrs]),
            "bits": torch.from_numpy(bits.reshape(-1, *shape)),
            "mask": data_DSF[dmrs],
        }
        for name in (*CONDITIONS, *BASELINES):
            if name in rows:
                batch[name] = torch.from_numpy(rows[name].astype(np.float32))
        return batch

    def parts(self, model: nn.Module, batch: Batch) -> Tensor:
        """[N, S, F]: each resource element's part of the training loss; NaN at pilots."""
        bce = self.losses["bce"]
        assert isinstance(bce, losses.CapacityBce)
        return bce.parts(bce.outputs(model, batch), batch)

    def sampled_loss(self, model: nn.Module, batch: Batch, rows: np.ndarray, seed: int) -> Tensor:
        """[N]: the training loss of bits that are drawn by the network's own probabilities."""
        bce = self.losses["bce"]
        assert isinstance(bce, losses.CapacityBce)
        outputs = bce.outputs(model, batch)
        drawn = [uniform(seed, "sampled bits", outputs[0].numel(), stream=n) for n in rows.tolist()]
        chances = torch.sigmoid(outputs.detach().double())
        bits = 2 * chances - 1 > torch.stack(drawn).to(chances).view_as(chances)
        return bce.from_outputs(outputs, {**batch, "bits": bits.to(batch["bits"])})

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Per slot: ber (the network's), genie_ber, the baselines', the channel's conditions, and
        genie_errors, the bit errors that genie_ber counts.

        Runs the model in eval mode and leaves its mode as it was.
        """
        training = model.training
        model.eval()
        try:
            outputs = model(batch["inputs"])
        finally:
            model.train(training)
        columns = {"ber": losses.hard_ber(outputs, batch)}
        kept = [name for name in ("genie_ber", *BASELINES, *CONDITIONS) if name in batch]
        columns |= {name: batch[name].float() for name in kept}
        if "genie_ber" in columns:
            counted = batch["mask"].flatten(1).sum(1) * self.settings.scenario.bits_per_symbol
            columns["genie_errors"] = (columns["genie_ber"] * counted).round()
        return columns

    def optimizer(
        self, parameters: Iterable[Tensor], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        every = self.settings.trust_ratio == "all"
        return Lamb(parameters, lr=lr, weight_decay=weight_decay, adapt_vectors=every)

    def digests(self) -> dict[str, str]:
        """Identity of the slots and of the freshly initialised network."""
        network = {
            "model": asdict(self.settings.model),
            "bits": self.settings.scenario.bits_per_symbol,
            "rx_antennas": self.settings.scenario.rx_antennas,
        }
        return {
            "data": self._data_digest(),
            "model": _digest({"seed": self.seed, **network}),
        }

    def shapes(self) -> Shapes:
        model = self._build().eval()
        scenario = self.settings.scenario
        inputs = torch.zeros(
            1, model.conv_in.in_channels, SYMBOLS_PER_SLOT, scenario.subcarriers
        ).contiguous(memory_format=torch.channels_last)
        flops, activations = _forward_costs(model, inputs)
        return Shapes(
            parameters=sum(p.numel() for p in model.parameters()),
            flops_per_sample=flops,
            activation_bytes_per_sample=activations,
            row_bytes={split: self._row_bytes(split) for split in ("train", "evaluation")},
        )

    def _build(self) -> DeepRx:
        scenario = self.settings.scenario
        return DeepRx(self.settings.model, scenario.bits_per_symbol, scenario.rx_antennas)


class GeneratedSlots(ReceiverTask):
    """Slots are generated in units of whole frames, and read back after `attach`."""

    def rows(self, split: str) -> int:
        return self.settings.scenario.slots(split)

    def rows_per_unit(self, split: str) -> int:
        scenario = self.settings.scenario
        return scenario.frames_per_unit * scenario.frame_slots

    def generate(self, split: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """Slots start:stop; see `link.generate`. Needs Sionna."""
        from distinf.studies.receiver import link

        return link.generate(self.settings.scenario, self.seed, split, start, stop)

    def redrawn(self, row: int, count: int) -> Batch:
        """Further slots of an evaluation slot's frame. Needs Sionna."""
        from distinf.studies.receiver import link

        scenario = self.settings.scenario
        frame = row // scenario.frame_slots
        return self.from_rows(link.redraw(scenario, self.seed, "evaluation", frame, count))

    def pilot_tables(self) -> tuple[Tensor, Tensor]:
        scenario = self.settings.scenario
        return pilots.pilot_grids(scenario), pilots.data_masks(scenario)

    def _data_digest(self) -> str:
        scenario = asdict(self.settings.scenario)
        for name in NOT_DATA:
            del scenario[name]
        return _digest({"seed": self.seed, "scenario": scenario})

    def _row_bytes(self, split: str) -> float:
        scenario = self.settings.scenario
        grid = 2 * 2 * scenario.rx_antennas * SYMBOLS_PER_SLOT * scenario.subcarriers
        rates = 1 if split == "train" else 3
        return grid + scenario.packed_bytes + 4 * (3 + rates) + 2


class ImportedSlots(ReceiverTask):
    """Slots of an imported dataset. InputError if it is not there or does not fit the scenario."""

    @cached_property
    def _dataset(self) -> Dataset:
        found = Dataset(self.settings.dataset)
        found.check(self.settings.scenario)
        return found

    def rows(self, split: str) -> int:
        return self._dataset.count(split)

    def stored(self, split: str) -> Rows:
        """The split's rows in the dataset."""
        return self._dataset.rows(split)

    def _source(self, split: str) -> RowSource:
        if split not in self._sources:
            self.attach(split, self.stored(split))
        return self._sources[split]

    def pilot_tables(self) -> tuple[Tensor, Tensor]:
        return self._dataset.pilot_tables

    @property
    def labels(self) -> Mapping[str, tuple[str, ...]]:
        return {"model": tuple(self._dataset.facts["labels"])}

    @property
    def wording(self) -> Wording:
        """The study's, but for what it says of generated slots."""
        known, own = self._dataset.has("evaluation", "baseline_ber"), super().wording
        return replace(
            own,
            baseline="baseline_ber" if known else None,
            baseline_label="LS estimate + LMMSE" if known else None,
            deviations=(IMPORTED, *(d for d in own.deviations if d not in OF_GENERATED)),
        )

    def _data_digest(self) -> str:
        return self._dataset.digest

    def _row_bytes(self, split: str) -> float:
        return self._dataset.row_bytes(split)


def task(settings: ReceiverSettings, seed: int) -> ReceiverTask:
    """The factory that a configuration names: `distinf.studies.receiver.task:task`."""
    return (ImportedSlots if settings.dataset else GeneratedSlots)(settings, seed)


def _forward_costs(model: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """FLOPs of a forward pass (its convolutions'), and the bytes of every layer's output, which a
    backward pass keeps (ReLUs counted with the norms that they follow, and whose size they have).
    """
    flops = kept = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal flops, kept
        if isinstance(layer, nn.Conv2d):
            flops += 2 * output.numel() * layer.weight[0].numel()
        copies = 2 if isinstance(layer, nn.BatchNorm2d) else 1
        kept += copies * output.numel() * output.element_size()

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return flops, kept


def _digest(content: dict[str, Any]) -> str:
    return sha256(json.dumps(content, sort_keys=True).encode())
