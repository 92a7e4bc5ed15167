"""Bad radio scenarios are refused in one line that names the field and the remedy."""

import pytest

from distinf.studies.receiver import ReceiverSettings
from distinf.studies.receiver.deeprx import DeepRxConfig
from distinf.studies.receiver.scenario import ScenarioConfig


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"snr_db": (20.0, 0.0)}, ["snr_db=(20, 0) is reversed", "(0, 20)"]),
        ({"delay_spread_ns": (300.0, 10.0)}, ["delay_spread_ns", "(10, 300)"]),
        ({"doppler_hz": (500.0, 0.0)}, ["doppler_hz", "(0, 500)"]),
        ({"prbs": 271}, ["prbs=271", "1 to 270"]),
        ({"prbs": 136, "subcarrier_spacing_khz": 60}, ["prbs=136", "1 to 135"]),
        ({"subcarrier_spacing_khz": 120}, ["subcarrier_spacing_khz=120", "[15, 30, 60]"]),
        ({"carrier_hz": 28e9}, ["subcarrier_spacing_khz=15", "[60, 120]"]),
        ({"carrier_hz": 4.0}, ["carrier_hz=4", "in Hz"]),
        ({"bits_per_symbol": 16}, ["bits_per_symbol=16", "4 (16-QAM)"]),
        ({"tx_antennas": 2}, ["tx_antennas=2", "set tx_antennas=1"]),
        ({"rx_antennas": 0}, ["rx_antennas=0", "at least 1"]),
        ({"snr_db": (-90.0, 0.0)}, ["snr_db=(-90, 0)", "-60 to 60"]),
        ({"doppler_hz": (0.0, 2000.0)}, ["doppler_hz up to 2000", "lower it"]),
        ({"train_models": ("TDL-Z",)}, ["train_models", "'TDL-Z'", "did you mean 'TDL-"]),
        ({"evaluation_models": ("cdl_a",)}, ["evaluation_models", "did you mean 'CDL-A'"]),
        ({"train_models": ()}, ["train_models is empty"]),
        ({"dmrs_types": (3,)}, ["dmrs_types: 3", "(1, 2)"]),
        ({"dmrs_additional_positions": ()}, ["dmrs_additional_positions is empty"]),
        ({"train_slots": 4_100}, ["train_slots=4100", "frame_slots=24", "4104"]),
        ({"evaluation_slots": 0}, ["evaluation_slots=0", "the nearest is 24"]),
        ({"frames_per_unit": 0}, ["frames_per_unit=0", "at least 1"]),
    ],
)
def test_a_bad_scenario_is_refused_with_the_remedy(change, words):
    with pytest.raises(ValueError) as refused:
        ScenarioConfig(**change)
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_wider_carriers_and_fr2_are_accepted():
    assert ScenarioConfig(subcarrier_spacing_khz=30, prbs=273).subcarriers == 3276
    wide = ScenarioConfig(carrier_hz=28e9, subcarrier_spacing_khz=120, prbs=264)
    assert wide.symbol_rate_hz == 14 * 8_000


def test_network_and_loss_settings_are_checked():
    with pytest.raises(ValueError, match="dilations has 1 pairs for 2 widths"):
        DeepRxConfig(widths=(8, 8), dilations=((1, 1),))
    with pytest.raises(ValueError, match="kernel=4: must be odd"):
        DeepRxConfig(kernel=4)
    with pytest.raises(ValueError, match="loss_units='dB'"):
        ReceiverSettings(loss_units="dB")
    with pytest.raises(ValueError, match="ber_temperature=0"):
        ReceiverSettings(ber_temperature=0)
