"""Targets refined by default: which, at most how many products that takes, and what is said."""

import numpy as np
import pytest
import torch

from distinf.engine.run import open_session
from distinf.numerics.capture import flat_gradients
from distinf.numerics.metrics import spearman
from distinf.numerics.parameters import Layout
from distinf.numerics.variants import damped_inverse
from distinf.report.spectral.terminal import summary
from distinf.spectral import curvature, queries, solves, spectra, train
from tests.spectral.test_seen_complement import dense
from tests.support.partial import points_config, run_until
from tests.support.runs import all_scores, run_points

DAMPING = 0.5
POSITIVE = {
    "curvature": {"steps": 40, "keep": 4, "samples": 240, "probes": 6},
    "scores": {"damping": DAMPING, "negative": "refuse"},
    "targets": {"count": 12, "per_condition": 0},
}


def steps_of(session):
    return [record["summary"]["steps"] for record in solves.solves(session).values()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("runs") / "one", **POSITIVE)


def exact(session):
    """fp64 [T, N]: the targets' classic scores by the dense solve."""
    hessian_PP, _ = dense(session)
    grads_NP = flat_of(session)
    targets_TP = queries.query_gradients(session)["cross-entropy"].double()
    return (
        targets_TP
        @ torch.linalg.inv(hessian_PP + DAMPING * torch.eye(len(hessian_PP)))
        @ grads_NP.T
    )


def flat_of(session):
    """fp64 [N, P]: every training row's gradient."""
    model = train.trained_model(session).double()
    batch = session.batch("train", np.arange(session.outline.training_rows))
    loss = session.task.losses["cross-entropy"]
    layout = Layout.of(model)
    return flat_gradients(model, loss, {**batch, "x": batch["x"].double()}, layout)


def test_as_many_as_a_quarter_of_the_curvatures_products_do_for_are_refined(finished):
    assert solves.curvature_products(finished.outline) == 40 + 4 + 6
    assert solves.most_products(finished.outline) == 12
    taken = steps_of(finished)
    assert 1 < len(taken) <= 12
    assert sum(taken) <= 12
    assert sum(taken) == 12 or len(taken) == 12  # the products are spent, or nothing is left
    assert solves.converged_solutions(finished)


def test_what_is_refined_ranks_as_the_dense_solve_does(finished):
    exact_TN, found_TN = (
        exact(finished),
        torch.from_numpy(all_scores(finished)["cross-entropy.classic"]),
    )
    refined = [rank for rank, _ in solves.converged_solutions(finished)]
    for rank in refined:
        assert spearman(found_TN[rank], exact_TN[rank]) >= 0.995
    plain = spectra.damped_spectrum(finished)
    vectors_KP, grads_NP = curvature.stored_pairs(finished).vectors, flat_of(finished)
    for rank in refined:  # the pairs alone are further off
        g_P = queries.query_gradients(finished)["cross-entropy"][rank].double()
        unrefined_N = grads_NP @ damped_inverse(g_P, vectors_KP.double(), plain)
        assert spearman(unrefined_N, exact_TN[rank]) < spearman(found_TN[rank], exact_TN[rank])


def test_the_cost_and_what_the_others_are_is_said(finished):
    done, products = len(solves.converged_solutions(finished)), sum(steps_of(finished))
    told = solves.told(finished)
    assert told.startswith(
        f"{done} of 12 rankings by target and loss are refined ({products} products"
    )
    assert "beside the curvature's 50" in told
    assert ("an approximation of (H + damping)⁻¹" in told) == (done < 12)
    assert told in summary(finished)
    assert told.split(", beside")[0] in finished.blobs.get("report/index.html").decode()


@pytest.mark.slow
def test_a_run_killed_between_two_solves_ends_with_the_same_bits(finished, tmp_path):
    """The second solve goes on from the directions of the first, read from its record."""
    config = points_config(tmp_path / "run", **POSITIVE)
    session = run_until("curvature", config)
    real, calls = solves._Solver.solve, []

    def once(solver, rhs_P, steps):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return real(solver, rhs_P, steps)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(solves._Solver, "solve", once)
        with pytest.raises(KeyboardInterrupt):
            run_until("queries", config, session)
    again = run_until("queries", config, open_session(config))
    ended, before = solves.converged_solutions(again), solves.converged_solutions(finished)
    assert list(ended) == list(before)
    assert all(np.array_equal(ended[key], before[key]) for key in before)


@pytest.mark.slow
def test_where_the_curvature_is_not_positive_none_is_refined_and_it_is_said(tmp_path):
    small = {"damping": 1e-3, "negative": "absolute"}
    more = {**POSITIVE["curvature"], "keep": 40}
    changes = {**POSITIVE, "scores": small, "curvature": more}
    session = run_until("queries", points_config(tmp_path / "run", **changes))
    assert float(curvature.stored_pairs(session).values.min()) < -1e-3
    assert solves.solves(session) == {}
    assert "No target is refined, since" in solves.told(session)
    assert "not safely positive with the damping 0.001" in solves.told(session)


def test_negative_curvature_outside_the_pairs_ends_it(tmp_path):
    small = {"damping": 1e-3, "negative": "absolute"}
    session = run_until("queries", points_config(tmp_path / "run", **{**POSITIVE, "scores": small}))
    assert float(curvature.stored_pairs(session).values.min()) > 0
    ends = [record["summary"] for record in solves.solves(session).values()]
    assert [end["negative_curvature"] for end in ends] == [False] * (len(ends) - 1) + [True]
    assert ends[-1]["status"] == "indefinite"
    assert "one was given up: residual" in solves.told(session)
    assert "negative curvature below damping 0.001" in solves.told(session)
    assert queries.is_done(session)


@pytest.mark.slow
def test_asking_for_a_number_solves_so_many_under_every_loss(tmp_path):
    asked = {
        **POSITIVE["curvature"],
        "refine": 2,
        "refine_agreement": 1.0,
        "refine_tolerance": 1e-5,
    }
    session = run_until(
        "scores", points_config(tmp_path / "run", **{**POSITIVE, "curvature": asked})
    )
    exact_TN, found_TN = (
        exact(session),
        torch.from_numpy(all_scores(session)["cross-entropy.classic"]),
    )
    assert list(solves.converged_solutions(session)) == [
        (rank, loss) for loss in session.outline.losses for rank in range(2)
    ]
    torch.testing.assert_close(
        found_TN[:2], exact_TN[:2], rtol=1e-3, atol=1e-4 * float(exact_TN.abs().max())
    )


def test_a_truncated_inverse_is_an_operator_of_its_own_and_not_refined(tmp_path):
    of_paper = {"damping": DAMPING, "negative": "refuse", "complement": "none"}
    config = points_config(tmp_path / "run", **{**POSITIVE, "scores": of_paper})
    session = open_session(config)
    assert solves.most_products(session.outline) == 0
    assert len(queries.units(session.outline)) == 1
    none = {**POSITIVE["curvature"], "refine": 0}
    plain = open_session(points_config(tmp_path / "0", **{**POSITIVE, "curvature": none}))
    assert session.keys["queries"] == plain.keys["queries"]
