"""Rankings that are stored by the way, against dense float64 algebra and one row at a time."""

import numpy as np
import pytest
import torch

from distinf.numerics.variants import damped_inverse
from distinf.spectral import baselines
from distinf.spectral.curvature import stored_pairs
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.spectra import damped_spectrum
from distinf.spectral.train import trained_model
from tests.support.partial import points_config, run_until

LOSS, ROWS = "cross-entropy", (0, 7, 239)


@pytest.fixture(scope="module", params=["hooks", "loop"])
def scored(request, tmp_path_factory):
    changes = {"gradients": {"method": request.param}, "scores": {"damping": 0.05}}
    out = tmp_path_factory.mktemp("runs") / request.param
    return run_until("scores", points_config(out, **changes))


def gradient(session, split, row):
    """(loss, fp64 [P]) of one row alone."""
    model = trained_model(session).double()
    batch = session.batch(split, np.array([row]))
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    value = session.task.losses[LOSS](model, batch).sum()
    grads = torch.autograd.grad(value, list(model.parameters()))
    return value.item(), torch.cat([g.reshape(-1) for g in grads])


def test_own_loss_norm_and_self_influence_are_those_of_one_row_alone(scored):
    own, pairs = baselines.own_columns(scored), stored_pairs(scored)
    assert {len(values) for values in own.values()} == {240}
    for row in ROWS:
        value, grad = gradient(scored, "train", row)
        solved = damped_inverse(grad, pairs.vectors.double(), damped_spectrum(scored))
        assert own["own_loss"][row] == pytest.approx(value, rel=1e-4)
        assert own["gradient_norm"][row] == pytest.approx(float(grad.norm()), rel=1e-4)
        assert own["self_influence"][row] == pytest.approx(float(grad @ solved), rel=1e-3)


def test_products_are_those_of_the_gradients_and_cosines_at_most_1(scored):
    found = baselines.products(scored, LOSS)
    assert np.abs(found["cosine"]).max() <= 1 + 1e-6
    for rank, target in enumerate(chosen_targets(scored).ids.tolist()):
        query = gradient(scored, "evaluation", target)[1]
        for row in ROWS:
            grad = gradient(scored, "train", row)[1]
            cosine = float(query @ grad / query.norm() / grad.norm())
            assert found["dot"][rank, row] == pytest.approx(float(query @ grad), rel=1e-3)
            assert found["cosine"][rank, row] == pytest.approx(cosine, rel=1e-3)


def test_a_task_without_stored_rows_has_no_conditions_to_rank_by(scored):
    assert baselines.conditions_of_rows(scored) == {}
