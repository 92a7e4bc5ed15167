"""Simulated slots against theory, against Sionna's own blocks, and against themselves."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erfc, j0
from torch.nn.functional import binary_cross_entropy_with_logits

from distinf.errors import InputError
from distinf.studies.receiver import detectors, link, pilots, qam
from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig, deeprx_inputs
from distinf.studies.receiver.scenario import CHANNEL_MODELS, ScenarioConfig

pytest.importorskip("sionna.phy", reason="needs distinf[wireless]")

SMALL = ScenarioConfig(
    prbs=4, train_slots=480, evaluation_slots=240, frames_per_unit=2, snr_db=(0.0, 20.0)
)


def digest(rows: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(rows[key].tobytes() for key in sorted(rows))).hexdigest()


def ber_16qam(snr: float) -> float:
    """Gray-mapped 16-QAM in white noise; snr is the linear symbol SNR."""

    def tail(x: float) -> float:
        return 0.5 * erfc(x * np.sqrt(snr / 10))

    return 0.75 * tail(1) + 0.5 * tail(3) - 0.25 * tail(5)


def ber_16qam_mrc2(snr: float) -> float:
    """The same over two independent Rayleigh branches: the combined gain is Gamma(2, 1)."""
    return quad(lambda gain: ber_16qam(snr * gain) * gain * np.exp(-gain), 0, 60)[0]


def genie_ber(snr_db: float, channel: torch.Tensor, seed: int = 0) -> float:
    """BER of known channels [N, A, S, F], from the link's own transmitter and receiver."""
    rng = np.random.default_rng(seed)
    bits, sent = link.transmit(SMALL, 0, len(channel), rng)
    grid = link.receive(sent, channel, snr_db, rng)
    data = pilots.patterns(SMALL)[0].data_symbols
    received = torch.view_as_complex(grid.float())[:, :, data]
    rate = detectors.bit_error_rate(received, channel[:, :, data], bits[:, :, data])
    return rate.mean().item()


@pytest.mark.parametrize(("snr_db", "slots"), [(0, 50), (8, 50), (12, 100), (16, 400)])
def test_genie_ber_in_white_noise_is_the_closed_form(snr_db, slots):
    flat = torch.ones(slots, 1, 14, SMALL.subcarriers, dtype=torch.complex64)
    expected = ber_16qam(10 ** (snr_db / 10))
    assert genie_ber(snr_db, flat) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("snr_db", "slots"), [(0, 50), (8, 50), (16, 200), (24, 800)])
def test_genie_ber_under_rayleigh_fading_is_that_of_combining_two_branches(snr_db, slots):
    shape = (slots, 2, 14, SMALL.subcarriers)
    fading = torch.randn(shape, dtype=torch.complex64, generator=torch.manual_seed(1))
    expected = ber_16qam_mrc2(10 ** (snr_db / 10))
    assert genie_ber(snr_db, fading) == pytest.approx(expected, rel=0.06)


def test_genie_ber_through_tdl_c_is_near_rayleigh_combining():
    frame = link.Frame(CHANNEL_MODELS.index("TDL-C"), 8.0, 300.0, 500.0, 0)
    channel = link.channel_response(link.sionna_channels(), SMALL, frame, 800, torch_seed=3)
    assert genie_ber(8.0, channel) == pytest.approx(ber_16qam_mrc2(10**0.8), rel=0.08)


@pytest.mark.parametrize("name", CHANNEL_MODELS)
def test_every_channel_model_has_unit_mean_power(name):
    wide = ScenarioConfig()
    frame = link.Frame(CHANNEL_MODELS.index(name), 10.0, 300.0, 500.0, 0)
    response = link.channel_response(link.sionna_channels(), wide, frame, 400, torch_seed=5)
    assert response.shape == (400, 2, 14, 312)
    # Over 400 independent slots the standard error is 0.03 at most (CDL-A, 0.004 for TDL-E).
    assert response.abs().square().mean().item() == pytest.approx(1, abs=0.06)


