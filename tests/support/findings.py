"""Findings of a made-up receiver run, with the magnitudes of a small real one."""

from dataclasses import replace

import numpy as np

from distinf.report.provenance import COSTS
from distinf.report.spectral.findings import (
    AxisCurves,
    EvaluationPoints,
    Findings,
    Headline,
    MetricInfo,
    Outcome,
    Provenance,
    Ritz,
    ScoreSet,
    Target,
    TrainingCurve,
)
from distinf.tasks.task import Published

TARGETS = (417, 88, 503)
SEEDS = 10
VARIANTS = ("classic", "theta-relative", "ell-relative", "newfluence")
CONFIG = """\
task: distinf.studies.receiver:task
seed: 0
scenario: {resource_blocks: 4, train: 4080, evaluation: 600}
curvature: {steps: 20, keep: 10, damping: 0.01}
actions: {pool: 50, steps: 3, batch: 24, learning_rate: 0.005}
"""


def cost(*values: object) -> dict:
    """What a stage took."""
    return dict(zip(COSTS, values, strict=True))


def outcomes(
    means: dict[str, float],
    rng: np.random.Generator,
    loss: str = "bce",
    variant: str = "ell-relative",
) -> list[Outcome]:
    """Every selection on every target and seed: gap reductions about `means`, in percent."""
    rows = []
    for selection, mean in means.items():
        scored = selection != "random"
        for k, target in enumerate(TARGETS):
            for seed in range(SEEDS):
                gap = mean + (6, -9, 3)[k] + 11 * rng.standard_normal()
                before, reference = 0.062 + 0.01 * k, 0.021
                path = 1 - gap / 100 * np.array([0, 0.45, 0.8, 1])
                rows.append(
                    Outcome(
                        selection, target, seed, float(gap),
                        [float(reference + (before - reference) * max(p, 0.02)) for p in path],
                        float(0.8 - mean / 30 + rng.standard_normal()),
                        loss if scored else "", variant if scored else "",
                    )
                )  # fmt: skip
    return rows


