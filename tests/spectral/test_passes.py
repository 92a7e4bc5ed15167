"""How the gradients stage takes its gradients, and at which precision the stages run."""

import numpy as np
import pytest

from distinf.spectral import curvature, gradients, train
from tests.support.partial import points_config, run_until

REFINED = {
    "curvature": {"refine": 1, "refine_tolerance": 0.5},
    "scores": {"damping": 0.5, "negative": "keep"},
}
POISONED = {
    "task": "tests.support.blobs_task:poisoned",
    "train": {"steps": 0},
    "curvature": {"steps": 2, "keep": 2, "probes": 1},
}
LOW = {"precision": "bfloat16"}
VMAP = {"method": "vmap"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(name, last stage, settings) -> the session of that run, carried out once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def session(name, until="gradients", **changes):
        if name not in made:
            made[name] = run_until(until, points_config(folder / name, **changes))
        return made[name]

    return session


def projections(session):
    return gradients.projected(session, 0, gradients.scored_rows(session.outline))


def same_projections(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4 * np.abs(values).max())


def test_hooks_store_the_same_projections_as_vmap(run):
    found = projections(run("hooks", **REFINED, gradients={"method": "hooks"}))
    assert "solved" in found
    same_projections(found, projections(run("vmap", **REFINED, gradients=VMAP)))


def test_a_poisoned_row_is_marked_and_its_numbers_are_not_stored(run):
    session = run("poisoned hooks", **POISONED, gradients={"method": "hooks"})
    found = projections(session)
    assert gradients.quarantined_rows(session) == [7]
    assert np.flatnonzero(~found["finite"]).tolist() == [7]
    assert all(np.all(values[7] == 0) for values in found.values())
    same_projections(found, projections(run("poisoned vmap", **POISONED, gradients=VMAP)))


@pytest.mark.parametrize("method", ["hooks", "vmap"])
def test_gradients_in_bfloat16_are_close_and_stored_as_float32(run, method):
    exact = projections(run("poisoned vmap", **POISONED, gradients=VMAP))
    low = projections(run(f"low {method}", **POISONED, gradients={"method": method, **LOW}))
    assert {name: a.dtype for name, a in low.items()} == {n: a.dtype for n, a in exact.items()}
    assert low["finite"].tolist() == exact["finite"].tolist()
    assert 0.99 < np.corrcoef(low["sqnorm"], exact["sqnorm"])[0, 1] < 1 - 1e-9


def test_products_in_bfloat16_change_the_ritz_values_a_little(run):
    changes = {**POISONED, "curvature": {**POISONED["curvature"], **LOW}}
    low = curvature.stored_pairs(run("low products", until="curvature", **changes))
    exact = curvature.stored_pairs(run("poisoned vmap", **POISONED))
    assert low.vectors.dtype == exact.vectors.dtype
    assert 1e-5 < float((low.values[0] / exact.values[0] - 1).abs()) < 0.05


def test_training_in_bfloat16_keeps_float32_weights_close_to_the_exact_ones(run):
    low = train.trained_model(run("low training", until="train", train=LOW)).state_dict()
    exact = train.trained_model(run("vmap", **REFINED)).state_dict()
    for name, values in exact.items():
        assert low[name].dtype == values.dtype
        assert 0 < float((low[name] - values).abs().max()) < 0.1
