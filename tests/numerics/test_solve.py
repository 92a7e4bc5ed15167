from math import nan

import pytest
import torch

from distinf.errors import InputError
from distinf.numerics.krylov import arnoldi
from distinf.numerics.metrics import spearman
from distinf.numerics.solve import Directions, RefineSettings, Status, refine
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


def solved(matrix, rhs, vectors, placed, settings, **more):
    """In float64 throughout."""
    directions = more.pop("directions", None) or Directions(len(matrix), 100, dtype="float64")
    return refine(matrix.mv, rhs, vectors, placed, settings, directions, **more)


@pytest.mark.parametrize("matrix", [positive(), symmetric(DIM)], ids=["definite", "indefinite"])
def test_the_solution_matches_a_dense_solve(matrix):
    pairs, placed = setting(matrix, 0.3)
    rhs = torch.randn(DIM, generator=torch.Generator().manual_seed(0)).double()
    found = solved(matrix, rhs, pairs.vectors, placed, RefineSettings(1e-10))
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
    precise = RefineSettings(1e-6)
    pairs, placed = setting(matrix, 1e-2, keep=12)
    with_pairs = solved(matrix, rhs, pairs.vectors, placed, precise)
    none = spectrum(torch.empty(0), 1e-2, dim=DIM)
    without = solved(matrix, rhs, pairs.vectors[:0], none, precise)
    assert with_pairs.status == without.status == Status.CONVERGED
    assert with_pairs.steps < 0.7 * without.steps


def test_all_pairs_of_an_indefinite_operator_solve_it_in_two_steps():
    """S (H + damping) S then has the eigenvalues -1 and +1 only."""
    matrix = symmetric(20)
    pairs = arnoldi(matrix.mv, 20, steps=20, keep=20, dtype="float64", probes=0)
    placed = spectrum(pairs.values, 0.3, dim=20, policy="keep")
    rhs = torch.ones(20).double()
    found = solved(matrix, rhs, pairs.vectors, placed, RefineSettings(1e-9))
    assert (found.status, found.steps) == (Status.CONVERGED, 2)


def test_a_dropped_pair_is_left_out_of_the_preconditioner_only():
    matrix = symmetric(DIM)
    pairs, placed = setting(matrix, 0.3, policy="drop")
    assert len(placed.values_K) < 10
    rhs = torch.ones(DIM).double()
    found = solved(matrix, rhs, pairs.vectors, placed, RefineSettings(1e-8))
    damped = matrix + 0.3 * torch.eye(DIM).double()
    torch.testing.assert_close(found.x, torch.linalg.solve(damped, rhs), rtol=1e-5, atol=1e-6)


def test_failures_are_outcomes_that_name_the_next_knob():
    rhs = torch.randn(DIM, generator=torch.Generator().manual_seed(0)).double()
    short = RefineSettings(1e-10, steps=3)
    pairs, placed = setting(positive(), 1e-3, keep=2)
    stagnated = solved(positive(), rhs, pairs.vectors, placed, short)
    assert (stagnated.status, stagnated.steps) == (Status.STAGNATED, 3)
    assert stagnated.residual > 1e-10
    assert "raise steps" in stagnated.message
    pairs, placed = setting(symmetric(DIM), 1e-3, keep=2)
    indefinite = solved(symmetric(DIM), rhs, pairs.vectors, placed, short)
    assert indefinite.status == Status.INDEFINITE
    assert indefinite.negative_curvature
    assert "damping" in indefinite.message


def test_a_singular_system_that_has_no_solution_is_not_called_converged():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0])).double()
    pairs = arnoldi(matrix.mv, 3, steps=3, keep=1, dtype="float64", probes=0)
    placed = spectrum(pairs.values, 0.5, dim=3)
    shifted = matrix - 0.5 * torch.eye(3).double()
    double = RefineSettings()
    found = solved(shifted, torch.ones(3).double(), pairs.vectors, placed, double)
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

    def sliced(collective):
        directions = Directions(DIM, 100, collective=collective)
        return refine(matrix.mv, rhs, pairs.vectors, placed, None, directions)

    for size in (2, 3):
        for found in run_ranks(size, sliced):
            assert torch.equal(found.x, expected.x)
            assert found.residual == expected.residual


