"""The exact solve of the mean Hessian, against dense algebra."""

import pytest
import torch

import distinf
from distinf.errors import InputError
from distinf.numerics.estimators import exact
from distinf.numerics.estimators.exact import ExactSettings
from tests.benchmarks.mlp_problem import problem
from tests.numerics.cases import symmetric

DIM, DAMPING = 24, 5.0


@pytest.fixture(scope="module")
def case():
    generator = torch.Generator().manual_seed(2)
    train = torch.randn(15, DIM, generator=generator, dtype=torch.float64)
    query = torch.randn(4, DIM, generator=generator, dtype=torch.float64)
    matrix = symmetric(DIM) @ symmetric(DIM)
    return train, query, matrix, torch.linalg.inv(matrix + DAMPING * torch.eye(DIM).double())


@pytest.fixture(params=["matrix", "product made dense", "product"])
def curvature(case, request, monkeypatch):
    if request.param == "product":
        monkeypatch.setattr(exact, "DENSE", 0)
    return case[2] if request.param == "matrix" else case[2].mv


def test_every_variant_matches_dense_algebra(case, curvature):
    train, query, _, inverse = case
    classic = query @ inverse @ train.T
    own = (train @ inverse * train).sum(1)
    expected = {
        "classic": classic,
        "ell-relative": classic / own.sqrt(),
        "theta-relative": classic / (train @ inverse).norm(dim=1),
        "newfluence": classic / (1 - own / len(train)),
    }
    for variant, dense in expected.items():
        settings = ExactSettings(DAMPING, variant)
        found = distinf.influence(train, query, settings, curvature=curvature)
        torch.testing.assert_close(found, dense, rtol=1e-6, atol=1e-8)


def test_blocks_are_of_one_operator(case, curvature):
    train, query, _, inverse = case
    blocks = [{"a": rows[:, :7], "b": rows[:, 7:]} for rows in (train, query)]
    found = distinf.influence(*blocks, "exact", curvature=curvature, damping=DAMPING)
    assert list(found) == ["all"]
    torch.testing.assert_close(found["all"], query @ inverse @ train.T, rtol=1e-6, atol=1e-8)


def test_the_default_damping_is_a_hundredth_of_the_largest_eigenvalue(case, curvature):
    train, query, matrix, _ = case
    damping = 0.01 * float(torch.linalg.eigvalsh(matrix).abs().max())
    inverse = torch.linalg.inv(matrix + damping * torch.eye(DIM).double())
    found = distinf.influence(train, query, "exact", curvature=curvature)
    torch.testing.assert_close(found, query @ inverse @ train.T, rtol=1e-6, atol=1e-8)


def test_an_indefinite_operator_is_refused_in_one_line(case, monkeypatch):
    train, query, _, _ = case
    indefinite = symmetric(DIM)
    for curvature in (indefinite, indefinite.mv):
        for dense in (exact.DENSE, 0):
            monkeypatch.setattr(exact, "DENSE", dense)
            with pytest.raises(InputError, match=r"^[^\n]*not positive definite at damping 0.3,"):
                distinf.influence(train, query, "exact", curvature=curvature, damping=0.3)


def test_what_is_too_large_slow_or_no_operator_is_refused_in_one_line(case, monkeypatch):
    train, query, matrix, _ = case

    def refused(curvature, message, settings="exact"):
        with pytest.raises(InputError, match=message):
            distinf.influence(train, query, settings, curvature=curvature)

    refused(None, r"needs curvature=H, the mean Hessian \[P, P\] or v -> H v")
    refused(matrix[:9, :9], r"curvature is \(9, 9\), but gradients have 24 entries")
    refused(matrix.triu(), "the curvature is not symmetric, or not finite")
    refused(matrix * float("nan"), "the curvature is not symmetric, or not finite")
    monkeypatch.setattr(exact, "DENSE", 0)
    few = ExactSettings(DAMPING, steps=2)
    refused(matrix.mv, "did not reach a residual of 1e-08 in 2 products; raise its steps", few)
    monkeypatch.setattr(exact, "MOST", 23)
    refused(matrix, "solves for at most 23 parameters, and there are 24; take blocks")


def test_it_is_the_exact_solve_of_the_benchmarks_problem():
    """227 parameters, made positive by a large damping."""
    case = problem()
    least = -float(torch.linalg.eigvalsh(case.hessian_PP)[0])
    damped = case.hessian_PP + 2 * least * torch.eye(case.layout.size).double()
    expected = case.query_QP @ torch.linalg.solve(damped, case.train_NP.T)
    found = distinf.influence(
        case.train_NP, case.query_QP, "exact", curvature=case.matvec, damping=2 * least
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