def findings(**changes: object) -> Findings:
    """A complete set of findings; keyword arguments replace its parts."""
    rng = np.random.default_rng(7)
    main = outcomes({"helpful": 44.0, "random": 3.0, "harmful": -160.0}, rng)
    others = [
        o
        for loss in ("bce", "ber")
        for shift, variant in zip((-6, -2, 0, -14), VARIANTS, strict=True)
        if (loss, variant) != ("bce", "ell-relative")
        for o in outcomes({"helpful": 43.0 + shift - 4 * (loss == "ber")}, rng, loss, variant)
    ]
    made = Findings(
        title="Targeted fine-tuning of a neural receiver",
        question="Which training slots help the receiver where it is furthest from the genie?",
        task="A 19,604-parameter DeepRx was trained on 4,080 slots, every slot was scored for its "
        "influence on the 3 worst evaluation slots, and the receiver was fine-tuned for 3 steps of "
        "24 slots, once per target, selection and seed.",
        metric=MetricInfo("BER", "genie-aided LMMSE", "LS + LMMSE", "SNR [dB]", log=True),
        headline=Headline("bce", "ell-relative", noun="slots", pool=50, steps=3),
        descriptions={"harmful": "the 50 most harmful slots, by gradient ascent,"},
        outcomes=main + others,
        targets=_targets(),
        evaluation=_evaluation(rng),
        axis_curves=_axis_curves(),
        scores=_scores(rng),
        top_samples=_top(rng),
        ritz=_ritz(rng),
        solves=[
            {"target": i, "loss": "bce", "status": "converged"}
            | {"steps": 61 + i % 7, "residual": 8.4e-7}
            for i in TARGETS
        ],
        training=_training(rng),
        costs=[
            cost("data", 26, 2.1, 3.9, 153_000_000),
            cost("train", 1, 38.4, 38.2, 410_000),
            cost("evaluate", 6, 3.3, 6.0, 62_000),
            cost("curvature", 20, 23.2, 44.8, 1_630_000),
            cost("gradients", 16, 7.4, 14.1, 880_000),
            cost("scores", 1, 0.4, 0.4, 390_000),
            cost("actions", 270, 16.2, 31.0, 310_000),
        ],
        published=[
            Published("targeted fine-tuning paper, Table 1 (800k samples)", *row)
            for row in (
                ("bce", "classic", "helpful", 11.3, 41.9),
                ("bce", "ell-relative", "helpful", 47.8, 8.5),
                ("ber", "ell-relative", "helpful", 35.2, 10.1),
            )
        ],
        deviations=[
            "Reconstruction: the capacity-like loss weights each slot by log₂(1 + SNR).",
            "Scale: 4 resource blocks and 4,080 training slots instead of 26 and 799,968.",
        ],
        warnings=[
            "2 of 4,080 Newfluence denominators were not positive; those slots are unscored."
        ],
        quarantined={"train": [1207]},
        provenance=Provenance(
            CONFIG,
            "distinf run runs/receiver/config.yaml",
            "9d0f6c2ab1",
            {"distinf": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
            {"processor": "2 cores", "workers": "2", "accelerator": "none"},
            {"run": 0},
        ),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def no_difference() -> Findings:
    """Findings whose helpful and random slots do equally well."""
    rng = np.random.default_rng(11)
    return findings(outcomes=outcomes({"helpful": 5.0, "random": 3.0}, rng))


def _targets() -> list[Target]:
    rows = ((14.2, "TDL-A", 0.062), (11.7, "TDL-E", 0.072), (16.9, "TDL-A", 0.082))
    return [
        Target(i, ber, (ber - 0.021) / 0.021, 0.021, snr, {"channel": model, "delay [ns]": 188})
        for i, (snr, model, ber) in zip(TARGETS, rows, strict=True)
    ]


def _evaluation(rng: np.random.Generator) -> EvaluationPoints:
    ids_E = np.arange(600)
    snr_E = rng.uniform(0, 20, 600)
    gap_E = np.exp(0.55 * rng.standard_normal(600) + 0.03 * snr_E - 1.2)
    for target in _targets():
        gap_E[target.id], snr_E[target.id] = target.gap, target.axis or 0
    eligible_E = snr_E < 17
    gap_E[eligible_E & ~np.isin(ids_E, TARGETS)] = np.minimum(gap_E, 1.8)[
        eligible_E & ~np.isin(ids_E, TARGETS)
    ]
    return EvaluationPoints(ids_E, gap_E, snr_E, eligible_E, "genie BER of at least 0.005")


def _axis_curves() -> AxisCurves:
    x = np.arange(0.5, 20, 1.0)
    genie = 0.26 * np.exp(-0.21 * x) / (1 + np.exp(x - 17))
    factors = {"baseline": 2.6, "before": 1.75, "random": 1.72, "helpful": 1.5, "reference": 1.0}
    curves = {
        k: np.minimum(0.5, genie * (1 + (f - 1) * (0.3 + x / 16))) for k, f in factors.items()
    }
    curves["reference"][-1] = 0.0
    return AxisCurves(x.tolist(), [30] * 20, {k: y.tolist() for k, y in curves.items()})


def _scores(rng: np.random.Generator) -> list[ScoreSet]:
    scale = dict(zip(VARIANTS, (0.4, 0.02, 0.05, 0.3), strict=True))
    return [
        ScoreSet(
            loss, v, {i: s * rng.standard_t(3, 4080) + 0.1 * s for i in TARGETS},
            2 if v == "newfluence" else 0,
        )
        for loss in ("bce", "ber")
        for v, s in scale.items()
    ]  # fmt: skip


def _top(rng: np.random.Generator) -> list[dict]:
    rows = []
    for target in TARGETS:
        for rank in range(1, 51):
            for sign in (1, -1):
                columns = {
                    "SNR [dB]": round(float(rng.uniform(0, 20)), 1),
                    "channel": str(rng.choice(["TDL-B", "TDL-C", "TDL-D"])),
                    "loss": float(rng.uniform(0.02, 0.4)),
                }
                score = sign * 0.9 / rank**0.4
                own = {"target": target, "rank": sign * rank, "id": int(rng.integers(4080))}
                rows.append(own | {"score": score, "columns": columns})
    return rows


def _ritz(rng: np.random.Generator) -> Ritz:
    sizes = 18 * np.exp(-0.42 * np.arange(20)) + 0.004
    signs = np.where(np.isin(np.arange(20), (7, 13, 16, 18)), -1, 1)
    residuals = np.geomspace(1e-9, 3e-2, 20) * rng.uniform(0.5, 2, 20)
    return Ritz(
        (sizes * signs).tolist(), residuals.tolist(), 10, 0.01, 0.0021, 61.3,
        "their size is used", 1, 3.1e-14, 2.8e-7,
    )  # fmt: skip


def _training(rng: np.random.Generator) -> TrainingCurve:
    steps = np.arange(400)
    loss = 0.16 + 0.55 * np.exp(-steps / 70) + 0.02 * rng.standard_normal(400)
    return TrainingCurve(steps.tolist(), loss.tolist(), "capacity-weighted BCE")
