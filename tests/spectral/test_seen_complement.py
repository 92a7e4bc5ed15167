"""The spectral recipe's complement as gradients see it: what is stored, and what it costs."""

import json
import math

import numpy as np
import pytest
import torch

from distinf.engine.run import open_session
from distinf.numerics.capture import flat_gradients
from distinf.numerics.curvature import hessian_product
from distinf.numerics.parameters import Layout
from distinf.report.formats import number
from distinf.spectral import curvature, mean_product, spectra, train
from tests.support.partial import points_config, run_until
from tests.support.runs import run_points

MANY = {"curvature": {"probes": 7}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_until("queries", points_config(tmp_path_factory.mktemp("runs") / "one", **MANY))


def dense(session):
    """The mean Hessian over the drawn rows in float64, and their gradients."""
    model = train.trained_model(session).double()
    layout = Layout.of(model)
    batch = session.batch("train", mean_product.drawn_rows(session))
    batch = {**batch, "x": batch["x"].double()}
    loss = session.task.losses["cross-entropy"]
    matvec = hessian_product(model, loss, [batch], layout)
    rows = torch.eye(layout.size).double()
    hessian_PP = torch.stack([matvec(row) for row in rows]) / len(batch["x"])
    return hessian_PP, flat_gradients(model, loss, batch, layout)


def test_the_stored_products_are_those_of_dense_algebra_on_rows_of_the_curvature(finished):
    hessian_PP, grads_NP = dense(finished)
    pairs = curvature.stored_pairs(finished)
    inside_KP = pairs.vectors.double()
    rest_NP = grads_NP - grads_NP @ inside_KP.T @ inside_KP
    every = torch.stack([(rest_NP @ hessian_PP * rest_NP).sum(1), rest_NP.square().sum(1)], 1)
    found = torch.stack([pairs.seen.products_R, pairs.seen.sqnorms_R], 1)
    nearest = torch.cdist(found, every).argmin(1)
    assert len(set(nearest.tolist())) == 7  # seven rows, each once
    torch.testing.assert_close(found, every[nearest], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        pairs.seen.coordinates_RK, (grads_NP @ inside_KP.T)[nearest], rtol=1e-3, atol=1e-5
    )
    used = spectra.damped_spectrum(finished)
    mean = float(every[nearest].sum(0)[0] / every[nearest].sum(0)[1])
    assert used.complement == pytest.approx(abs(mean), rel=1e-3)
    inside = float(torch.einsum("kp,pq,kq->", inside_KP, hessian_PP, inside_KP))
    by_trace = (float(hessian_PP.trace()) - inside) / (len(hessian_PP) - len(inside_KP))
    assert used.complement != pytest.approx(by_trace, rel=0.1)


def test_to_take_it_later_costs_its_products_and_no_step(tmp_path):
    def counted(session):
        done = session.ledger("curvature").committed_ids()
        units = {
            "steps": curvature.step_units(session.outline),
            "traces": curvature.probe_units(session.outline),
            "gradients": curvature.seen_units(session.outline),
        }
        return len(done), {name: {u.id for u in found} & done for name, found in units.items()}

    changes = {**MANY, "scores": {"complement": "mean"}}
    config = points_config(tmp_path / "run", **changes)
    session = run_until("queries", config)
    assert math.isfinite(curvature.stored_pairs(session).trace)
    before, found = counted(session)
    assert [*map(len, found.values())] == [8, 7, 0]
    config = points_config(tmp_path / "run", **MANY)
    later = open_session(config, accept=["scores.complement"])
    after, now = counted(run_until("queries", config, later))
    assert after == before + 7
    assert [*map(len, now.values())] == [8, 0, 7]  # no product for a trace that nobody asks for
    assert found["steps"] == now["steps"]


@pytest.mark.slow
def test_a_negative_one_is_refused_before_the_pass_or_made_absolute_and_said(tmp_path, monkeypatch):
    def negative(matvec, vectors_KP, gradient_P):
        one = torch.ones((), dtype=torch.float64)
        return -2.0 * one, one, torch.zeros(len(vectors_KP), dtype=torch.float64)

    monkeypatch.setattr(curvature, "seen_by", negative)
    config = points_config(tmp_path / "refused", scores={"negative": "refuse", "damping": 1.0})
    with pytest.raises(ValueError, match=r"mean eigenvalue of -2, .*set damping to 2.5 or more"):
        run_until("queries", config)
    session = run_points(tmp_path / "absolute")
    assert spectra.damped_spectrum(session).complement == 2.0
    told = json.loads(session.blobs.get("report/findings.json"))["deviations"]
    assert sum("see a mean eigenvalue of -2, which counts by its size" in d for d in told) == 1


@pytest.mark.slow
def test_a_row_without_a_finite_gradient_counts_for_nothing(tmp_path):
    changes = {"task": "tests.support.blobs_task:poisoned", "train": {"steps": 0}}
    changes |= {"curvature": {"probes": 240, "samples": 240}}
    seen = curvature.stored_pairs(
        run_until("curvature", points_config(tmp_path / "run", **changes))
    ).seen
    assert len(seen.products_R) == 240
    assert np.isfinite(seen.products_R.numpy()).all()


def test_the_page_has_its_error_and_what_single_gradients_see(tmp_path):
    """From the committed products, written out: a ratio's standard error, and each quotient."""
    session = run_points(tmp_path / "run", **MANY)
    stored = [session.arrays(unit) for unit in curvature.seen_units(session.outline)]
    products_R, squares_R = (np.array([one[k] for one in stored]) for k in ("product", "sqnorm"))
    each = np.sort(products_R / squares_R)
    left_R = products_R - products_R.sum() / squares_R.sum() * squares_R
    error = np.sqrt(7 * left_R.var(ddof=1)) / squares_R.sum()
    said = f"{number(error)}; 7 gradients: least, median and most {number(each[0])}, "
    said += f"{number(each[3])}, {number(each[6])}"
    assert said in session.blobs.get("report/index.html").decode()
