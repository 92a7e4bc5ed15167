"""The receiver study end to end, tiny: real Sionna slots, every stage, both kinds of curvature."""

import numpy as np
import pytest

from distinf.numerics.variants import VARIANTS
from distinf.stages.basis import curvature, evaluate, results
from distinf.stages.basis.session import split_units
from tests.support.runs import all_scores, run_points, same_bits

pytest.importorskip("sionna", reason="generating slots needs distinf[wireless]")

TINY = {
    "task": "receiver",
    "settings": {
        "scenario": {
            "prbs": 1,
            "snr_db": [0, 15],
            "train_models": ["TDL-B", "CDL-C"],
            "evaluation_models": ["TDL-A"],
            "train_slots": 96,
            "evaluation_slots": 48,
            "frames_per_unit": 1,
        },
        "model": {"widths": [4, 6]},
    },
    "train": {"steps": 4, "batch_size": 16, "checkpoint_every": 2},
    "targets": {"count": 2, "min_reference": 1e-3},
    "curvature": {"steps": 6, "keep": 3, "samples": 24, "probes": 2},
    "gradients": {"rows_per_unit": 48, "chunk": 8},
    "scores": {"damping": 0.01, "negative": "absolute"},
    "actions": {"pool": 24, "batch_size": 12, "seeds": 2, "non_targets": 12},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("receiver") / "tiny", **TINY)


def test_every_variant_of_both_losses_is_scored(finished):
    found = all_scores(finished)
    assert set(found) == {f"{loss}.{variant}" for loss in ("bce", "ber") for variant in VARIANTS}
    assert all(values.shape == (2, 96) for values in found.values())
    assert np.isfinite(found["bce.ell-relative"]).all()
    assert not np.allclose(found["bce.classic"], found["ber.classic"])


def test_targets_have_the_largest_relative_gap_above_the_threshold(finished):
    columns = evaluate.evaluation(finished)
    chosen = evaluate.chosen_targets(finished)
    with np.errstate(divide="ignore"):
        gaps = (columns["ber"] - columns["genie_ber"]) / columns["genie_ber"]
    eligible = columns["genie_ber"] >= 1e-3
    assert gaps[chosen.ids].tolist() == sorted(gaps[eligible], reverse=True)[:2]
    assert columns["baseline_ber"].mean() > columns["genie_ber"].mean()


def test_a_stored_unit_is_what_its_seed_gives(finished):
    unit = split_units(finished.outline, "train")[2]
    again = finished.task.generate("train", unit.start, unit.stop)
    assert same_bits(finished.arrays(unit), dict(again))


def test_gap_reduction_is_equation_10(finished):
    columns = evaluate.evaluation(finished)
    outcome = results.headline_outcomes(finished)[0]
    genie = float(columns["genie_ber"][outcome.target])
    before, after = outcome.metric_by_step[0], outcome.metric_by_step[-1]
    gap_before, gap_after = (before - genie) / genie, (after - genie) / genie
    assert outcome.gap_reduction_pct == pytest.approx(100 * (gap_before - gap_after) / gap_before)
    assert before == pytest.approx(float(columns["ber"][outcome.target]))


def test_the_report_marks_what_is_reconstructed(finished):
    page = finished.blobs.get("report/index.html").decode()
    assert "a reconstruction of DeepRx MIMO" in page
    assert "TDL-A" in page


def test_gauss_newton_has_no_negative_ritz_value(tmp_path):
    kind = {"kind": "gauss-newton", "residuals": "products"}
    session = run_points(tmp_path / "ggn", **{**TINY, "curvature": {**TINY["curvature"], **kind}})
    pairs = curvature.stored_pairs(session)
    assert (pairs.values > -1e-6 * pairs.values.abs().max()).all()
    assert pairs.residuals.max() < pairs.values.max()


def test_fresh_samples_at_every_step_are_not_symmetric_and_say_so(finished, tmp_path):
    settings = {**TINY["curvature"], "fresh": True}
    session = run_points(tmp_path / "fresh", **{**TINY, "curvature": settings})
    fixed = curvature.stored_pairs(finished).asymmetry
    assert fixed < 1e-4 < 1e-2 < curvature.stored_pairs(session).asymmetry