def queries(count):
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("matrix", [positive(), symmetric(DIM)], ids=["definite", "indefinite"])
def test_a_solve_goes_on_from_the_directions_of_those_before_it(matrix):
    """40 right-hand sides of one system take not one product more than it has dimensions."""
    pairs, placed = setting(matrix, 0.3)
    directions, settings = Directions(DIM, 200, dtype="float64"), RefineSettings(1e-8)
    damped = matrix + 0.3 * torch.eye(DIM).double()
    steps = []
    for rhs in queries(40):
        found = solved(matrix, rhs, pairs.vectors, placed, settings, directions=directions)
        assert found.status == Status.CONVERGED
        torch.testing.assert_close(found.x, torch.linalg.solve(damped, rhs), rtol=1e-5, atol=1e-6)
        steps.append(found.steps)
    assert sum(steps) <= DIM
    assert steps[0] > 5
    assert steps[-1] == 0
    vectors_JP, products_JP, signs_J = directions.after(0)
    torch.testing.assert_close(vectors_JP @ damped, products_JP)
    torch.testing.assert_close(vectors_JP @ products_JP.T, signs_J.diag(), rtol=0, atol=1e-7)
    assert torch.equal(directions.after(3)[0], vectors_JP[3:])


def test_directions_that_would_not_fit_are_forgotten():
    matrix = positive()
    pairs, placed = setting(matrix, 0.3)
    directions, settings = Directions(DIM, 30, dtype="float64"), RefineSettings(1e-6, steps=30)
    steps = [
        solved(matrix, rhs, pairs.vectors, placed, settings, directions=directions).steps
        for rhs in queries(2)
    ]
    alone = solved(matrix, queries(2)[1], pairs.vectors, placed, settings).steps
    assert steps[1] == alone == directions.vectors.count


def test_a_cautious_solve_is_given_up_where_its_residual_falls_too_slowly():
    """After 4 steps of 20 it is far from the root of the tolerance."""
    matrix = torch.diag(torch.logspace(-6, 0, DIM).double())
    pairs, placed = setting(matrix, 1e-6, keep=2)
    rhs = torch.ones(DIM).double()
    careless = solved(matrix, rhs, pairs.vectors, placed, RefineSettings(1e-6, steps=20))
    assert (careless.status, careless.steps) == (Status.STAGNATED, 20)
    cautious = RefineSettings(1e-6, steps=20, cautious=True)
    found = solved(matrix, rhs, pairs.vectors, placed, cautious)
    assert (found.status, found.steps) == (Status.STAGNATED, 4)
    assert "after 4 steps of at most 20" in found.message
    pairs, placed = setting(positive(), 0.3)
    quick = RefineSettings(1e-6, steps=40, cautious=True)
    assert solved(positive(), rhs, pairs.vectors, placed, quick).status == Status.CONVERGED


def test_a_solve_ends_where_the_rankings_after_half_its_steps_and_all_agree():
    matrix, rows = positive(), queries(40)
    pairs, placed = setting(matrix, 1e-2)
    rhs = torch.ones(DIM).double()
    inverse = torch.linalg.inv(matrix + 1e-2 * torch.eye(DIM).double())
    settings = RefineSettings(1e-12, agreement=0.99)
    found = solved(matrix, rhs, pairs.vectors, placed, settings, sampled=rows.mv)
    assert found.status == Status.AGREED
    assert found.steps % 2 == 0
    assert 0.99 <= found.agreement <= 1
    half = RefineSettings(1e-12, steps=found.steps // 2)
    before = solved(matrix, rhs, pairs.vectors, placed, half)
    assert found.agreement == pytest.approx(spearman(rows @ before.x, rows @ found.x), abs=1e-12)
    assert spearman(rows @ found.x, rows @ inverse @ rhs) >= 0.99
    to_the_end = solved(matrix, rhs, pairs.vectors, placed, RefineSettings(1e-12), sampled=rows.mv)
    assert to_the_end.status == Status.CONVERGED
    assert to_the_end.steps > found.steps
