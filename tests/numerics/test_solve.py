from math import nan

import pytest
import torch

from distinf.errors import InputError
from distinf.numerics.krylov import arnoldi
from distinf.numerics.solve import RefineSettings, Status, refine
from distinf.numerics.variants import spectrum
from tests.numerics.cases import symmetric
from tests.support.threads import run_ranks

DIM = 80


def positive(dim=DIM):
    matrix = symmetric(dim)
    return matrix @ matrix / 10.0


def setting(matrix, damping, keep=10, policy="keep"):
    pairs = arnoldi(matrix.mv, len(matrix), steps=30, keep=keep, dtype="float64", probes=10)
    placed = spectrum(pairs.values, damping, dim=len(matrix), trace=pairs.trace, policy=policy)
    return pairs, placed


@pytest.mark.parametrize("matrix", [positive(), symmetric(DIM)], ids=["definite", "indefinite"])
def test_the_solution_matches_a_dense_solve(matrix):
    pairs, placed = setting(matrix, 0.3)
    rhs = torch.randn(DIM, generator=torch.Generator().manual_seed(0)).double()
    found = refine(matrix.mv, rhs, pairs.vectors, placed, RefineSettings(1e-10, dtype="float64"))
    damped = matrix + 0.3 * torch.eye(DIM).double()
    assert found.status == Status.CONVERGED
    torch.testing.assert_close(found.x, torch.linalg.solve(damped, rhs), rtol=1e-7, atol=1e-8)
    true = float((damped @ found.x - rhs).norm() / rhs.norm())
    assert found.residual == pytest.approx(true, rel=1e-6)
    assert found.residual <= 1e-10
    assert found.negative_curvature == bool(torch.linalg.eigvalsh(damped)[0] < 0)


def test_the_ritz_pairs_save_products():
    matrix = positive()
    rhs = torch.randn(DIM, generator=torch.Generator().manual_seed(0)).double()
    precise = RefineSettings(1e-6, dtype="float64")
    pairs, placed = setting(matrix, 1e-2, keep=12)
    with_pairs = refine(matrix.mv, rhs, pairs.vectors, placed, precise)
    none = spectrum(torch.empty(0), 1e-2, dim=DIM)
    without = refine(matrix.mv, rhs, pairs.vectors[:0], none, precise)
    assert with_pairs.status == without.status == Status.CONVERGED
    assert with_pairs.steps < 0.7 * without.steps


def test_all_pairs_of_an_indefinite_operator_solve_it_in_two_steps():
    """S (H + damping) S then has the eigenvalues -1 and +1 only."""
    matrix = symmetric(20)
    pairs = arnoldi(matrix.mv, 20, steps=20, keep=20, dtype="float64", probes=0)
    placed = spectrum(pairs.values, 0.3, dim=20, policy="keep")
    rhs = torch.ones(20).double()
    found = refine(matrix.mv, rhs, pairs.vectors, placed, RefineSettings(1e-9, dtype="float64"))
    assert (found.status, found.steps) == (Status.CONVERGED, 2)


def test_a_dropped_pair_is_left_out_of_the_preconditioner_only():
    matrix = symmetric(DIM)
    pairs, placed = setting(matrix, 0.3, policy="drop")
    assert len(placed.values_K) < 10
    rhs = torch.ones(DIM).double()
    found = refine(matrix.mv, rhs, pairs.vectors, placed, RefineSettings(1e-8, dtype="float64"))
    damped = matrix + 0.3 * torch.eye(DIM).double()
    torch.testing.assert_close(found.x, torch.linalg.solve(damped, rhs), rtol=1e-5, atol=1e-6)


def test_failures_are_outcomes_that_name_the_next_knob():
    rhs = torch.randn(DIM, generator=torch.Generator().manual_seed(0)).double()
    short = RefineSettings(1e-10, steps=3, dtype="float64")
    pairs, placed = setting(positive(), 1e-3, keep=2)
    stagnated = refine(positive().mv, rhs, pairs.vectors, placed, short)
    assert (stagnated.status, stagnated.steps) == (Status.STAGNATED, 3)
    assert stagnated.residual > 1e-10
    assert "raise steps" in stagnated.message
    pairs, placed = setting(symmetric(DIM), 1e-3, keep=2)
    indefinite = refine(symmetric(DIM).mv, rhs, pairs.vectors, placed, short)
    assert indefinite.status == Status.INDEFINITE
    assert indefinite.negative_curvature
    assert "damping" in indefinite.message


def test_a_singular_system_that_has_no_solution_is_not_called_converged():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0])).double()
    pairs = arnoldi(matrix.mv, 3, steps=3, keep=1, dtype="float64", probes=0)
    placed = spectrum(pairs.values, 0.5, dim=3)
    shifted = matrix - 0.5 * torch.eye(3).double()
    double = RefineSettings(dtype="float64")
    found = refine(shifted.mv, torch.ones(3).double(), pairs.vectors, placed, double)
    assert found.status == Status.STAGNATED
    assert found.residual > 0.1


def test_a_zero_right_hand_side_is_solved_and_a_nan_is_refused():
    pairs, placed = setting(positive(), 0.1)
    zero = refine(positive().mv, torch.zeros(DIM).double(), pairs.vectors, placed)
    assert (zero.status, zero.residual, zero.steps) == (Status.CONVERGED, 0.0, 0)
    assert not zero.x.any()
    with pytest.raises(InputError, match="right-hand side is not finite"):
        refine(positive().mv, torch.full((DIM,), nan).double(), pairs.vectors, placed)
    with pytest.raises(InputError, match="step 0: the curvature product is not finite"):
        refine(lambda v: v * nan, torch.ones(DIM).double(), pairs.vectors, placed)


def test_float32_solves_have_the_same_bits_at_any_number_of_ranks():
    matrix = positive().float()
    pairs = arnoldi(matrix.mv, DIM, steps=30, keep=8, probes=5)
    placed = spectrum(pairs.values, 0.1, dim=DIM, trace=pairs.trace)
    rhs = torch.randn(DIM, generator=torch.Generator().manual_seed(0))
    expected = refine(matrix.mv, rhs, pairs.vectors, placed)
    assert expected.status == Status.CONVERGED
    for size in (2, 3):
        for found in run_ranks(
            size, lambda c: refine(matrix.mv, rhs, pairs.vectors, placed, collective=c)
        ):
            assert torch.equal(found.x, expected.x)
            assert found.residual == expected.residual
