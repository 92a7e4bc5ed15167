"""The sign convention, and what scores predict, against finite differences and retraining."""

import pytest
import torch
from torch import nn

from distinf.collective import Collective
from distinf.numerics.capture import flat_gradients
from distinf.numerics.curvature import hessian_product, sharded_mean_product
from distinf.numerics.krylov import arnoldi
from distinf.numerics.parameters import Layout
from distinf.numerics.variants import Coordinates, scores, spectrum
from tests.numerics.cases import CrossEntropy, classifier


def margin(model, batch):
    """A query loss that is not the training loss: the negative margin of the true class."""
    logits = model(batch["x"])
    true = logits.gather(1, batch["y"][:, None])[:, 0]
    return torch.logsumexp(2 * logits, 1) - 2 * true + 0.1 * logits.square().sum(1)


@pytest.mark.parametrize("query_loss", [CrossEntropy(), margin], ids=["same-loss", "cross-loss"])
def test_a_positive_score_means_that_a_small_step_on_the_sample_lowers_the_querys_loss(query_loss):
    model, batch = classifier(20)
    model.eval()
    _, queries = classifier(3, seed=9)
    layout = Layout.of(model)
    product = hessian_product(model, CrossEntropy(), [batch], layout)
    matvec = sharded_mean_product({0: product}, count=20, collective=Collective())
    dim = layout.size
    pairs = arnoldi(matvec, dim, steps=dim, keep=20, dtype="float64", probes=10)
    damping = 2.0 * float(pairs.values.abs().max())
    damped = spectrum(pairs.values, damping, dim=dim, trace=pairs.trace)
    train = flat_gradients(model, CrossEntropy(), batch, layout)
    query = flat_gradients(model, query_loss, queries, layout)
    found = scores(Coordinates.of(train, query, pairs.vectors), damped).scores_QN

    basis = pairs.vectors
    inside = train @ basis.T
    steps = (inside / (damped.values_K + damping)) @ basis
    steps += (train - inside @ basis) / damped.rest
    start, size = layout.gather(model), 1e-5
    with torch.no_grad():
        before = query_loss(model, queries)
        for i in range(20):
            layout.scatter_(model, start - size * steps[i])
            drop = (before - query_loss(model, queries)) / size
            torch.testing.assert_close(drop, found[:, i], rtol=1e-2, atol=1e-6)
    assert (found > 0).any()
    assert (found < 0).any()


def test_newfluence_is_closer_to_exact_leave_one_out_than_classic():
    """Least squares with residuals near +-1, where g g^T is the sample's Hessian x x^T."""
    generator = torch.Generator().manual_seed(0)
    count, dim = 40, 4
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    flips = torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
    y = x.sum(1) + flips
    x_query = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    train, query = {"x": x, "y": y}, {"x": x_query, "y": x_query.sum(1) + 2.0}
    fitted = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    model = nn.Linear(dim, 1, bias=False).double()
    layout = Layout.of(model)
    layout.scatter_(model, fitted)

    def squared(m, b):
        return 0.5 * (m(b["x"])[:, 0] - b["y"]).square()

    product = hessian_product(model, squared, [train], layout)
    matvec = sharded_mean_product({0: product}, count=count, collective=Collective())
    pairs = arnoldi(matvec, dim, steps=dim, keep=dim, dtype="float64", probes=0)
    damped = spectrum(pairs.values, 0.0, dim=dim)
    query_QP = flat_gradients(model, squared, query, layout)
    train_NP = flat_gradients(model, squared, train, layout)
    coordinates = Coordinates.of(train_NP, query_QP, pairs.vectors)
    moves = []
    for i in range(count):
        others = torch.arange(count) != i
        refit = torch.linalg.lstsq(x[others], y[others, None]).solution[:, 0]
        moves.append(refit - fitted)
    # Leaving a helpful sample out raises the query's loss: the same sign as the score.
    exact = count * query_QP @ torch.stack(moves, 1)
    errors = {
        variant: float((scores(coordinates, damped, variant).scores_QN - exact).abs().mean())
        for variant in ("classic", "newfluence")
    }
    assert errors["newfluence"] < 0.7 * errors["classic"]
    assert errors["classic"] < 0.5 * float(exact.abs().mean())
