"""The scores stage: cut into row ranges, it gives what one piece gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distinf.config import load
from distinf.spectral import scores
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.gradients import projected
from distinf.spectral.queries import query_gradients
from distinf.spectral.session import Session
from distinf.spectral.spectra import damped_spectrum
from tests.support.partial import points_config, run_until
from tests.support.runs import ROOT, all_scores

FEW_PAIRS = {"scores": {"damping": 0.05, "negative": "absolute", "scaling": "paper"}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run_until("scores", points_config(tmp_path_factory.mktemp("runs") / "one", **FEW_PAIRS))


def test_row_ranges_give_the_scores_and_counts_of_one_piece(whole, tmp_path, monkeypatch):
    assert len(scores.units(whole.outline)) == 1
    expected, counts = all_scores(whole), scores.nonpositive_counts(whole)
    monkeypatch.setattr(scores, "ROWS_PER_UNIT", 70)
    cut = run_until("scores", points_config(tmp_path / "cut", **FEW_PAIRS))
    ranges = [(unit.start, unit.stop) for unit, _ in scores.units(cut.outline)]
    assert ranges == [(0, 120), (120, 240)]  # whole units of the gradients, which have 60 rows
    found = all_scores(cut)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert values.shape == (2, 240)
        np.testing.assert_allclose(found[name], values, rtol=1e-12)
    assert scores.nonpositive_counts(cut) == counts
    assert 0 < counts["cross-entropy.newfluence"] < 240


def test_one_variant_is_read_alone_and_is_that_of_the_training_loss(whole):
    found = scores.stored_scores(whole, "", "classic")
    assert found.tobytes() == all_scores(whole)["cross-entropy.classic"].tobytes()


def test_the_share_of_variance_outside_the_pairs_is_that_of_dense_algebra(whole):
    found = scores.outside_shares(whole)["cross-entropy"]
    columns = projected(whole, 0, 240)
    pairs, damped = stored_pairs(whole), damped_spectrum(whole)
    vectors_KP = pairs.vectors.double()
    query_QK = query_gradients(whole)["cross-entropy"].double() @ vectors_KP.T
    train_NK = torch.from_numpy(columns["ritz"]).double()
    inside = (query_QK / (damped.values_K + damped.damping)) @ train_NK.T
    classic = torch.from_numpy(scores.stored_scores(whole, "", "classic"))
    for target, share in enumerate(found):
        parts = [inside[target].var(), (classic - inside)[target].var()]
        assert share == pytest.approx(float(parts[1] / sum(parts)), rel=1e-4)
        assert 0.01 < share < 0.99
    truncated = run_until("scores", points_config(
        Path(whole.blobs.root).parent / "truncated",
        scores={"damping": 0.05, "negative": "absolute", "complement": "none"},
    ))  # fmt: skip
    assert scores.outside_shares(truncated) == {"cross-entropy": [0.0, 0.0]}


def test_memory_of_a_unit_does_not_grow_with_the_training_set():
    """What plan says of 800k rows at the settings of Tuononen et al.: 100 MB a unit at most."""
    config = load(str(ROOT / "configs" / "receiver" / "paper-800k.yaml"))
    planned = scores.units(Session(config.context("nowhere"), torch.device("cpu")).outline)
    assert sum(unit.stop - unit.start for unit, _ in planned) == 799_968
    assert max(cost.host_bytes for _, cost in planned) < 100e6
