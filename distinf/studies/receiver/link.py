"""Simulated uplink slots: bits, QAM, DMRS, a TR 38.901 channel from Sionna, noise.

Every frame has its own random streams, derived from (seed, split, frame), so a frame is the same
whichever unit, process or machine order makes it; slots of a frame share the channel model, SNR,
delay spread, Doppler and DMRS pattern and have independent fading. The channel is applied per
resource element (no leakage between subcarriers or symbols), at unit mean power per receive
antenna: TDL profiles are normalised, and CDL is with these single-polarised isotropic arrays.

Shapes: N slots, A receive antennas, P paths, S = 14 symbols, F subcarriers, B bits a symbol.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from distinf.errors import InputError, install_command
from distinf.numerics.randomness import number
from distinf.studies.receiver import detectors, pilots, qam
from distinf.studies.receiver.scenario import (
    CHANNEL_MODELS,
    SYMBOLS_PER_SLOT,
    ScenarioConfig,
)

SPLITS = ("train", "evaluation")
SPEED_OF_LIGHT = 299_792_458.0  # m/s
# Sionna takes one delay spread per channel object; delays come out as multiples of this one.
UNIT_DELAY_S = 1e-9
COVARIANCE_DRAWS = 200  # of a frame's channel, for its covariances


@dataclass(frozen=True)
class Frame:
    """What the slots of one frame share."""

    model: int  # index into CHANNEL_MODELS
    snr_db: float
    delay_spread_ns: float
    doppler_hz: float
    dmrs: int  # index into pilots.patterns(scenario)


def generate(
    scenario: ScenarioConfig, seed: int, split: str, start: int, stop: int
) -> dict[str, np.ndarray]:
    """Slots start:stop of a split, both multiples of `frame_slots`; N = stop - start.

    grid float16 [N, A, S, F, 2] (real, imaginary), bits uint8 [N, packed] (np.packbits of
    [B, S, F], zero at pilot symbols), snr_db, delay_spread_ns, doppler_hz float32 [N], model and
    dmrs uint8 [N], genie_ber float32 [N]; for the evaluation split also
    baseline_ber (least-squares channel estimate) and lmmse_ber (LMMSE estimate that knows the
    channel's covariances and SNR). All error rates are computed on the float16 grid that is stored.
    Uses Sionna's process-wide generator and one torch thread: do not call from two threads.
    """
    if start % scenario.frame_slots or stop % scenario.frame_slots or not 0 <= start < stop:
        raise ValueError(
            f"slots {start}:{stop} do not cover whole frames; "
            f"start and stop must be multiples of {scenario.frame_slots}"
        )
    tr38901 = sionna_channels()
    frames = range(start // scenario.frame_slots, stop // scenario.frame_slots)
    with torch.no_grad(), _one_thread():
        made = [_generate_frame(tr38901, scenario, seed, split, frame) for frame in frames]
    return {key: np.concatenate([frame[key] for frame in made]) for key in made[0]}


def redraw(
    scenario: ScenarioConfig, seed: int, split: str, frame: int, slots: int
) -> dict[str, np.ndarray]:
    """`slots` further slots of a frame, of no split: its parameters, other fading, bits and noise.

    Arrays as `generate` has them.
    """
    again = f"{split} again"
    torch_seed = int(_rng(seed, again, frame, "fading").integers(2**32))
    with torch.no_grad(), _one_thread():
        return _frame_rows(
            sionna_channels(), scenario, draw_frame(scenario, seed, split, frame), slots,
            _rng(seed, again, frame, "bits and noise"), torch_seed, baseline=split == "evaluation",
        )  # fmt: skip


def sionna_channels() -> ModuleType:
    """Sionna's TR 38.901 module, imported on first use (it takes seconds)."""
    try:
        from sionna.phy.channel import tr38901
    except ImportError as error:
        raise InputError(
            f"generating slots needs Sionna ({error}): {install_command('wireless')} "
            "(the full sionna package works too)"
        ) from error
    return tr38901


def draw_frame(scenario: ScenarioConfig, seed: int, split: str, frame: int) -> Frame:
    """The parameters of one frame, uniform over the scenario's options and ranges."""
    rng = _rng(seed, split, frame, "parameters")
    models = scenario.models(split)
    return Frame(
        model=CHANNEL_MODELS.index(models[rng.integers(len(models))]),
        snr_db=rng.uniform(*scenario.snr_db),
        delay_spread_ns=rng.uniform(*scenario.delay_spread_ns),
        doppler_hz=rng.uniform(*scenario.doppler_hz),
        dmrs=int(rng.integers(len(pilots.patterns(scenario)))),
    )


def channel_response(
    tr38901: ModuleType, scenario: ScenarioConfig, frame: Frame, slots: int, torch_seed: int
) -> Tensor:
    """Frequency response of independent slots of a frame: complex64 [N, A, S, F].

    Each slot has a phase of its own, uniform over the circle: Sionna's CDL starts the line-of-sight
    ray at the same phase in every slot, which a receiver could learn by heart.
    """
    from sionna.phy import config

    paths_NASP, steering_PF = _paths(tr38901, scenario, frame, slots, torch_seed)
    turns_N = torch.rand(slots, generator=config.torch_rng("cpu"), dtype=torch.float64)
    phase_N = torch.polar(torch.ones_like(turns_N), 2 * torch.pi * turns_N).to(torch.complex64)
    return (paths_NASP @ steering_PF) * phase_N[:, None, None, None]


def channel_covariance(
    tr38901: ModuleType, scenario: ScenarioConfig, frame: Frame, torch_seed: int
) -> tuple[Tensor, Tensor]:
    """Of a frame's channel along time complex64 [S, S] and frequency [F, F], from further draws."""
    paths_NASP, steering_PF = _paths(tr38901, scenario, frame, COVARIANCE_DRAWS, torch_seed)
    time_SS = torch.einsum("nasp,natp->st", paths_NASP, paths_NASP.conj())
    time_SS /= COVARIANCE_DRAWS * paths_NASP.shape[1]
    power_P = paths_NASP.abs().square().mean((0, 1, 2))
    frequency_FF = (steering_PF.T * power_P) @ steering_PF.conj()
    return time_SS / power_P.sum(), frequency_FF


def _paths(
    tr38901: ModuleType, scenario: ScenarioConfig, frame: Frame, slots: int, torch_seed: int
) -> tuple[Tensor, Tensor]:
    """Gains of independent slots' paths [N, A, S, P], and what delays do [P, F]: complex64."""
    from sionna.phy import config

    # Seeding this generator leaves torch's own default generator alone; config.seed would not.
    config.torch_rng("cpu").manual_seed(torch_seed)
    model = _channel_model(tr38901, scenario, frame)
    gains, delays = model(slots, SYMBOLS_PER_SLOT, scenario.symbol_rate_hz)
    # [N, 1, A, 1, 1, P, S] -> [N, A, S, P]; the delays are the same in every slot of a frame.
    paths_NASP = gains[:, 0, :, 0, 0].transpose(2, 3)
    delay_s_P = delays[0, 0, 0].double() * (frame.delay_spread_ns * 1e-9 / UNIT_DELAY_S)
    offsets_F = torch.arange(scenario.subcarriers, dtype=torch.float64)
    offsets_F -= scenario.subcarriers // 2
    cycles_PF = delay_s_P[:, None] * (offsets_F * scenario.subcarrier_spacing_khz * 1e3)
    steering_PF = torch.polar(torch.ones_like(cycles_PF), -2 * torch.pi * cycles_PF)
    return paths_NASP, steering_PF.to(torch.complex64)


def transmit(
    scenario: ScenarioConfig, dmrs: int, slots: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Random data around one pilot pattern: bits uint8 [N, B, S, F], grid complex64 [N, S, F]."""
    bits_per_symbol = scenario.bits_per_symbol
    shape = (slots, SYMBOLS_PER_SLOT, scenario.subcarriers)
    index = torch.from_numpy(rng.integers(2**bits_per_symbol, size=shape, dtype=np.uint8))
    index *= pilots.data_masks(scenario)[dmrs]
    places = [bits_per_symbol - 1 - b for b in range(bits_per_symbol)]
    bits = torch.stack([(index >> place) & 1 for place in places], dim=1)
    sent = qam.constellation(bits_per_symbol)[index.int()]
    pattern = pilots.patterns(scenario)[dmrs]
    sent[:, list(pattern.symbols)] = pilots.pilot_grids(scenario)[dmrs, list(pattern.symbols)]
    return bits, sent


def receive(sent: Tensor, channel: Tensor, snr_db: float, rng: np.random.Generator) -> Tensor:
    """Channel and white noise: float16 [N, A, S, F, 2].

    Rounding to float16 changes a component by at most 2^-11 of itself, an error near -70 dB, and
    the SNRs that a scenario allows keep values far below float16's largest, 65504.
    """
    noise = torch.from_numpy(rng.standard_normal((*channel.shape, 2), dtype=np.float32))
    noise *= (10 ** (-snr_db / 10) / 2) ** 0.5
    return (torch.view_as_real(sent[:, None] * channel) + noise).half()


def _generate_frame(
    tr38901: ModuleType, scenario: ScenarioConfig, seed: int, split: str, number: int
) -> dict[str, np.ndarray]:
    return _frame_rows(
        tr38901, scenario, draw_frame(scenario, seed, split, number), scenario.frame_slots,
        _rng(seed, split, number, "bits and noise"), channel_seed(seed, split, number),
        baseline=split == "evaluation",
    )  # fmt: skip


def _frame_rows(
    tr38901: ModuleType, scenario: ScenarioConfig, frame: Frame, slots: int,
    rng: np.random.Generator, torch_seed: int, *, baseline: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    channel = channel_response(tr38901, scenario, frame, slots, torch_seed)
    bits, sent = transmit(scenario, frame.dmrs, slots, rng)
    grid = receive(sent, channel, frame.snr_db, rng)
    rows = {
        "grid": grid.numpy(),
        "bits": np.packbits(bits.flatten(1).numpy(), axis=1),
        **{
            name: np.full(slots, getattr(frame, name), dtype=np.float32)
            for name in ("snr_db", "delay_spread_ns", "doppler_hz")
        },
        "model": np.full(slots, frame.model, dtype=np.uint8),
        "dmrs": np.full(slots, frame.dmrs, dtype=np.uint8),
    }
    pattern = pilots.patterns(scenario)[frame.dmrs]
    received = torch.view_as_complex(grid.float())
    data = pattern.data_symbols
    data_bits, data_received = bits[:, :, data], received[:, :, data]
    known = {"genie_ber": channel}
    if baseline:
        sent_SF = pilots.pilot_grids(scenario)[frame.dmrs]
        covariance = channel_covariance(tr38901, scenario, frame, torch_seed ^ 0x5EED)
        known["baseline_ber"] = detectors.estimate_channel(received, sent_SF, pattern)
        known["lmmse_ber"] = detectors.mmse_channel(
            received, sent_SF, pattern, covariance, frame.snr_db
        )
    for name, response in known.items():
        rate = detectors.bit_error_rate(data_received, response[:, :, data], data_bits)
        rows[name] = rate.numpy()
    return rows


def _channel_model(tr38901: ModuleType, scenario: ScenarioConfig, frame: Frame) -> torch.nn.Module:
    """A Sionna channel whose maximum Doppler is the frame's (Sionna would draw, and hide, it)."""
    family, letter = CHANNEL_MODELS[frame.model].split("-")
    speed = frame.doppler_hz * SPEED_OF_LIGHT / scenario.carrier_hz
    options = {"min_speed": speed, "max_speed": speed, "device": "cpu", "precision": "single"}
    if family == "TDL":
        return tr38901.TDL(
            letter, UNIT_DELAY_S, scenario.carrier_hz, num_rx_ant=scenario.rx_antennas, **options
        )
    return tr38901.CDL(
        letter,
        UNIT_DELAY_S,
        scenario.carrier_hz,
        ut_array=_array(tr38901, scenario, 1),
        bs_array=_array(tr38901, scenario, scenario.rx_antennas),
        direction="uplink",
        **options,
    )


def _array(tr38901: ModuleType, scenario: ScenarioConfig, antennas: int) -> torch.nn.Module:
    """A half-wavelength line of isotropic antennas of one polarisation."""
    return tr38901.PanelArray(
        num_rows_per_panel=1,
        num_cols_per_panel=antennas,
        polarization="single",
        polarization_type="V",
        antenna_pattern="omni",
        carrier_frequency=scenario.carrier_hz,
        device="cpu",
        precision="single",
    )


def _rng(seed: int, split: str, frame: int, purpose: str) -> np.random.Generator:
    text = f"receiver slots/{seed}/{split}/{frame}/{purpose}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def channel_seed(seed: int, split: str, frame: int) -> int:
    """Seed of a frame's fading, different for every frame of both splits of a run.

    torch's CPU generator uses 32 bits of its seed, too few to hash 35,000 frames without a
    collision; the frame number goes through a bijection of 32 bits instead.
    """
    first = number(seed, "receiver fading")
    return (first + 2 * frame + SPLITS.index(split)) * 0x9E3779B1 % 2**32


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread, as the order of sums and so the bits may depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