def test_doppler_gives_the_jakes_correlation():
    frame = link.Frame(CHANNEL_MODELS.index("TDL-A"), 10.0, 100.0, 500.0, 0)
    response = link.channel_response(link.sionna_channels(), SMALL, frame, 1500, torch_seed=7)
    lag = 7  # half a millisecond at 14 symbols per millisecond
    correlation = (response[:, :, :-lag].conj() * response[:, :, lag:]).mean().real.item()
    assert correlation == pytest.approx(j0(2 * np.pi * 500 * lag / 14e3), abs=0.05)


@pytest.mark.parametrize("name", ["TDL-C", "TDL-D", "CDL-B", "CDL-E"])
def test_response_is_that_of_sionna_at_the_frame_s_delay_spread(name):
    from sionna.phy import config
    from sionna.phy.channel import cir_to_ofdm_channel

    tr38901 = link.sionna_channels()
    frame = link.Frame(CHANNEL_MODELS.index(name), 10.0, 250.0, 200.0, 0)
    ours = link.channel_response(tr38901, SMALL, frame, 5, torch_seed=11)
    config.torch_rng("cpu").manual_seed(11)
    gains, delays = link._channel_model(tr38901, SMALL, frame)(5, 14, SMALL.symbol_rate_hz)
    offsets = (torch.arange(SMALL.subcarriers) - SMALL.subcarriers // 2) * 15e3
    theirs = cir_to_ofdm_channel(offsets, gains, delays * 250)[:, 0, :, 0, 0]
    # Ours has a further phase in each slot.
    phase = ours[:, :1, :1, :1] / theirs[:, :1, :1, :1]
    torch.testing.assert_close(phase.abs(), torch.ones_like(phase.real), atol=1e-3, rtol=0)
    torch.testing.assert_close(ours, theirs * phase, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", CHANNEL_MODELS)
def test_the_phase_of_no_channel_model_can_be_learnt_by_heart(name):
    tr38901 = link.sionna_channels()
    frame = link.Frame(CHANNEL_MODELS.index(name), 10.0, 100.0, 100.0, 0)
    first = link.channel_response(tr38901, SMALL, frame, 500, torch_seed=13)[:, 0, 0, 0]
    assert first.mean().abs() ** 2 <= 0.02 * first.abs().square().mean()


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("additional", [0, 1, 2, 3])
def test_pilots_are_those_of_sionna_s_pusch_without_the_boost(kind, additional):
    from sionna.phy import nr

    pusch = nr.PUSCHConfig()
    pusch.carrier.n_cell_id = 0
    pusch.carrier.n_size_grid = 26
    pusch.carrier.subcarrier_spacing = 15
    pusch.dmrs.config_type = kind
    pusch.dmrs.additional_position = additional
    pusch.dmrs.num_cdm_groups_without_data = 1 + kind
    pattern = nr.PUSCHPilotPattern(pusch)
    mask = torch.as_tensor(pattern.mask)[0, 0].bool()
    theirs = torch.zeros(14, 312, dtype=torch.complex64)
    theirs[mask] = torch.as_tensor(pattern.pilots)[0, 0].to(torch.complex64)
    theirs /= theirs.abs().max()
    scenario = ScenarioConfig(dmrs_types=(kind,), dmrs_additional_positions=(additional,))
    torch.testing.assert_close(pilots.pilot_grids(scenario)[0], theirs, atol=1e-6, rtol=0)
    assert torch.equal(pilots.data_masks(scenario)[0], ~mask)


@pytest.mark.parametrize("bits_per_symbol", [2, 4, 6, 8])
def test_constellation_is_sionna_s_and_slicing_undoes_it(bits_per_symbol):
    from sionna.phy.mapping import Constellation

    points = qam.constellation(bits_per_symbol)
    theirs = Constellation("qam", bits_per_symbol, device="cpu")()
    torch.testing.assert_close(points, theirs.to(torch.complex64), atol=1e-6, rtol=0)
    sliced = qam.slice_bits(points, bits_per_symbol)
    places = 2 ** torch.arange(bits_per_symbol - 1, -1, -1)
    assert torch.equal((sliced * places).sum(1), torch.arange(2**bits_per_symbol))


@pytest.mark.smoke
def test_a_unit_regenerates_bit_for_bit_in_another_process_and_frame_by_frame():
    made = link.generate(SMALL, 5, "evaluation", 48, 96)
    single = [link.generate(SMALL, 5, "evaluation", start, start + 24) for start in (48, 72)]
    assert digest(made) == digest(
        {key: np.concatenate([part[key] for part in single]) for key in made}
    )
    code = (
        "from tests.studies.test_receiver_link import SMALL, digest, link\n"
        "print(digest(link.generate(SMALL, 5, 'evaluation', 48, 96)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == digest(made)


def test_seeds_splits_and_frames_have_their_own_streams():
    first = link.generate(SMALL, 5, "train", 0, 48)
    others = [
        link.generate(SMALL, 6, "train", 0, 24)["grid"],
        link.generate(SMALL, 5, "evaluation", 0, 24)["grid"],
        first["grid"][24:],
    ]
    for other in others:
        assert not np.array_equal(first["grid"][:24], other)
    seeds = {link.channel_seed(5, split, n) for split in link.SPLITS for n in range(50_000)}
    assert len(seeds) == 100_000


def test_generating_leaves_torch_s_generator_and_threads_alone():
    torch.manual_seed(9)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    link.generate(SMALL, 5, "train", 0, 24)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_slots_of_a_frame_share_its_conditions_within_the_scenario():
    rows = link.generate(SMALL, 5, "train", 0, 480)
    for name in ("snr_db", "delay_spread_ns", "doppler_hz", "model", "dmrs"):
        frames = rows[name].reshape(20, 24)
        assert (frames == frames[:, :1]).all()
        assert len(np.unique(frames[:, 0])) > 1
    for name in ("snr_db", "delay_spread_ns", "doppler_hz"):
        low, high = getattr(SMALL, name)
        assert low <= rows[name].min() < rows[name].max() <= high
    assert {CHANNEL_MODELS[index] for index in rows["model"]} <= set(SMALL.train_models)
    assert set(rows["dmrs"]) <= {0, 1, 2, 3}
    assert np.isfinite(rows["grid"]).all()
    fading = rows["grid"].astype(np.float32)
    assert not np.array_equal(fading[0], fading[1])


def test_estimated_channels_cost_bit_errors_on_average():
    rows = link.generate(SMALL, 5, "evaluation", 0, 240)
    assert rows["baseline_ber"].mean() > 1.2 * rows["genie_ber"].mean() > 0
    assert "baseline_ber" not in link.generate(SMALL, 5, "train", 0, 24)


def test_channel_estimate_is_exact_for_a_channel_linear_in_frequency_and_time():
    pattern = pilots.patterns(SMALL)[1]  # type 1, two pilot symbols
    known = pilots.pilot_grids(SMALL)[1]
    frequency = torch.linspace(-1, 1, SMALL.subcarriers)
    time = torch.linspace(0, 1, 14)[:, None]
    channel = torch.complex(1 + frequency + 0 * time, time + 0 * frequency)[None, None]
    estimate = detectors.estimate_channel(channel * known, known, pattern)
    inside = slice(2, 12), slice(0, 47)  # beyond the outermost pilots it is held constant
    torch.testing.assert_close(estimate[0, 0][inside], channel[0, 0][inside])


def test_ranges_that_cut_a_frame_are_refused():
    with pytest.raises(ValueError, match="multiples of 24"):
        link.generate(SMALL, 5, "train", 12, 36)


def test_a_missing_simulator_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sionna.phy.channel", None)
    with pytest.raises(InputError, match=r'pip install "sionna-no-rt[<>=.,\d]+"'):
        link.sionna_channels()


@pytest.mark.parametrize("name", ["TDL-A", "CDL-E"])
def test_the_covariances_are_those_of_the_channel(name):
    tr38901 = link.sionna_channels()
    frame = link.Frame(CHANNEL_MODELS.index(name), 10.0, 200.0, 400.0, 0)
    time_SS, frequency_FF = link.channel_covariance(tr38901, SMALL, frame, 17)
    drawn = link.channel_response(tr38901, SMALL, frame, 2_000, torch_seed=19)
    power = drawn.abs().square().mean()
    along = torch.einsum("nasf,natf->st", drawn, drawn.conj()) / drawn[:, :, 0].numel() / power
    across = torch.einsum("nasf,nasg->fg", drawn, drawn.conj()) / drawn[..., 0].numel() / power
    assert (time_SS - along).abs().max() < 0.1
    assert (frequency_FF / frequency_FF[0, 0].real - across).abs().max() < 0.1


def test_the_mmse_estimate_is_that_of_dense_algebra_and_better_than_interpolation():
    tr38901 = link.sionna_channels()
    frame = link.Frame(CHANNEL_MODELS.index("TDL-B"), 5.0, 300.0, 400.0, 0)
    channel = link.channel_response(tr38901, SMALL, frame, 200, torch_seed=23)
    pattern, sent = pilots.patterns(SMALL)[0], pilots.pilot_grids(SMALL)[0]
    rng = np.random.default_rng(0)
    received = torch.view_as_complex(link.receive(sent[None], channel, 5.0, rng).float())
    covariance = link.channel_covariance(tr38901, SMALL, frame, 29)
    found = detectors.mmse_channel(received, sent, pattern, covariance, 5.0)
    at = [s * SMALL.subcarriers + f for s in pattern.symbols for f in pattern.subcarriers]
    dense = torch.kron(*covariance).cdouble()
    observed = (received * sent.conj()).flatten(2)[..., at].cdouble()
    noisy = dense[at][:, at] + 10**-0.5 * torch.eye(len(at))
    expected = (dense[:, at] @ torch.linalg.solve(noisy, observed.mT)).mT.reshape(channel.shape)
    torch.testing.assert_close(found, expected.cfloat(), atol=1e-4, rtol=1e-4)
    plain = detectors.estimate_channel(received, sent, pattern)
    errors = [(estimate - channel).abs().square().mean() for estimate in (found, plain)]
    assert errors[0] < 0.5 * errors[1]


def blind_ber(channel: torch.Tensor, bits_per_symbol: int, steps: int) -> torch.Tensor:
    """[B]: BER at 0 dB on the last 200 slots of a small network that saw no pilots.

    A phase that it does not know leaves the first two bits, the signs, to chance: all that QPSK
    has. The others say how large a symbol is, and that can be seen without any phase.
    channel [N, A, S, F].
    """
    scenario = dataclasses.replace(SMALL, bits_per_symbol=bits_per_symbol)
    rng = np.random.default_rng(1)
    bits, sent = link.transmit(scenario, 0, len(channel), rng)
    data = pilots.patterns(scenario)[0].data_symbols
    grid = link.receive(sent, channel, 0.0, rng)[:, :, data]
    bits = bits[:, :, data].float()
    inputs = deeprx_inputs(grid, torch.zeros_like(sent[:, data]))
    torch.manual_seed(0)
    model = DeepRx(DeepRxConfig(widths=(16, 32, 16)), bits_per_symbol=bits_per_symbol)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        some = (torch.arange(32) + 32 * step) % (len(channel) - 200)
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(inputs[some]), bits[some]).backward()
        optimizer.step()
    with torch.no_grad():
        wrong = (model.eval()(inputs[-200:]) > 0) != bits[-200:].bool()
    return wrong.float().mean((0, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits_per_symbol", "steps", "least"), [(4, 40, 0.45), (4, 150, 0.43), (2, 150, 0.49)]
)
def test_a_receiver_without_pilots_learns_no_channel_s_phase(bits_per_symbol, steps, least):
    tr38901 = link.sionna_channels()
    frame = link.Frame(CHANNEL_MODELS.index("CDL-E"), 0.0, 100.0, 100.0, 0)
    channel = link.channel_response(tr38901, SMALL, frame, 1200, torch_seed=31)
    ours = blind_ber(channel, bits_per_symbol, steps)
    paths_NASP, steering_PF = link._paths(tr38901, SMALL, frame, 1200, torch_seed=31)
    one_phase = blind_ber(paths_NASP @ steering_PF, bits_per_symbol, steps)  # as Sionna has it
    print(f"BER {ours.mean():.3f} {ours.numpy().round(3)}, with one phase {one_phase.mean():.3f}")
    assert ours[:2].min() >= 0.47
    assert ours.mean() >= least
    assert one_phase[:2].max() < 0.25
