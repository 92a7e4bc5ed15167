"""What the page calls things in the receiver study, and where it is not as in the papers."""

from distinf.studies.receiver.published import published
from distinf.tasks.task import Wording

BASELINES = ("baseline_ber", "lmmse_ber")  # by least squares, and with the channel's covariances
SCENARIO = (
    "The scenario is DeepRx's (arXiv 2005.01494, Table II); Tuononen et al. take theirs from a "
    "table that was not at hand."
)
BOOST = "Pilots have the power of data (no 3 dB boost), and there is no interference."
LEAKAGE = "The channel is constant over a symbol: no leakage between subcarriers."
PHASE = (
    "Each slot has a channel phase of its own; Sionna's CDL-D and CDL-E start the line of sight at "
    "one phase."
)
# Not of slots that were made elsewhere.
OF_GENERATED = (SCENARIO, BOOST, LEAKAGE, PHASE)
IMPORTED = "The slots were imported from TFRecords, not generated here."
TRUST = (
    "LAMB's trust ratio is 1 for biases and normalisation parameters: with the ratio on every "
    "tensor the small networks did not learn (settings.trust_ratio)."
)
WORDING = Wording(
    question="Which training slots help the receiver on the slots where it does worst?",
    noun="slots",
    metric="BER",
    reference="genie-aided LMMSE",
    baseline="lmmse_ber",
    baseline_label="LMMSE estimate",
    axis="SNR [dB]",
    log=True,
    columns=("snr_db", "delay_spread_ns", "doppler_hz", "model", "genie_errors", *BASELINES),
    deviations=(
        SCENARIO,
        "The capacity-like cross-entropy weighs a slot by log2(1 + SNR), a reconstruction of "
        "DeepRx MIMO's Eq. 9.",
        "The smooth BER is the mean of sigmoid(-(2b - 1) logit), a reconstruction of the "
        "surrogate that Tuononen et al. cite.",
        "Harmful slots are fine-tuned on by descent, as a control, where an arm does not say "
        "ascent or second-order.",
        "Scores have the sign of their use, above 0 helps: the negative of Eq. 2 of Tuononen et "
        "al.",
        BOOST,
        LEAKAGE,
        PHASE,
        "BatchNorm is frozen for influence and fine-tuning.",
    ),
    published=published(),
)
