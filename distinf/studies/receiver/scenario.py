"""The radio scenario: what a slot looks like and which channels it passes through."""

import difflib
from dataclasses import dataclass

# A slot's `model` is an index into this tuple, in every scenario (TR 38.901 tables 7.7.1, 7.7.2).
CHANNEL_MODELS = tuple(f"{family}-{letter}" for family in ("TDL", "CDL") for letter in "ABCDE")

SYMBOLS_PER_SLOT = 14  # TS 38.211 table 4.3.2-1, normal cyclic prefix
SUBCARRIERS_PER_PRB = 12  # TS 38.211 section 4.4.4.1

# Largest number of PRBs of any channel bandwidth, by subcarrier spacing in kHz:
# TS 38.101-1 table 5.3.2-1 below 7.125 GHz, TS 38.101-2 table 5.3.2-1 (FR2-1) above.
MAX_PRBS = {"FR1": {15: 270, 30: 273, 60: 135}, "FR2": {60: 264, 120: 264}}
FR1_END_HZ = 7.125e9  # TS 38.101-1 table 5.1-1


@dataclass(frozen=True)
class ScenarioConfig:
    """One radio scenario; the defaults are DeepRx's (arXiv 2005.01494, Table II) except as noted.

    Per frame of `frame_slots` slots one channel model, SNR, delay spread, Doppler and DMRS
    pattern are drawn, uniformly from the options or the ranges (low, high).
    Raises ValueError, in one line that names the field and the remedy.

    carrier_hz                 in Hz
    prbs                       12 subcarriers each: 26 are 312
    subcarrier_spacing_khz     in kHz
    bits_per_symbol            4 is 16-QAM
    tx_antennas, rx_antennas   numbers of transmit and receive antennas
    snr_db                     per receive antenna and resource element
    delay_spread_ns            RMS
    doppler_hz                 maximum Doppler shift
    train_models               channel models of the training slots (TR 38.901)
    evaluation_models          of the evaluation slots
    dmrs_types                 configuration types of TS 38.211 section 6.4.1.1
    dmrs_additional_positions  0 or 1 is 1 or 2 pilot symbols in a slot
    frame_slots                slots that share one draw; 24 divides both numbers of slots, and
                               Tuononen et al. fine-tune on 24 a step; DeepRx itself has 10
    train_slots                799,968 in Tuononen et al., section 4.1
    evaluation_slots           41,112 likewise
    frames_per_unit            made together: 40 are 960 slots, about 36 MB at the full width; not
                               part of what identifies the data
    """

    carrier_hz: float = 4e9
    prbs: int = 26
    subcarrier_spacing_khz: int = 15
    bits_per_symbol: int = 4
    tx_antennas: int = 1
    rx_antennas: int = 2
    snr_db: tuple[float, float] = (-4.0, 32.0)
    delay_spread_ns: tuple[float, float] = (10.0, 300.0)
    doppler_hz: tuple[float, float] = (0.0, 500.0)
    train_models: tuple[str, ...] = ("TDL-B", "TDL-C", "TDL-D", "CDL-B", "CDL-C", "CDL-D")
    evaluation_models: tuple[str, ...] = ("TDL-A", "TDL-E", "CDL-A", "CDL-E")
    dmrs_types: tuple[int, ...] = (1, 2)
    dmrs_additional_positions: tuple[int, ...] = (0, 1)
    frame_slots: int = 24
    train_slots: int = 799_968
    evaluation_slots: int = 41_112
    frames_per_unit: int = 40

    def __post_init__(self) -> None:
        for name in ("snr_db", "delay_spread_ns", "doppler_hz"):
            _check_range(name, getattr(self, name))
        self._check_carrier()
        self._check_link()
        for name in ("train_models", "evaluation_models"):
            _check_models(name, getattr(self, name))
        _check_options("dmrs_types", self.dmrs_types, (1, 2))
        _check_options("dmrs_additional_positions", self.dmrs_additional_positions, (0, 1, 2, 3))
        self._check_counts()

    def _check_carrier(self) -> None:
        if not 0.5e9 <= self.carrier_hz <= 100e9:
            raise ValueError(
                f"carrier_hz={self.carrier_hz:g}: TR 38.901 covers 0.5e9 to 100e9 Hz; "
                "give the carrier in Hz within it"
            )
        band = "FR1" if self.carrier_hz <= FR1_END_HZ else "FR2"
        limits = MAX_PRBS[band]
        if self.subcarrier_spacing_khz not in limits:
            raise ValueError(
                f"subcarrier_spacing_khz={self.subcarrier_spacing_khz}: at "
                f"{self.carrier_hz / 1e9:g} GHz ({band}) choose one of {sorted(limits)}"
            )
        limit = limits[self.subcarrier_spacing_khz]
        if not 1 <= self.prbs <= limit:
            raise ValueError(
                f"prbs={self.prbs}: {self.subcarrier_spacing_khz} kHz in {band} allows "
                f"1 to {limit} PRBs; lower prbs or choose another subcarrier_spacing_khz"
            )

    def _check_link(self) -> None:
        if self.bits_per_symbol not in (2, 4, 6, 8):
            raise ValueError(
                f"bits_per_symbol={self.bits_per_symbol}: use 2 (QPSK), 4 (16-QAM), 6 (64-QAM) "
                "or 8 (256-QAM)"
            )
        if self.tx_antennas != 1:
            raise ValueError(
                f"tx_antennas={self.tx_antennas}: the link carries one stream; set tx_antennas=1"
            )
        if self.rx_antennas < 1:
            raise ValueError(f"rx_antennas={self.rx_antennas}: set at least 1")
        if self.snr_db[0] < -60 or self.snr_db[1] > 60:
            raise ValueError(
                f"snr_db=({self.snr_db[0]:g}, {self.snr_db[1]:g}): slots are stored in float16, "
                "which is exact enough from -60 to 60 dB; stay within it"
            )
        if self.delay_spread_ns[0] < 0 or self.doppler_hz[0] < 0:
            raise ValueError("delay_spread_ns and doppler_hz cannot be negative; start at 0")
        # The channel is constant over a symbol: leakage between subcarriers is left out.
        if self.doppler_hz[1] > 100 * self.subcarrier_spacing_khz:
            raise ValueError(
                f"doppler_hz up to {self.doppler_hz[1]:g}: above a tenth of the subcarrier "
                "spacing the leakage left out here matters; lower it or widen "
                "subcarrier_spacing_khz"
            )

    def _check_counts(self) -> None:
        for name in ("frame_slots", "frames_per_unit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: set at least 1")
        for name in ("train_slots", "evaluation_slots"):
            slots = getattr(self, name)
            if slots < self.frame_slots or slots % self.frame_slots:
                nearest = max(1, round(slots / self.frame_slots)) * self.frame_slots
                raise ValueError(
                    f"{name}={slots}: must be a positive multiple of frame_slots="
                    f"{self.frame_slots}; the nearest is {nearest}"
                )

    @property
    def subcarriers(self) -> int:
        return self.prbs * SUBCARRIERS_PER_PRB

    @property
    def symbol_rate_hz(self) -> float:
        """OFDM symbols per second, averaged over the slot's unequal cyclic prefixes."""
        return SYMBOLS_PER_SLOT * self.subcarrier_spacing_khz / 15 * 1e3

    @property
    def packed_bytes(self) -> int:
        """Bytes that one slot's bits take when packed."""
        return -(-self.bits_per_symbol * SYMBOLS_PER_SLOT * self.subcarriers // 8)

    def models(self, split: str) -> tuple[str, ...]:
        return {"train": self.train_models, "evaluation": self.evaluation_models}[split]

    def slots(self, split: str) -> int:
        return {"train": self.train_slots, "evaluation": self.evaluation_slots}[split]


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not low <= high:
        raise ValueError(f"{name}=({low:g}, {high:g}) is reversed; write it as ({high:g}, {low:g})")


def _check_models(name: str, models: tuple[str, ...]) -> None:
    if not models:
        raise ValueError(f"{name} is empty; name at least one of {', '.join(CHANNEL_MODELS)}")
    for model in models:
        if model not in CHANNEL_MODELS:
            nearest = difflib.get_close_matches(model.upper(), CHANNEL_MODELS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{name}: unknown channel model {model!r}, did you mean {nearest!r}? "
                f"(known: {', '.join(CHANNEL_MODELS)})"
            )


def _check_options(name: str, chosen: tuple[int, ...], known: tuple[int, ...]) -> None:
    if not chosen:
        raise ValueError(f"{name} is empty; choose from {known}")
    wrong = [option for option in chosen if option not in known]
    if wrong:
        raise ValueError(f"{name}: {wrong[0]} is not an option; choose from {known}")
