from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.numerics.complement import complement_trace
from distinf.numerics.krylov import (
    ArnoldiSettings,
    ArnoldiState,
    arnoldi,
    has_converged,
    iterate,
    projected_pairs,
    ritz,
)
from tests.numerics.cases import symmetric
from tests.support.threads import run_ranks

DIM = 60
SETTINGS = ArnoldiSettings(steps=20, keep=6, probes=4)


def by_magnitude(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    order = values.abs().argsort(descending=True)
    return values[order], vectors[:, order]


def same_bits(first, second):
    fields = ("values", "vectors", "residuals", "hessenberg")
    assert all(torch.equal(getattr(first, f), getattr(second, f)) for f in fields)
    assert first.trace == second.trace
    assert first.orthogonality == second.orthogonality


def test_dominant_pairs_match_dense_eigenpairs_of_both_signs():
    matrix = symmetric(DIM)
    pairs = arnoldi(matrix.mv, DIM, steps=40, keep=8, dtype="float64", probes=5)
    values, vectors = by_magnitude(matrix)
    assert (values[:8] < 0).any()
    torch.testing.assert_close(pairs.values, values[:8], rtol=1e-9, atol=1e-9)
    overlap = (pairs.vectors @ vectors[:, :8]).abs()
    torch.testing.assert_close(overlap, torch.eye(8).double(), rtol=0, atol=1e-6)
    assert pairs.orthogonality < 1e-13
    assert pairs.asymmetry < 1e-13


def test_a_float32_basis_stays_orthonormal_over_many_steps():
    matrix = symmetric(300, dtype=torch.float32)
    pairs = arnoldi(matrix.mv, 300, steps=60, keep=10, probes=0)
    assert pairs.vectors.dtype == torch.float32
    assert pairs.orthogonality < 2e-7
    exact = by_magnitude(matrix.double())[0][:10]
    assert float((pairs.values - exact).abs().max()) < 1e-5


@pytest.mark.parametrize("size", [2, 3, 11])
def test_results_have_the_same_bits_at_any_number_of_ranks(size):
    matrix = symmetric(DIM, dtype=torch.float32)
    expected = arnoldi(matrix.mv, DIM, settings=SETTINGS, collective=Collective())
    for pairs in run_ranks(
        size, lambda c: arnoldi(matrix.mv, DIM, settings=SETTINGS, collective=c)
    ):
        same_bits(pairs, expected)


@settings(max_examples=15, deadline=None)
@given(stop=st.integers(0, 20), size=st.integers(1, 3))
def test_resuming_from_committed_steps_gives_the_same_bits_and_calls(stop, size):
    matrix = symmetric(DIM, dtype=torch.float32)
    calls = []

    def matvec(vector):
        calls.append(1)
        return matrix @ vector

    committed = []
    expected = arnoldi(matvec, DIM, settings=SETTINGS, on_step=committed.append)
    assert len(calls) == SETTINGS.steps + SETTINGS.probes
    records = [(record.vector.clone(), record.column.clone()) for record in committed[:stop]]
    later = []

    def resumed(collective):
        state = ArnoldiState.start(DIM, SETTINGS, collective)
        for vector, column in records:
            state.append(vector, column)
        on_step = later.append if collective.rank == 0 else None
        return arnoldi(
            matrix.mv, DIM, settings=SETTINGS, collective=collective, state=state, on_step=on_step
        )

    for pairs in run_ranks(size, resumed):
        same_bits(pairs, expected)
    assert [record.step for record in later] == list(range(stop, SETTINGS.steps))


def test_each_step_reports_its_column_asymmetry_orthogonality_and_times():
    matrix = symmetric(DIM)
    skew = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(3)).double() * 1e-3
    records = []
    pairs = arnoldi(
        (matrix + skew - skew.T).mv, DIM, settings=SETTINGS, dtype="float64", on_step=records.append
    )
    square = pairs.hessenberg[:-1]
    assert [len(record.column) for record in records] == list(range(2, 22))
    assert all(r.orthogonality < 1e-12 and r.product_s >= 0 and r.own_s > 0 for r in records)
    worst = max(record.asymmetry for record in records)
    assert worst == pytest.approx(float((square - square.T).abs().max()), rel=1e-12)
    assert pairs.asymmetry == pytest.approx(worst / float(square.abs().max()), rel=1e-12)
    assert 1e-4 < worst < 1e-1


def test_residuals_from_the_relation_are_the_true_ones_even_for_an_asymmetric_operator():
    skew = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(3)).double() * 1e-2
    matrix = symmetric(DIM) + skew - skew.T
    state = ArnoldiState.start(DIM, replace(SETTINGS, dtype="float64"))
    list(iterate(matrix.mv, state))
    cheap, measured = ritz(state, 6), ritz(state, 6, matvec=matrix.mv)
    torch.testing.assert_close(cheap.residuals, measured.residuals)
    assert cheap.residuals.max() > 1e-4


def test_near_every_pair_that_has_converged_is_an_eigenvalue():
    matrix = symmetric(DIM)
    exact = torch.linalg.eigvalsh(matrix)
    state = ArnoldiState.start(DIM, replace(SETTINGS, dtype="float64"))
    list(iterate(matrix.mv, state))
    pairs = ritz(state, SETTINGS.steps)
    values, _, residuals = projected_pairs(state.hessenberg[: state.step + 1, : state.step])
    torch.testing.assert_close(values, pairs.values)
    torch.testing.assert_close(residuals, pairs.residuals)
    gaps = (values[:, None] - exact).abs().amin(dim=1)
    kept = torch.tensor([has_converged(*p) for p in zip(values.tolist(), residuals.tolist())])
    assert 3 < int(kept.sum()) < SETTINGS.steps - 3
    assert torch.all(gaps[kept] <= 0.1 * values[kept].abs())
    assert torch.all(residuals[~kept] > 0.1 * values[~kept].abs())


def test_an_exhausted_krylov_space_ends_early_and_cleanly():
    vectors = torch.linalg.qr(symmetric(DIM))[0][:, :3]
    matrix = ((vectors * torch.tensor([5.0, -3.0, 1.0])) @ vectors.T).float()
    records = []
    pairs = arnoldi(matrix.mv, DIM, settings=SETTINGS, on_step=records.append)
    assert 3 <= len(records) <= 5
    assert float(records[-1].column[-1]) == 0.0
    assert not records[-1].vector.any()
    torch.testing.assert_close(
        pairs.values[:3], torch.tensor([5.0, -3.0, 1.0]).double(), rtol=1e-5, atol=1e-5
    )
    assert torch.isfinite(pairs.vectors).all()
    resumed = ArnoldiState.start(DIM, SETTINGS)
    for record in records:
        resumed.append(record.vector, record.column)
    assert resumed.finished
    assert list(iterate(matrix.mv, resumed)) == []


def test_the_whole_space_is_a_natural_end():
    matrix = symmetric(7)
    pairs = arnoldi(matrix.mv, 7, steps=50, keep=7, dtype="float64", probes=2)
    torch.testing.assert_close(pairs.values, by_magnitude(matrix)[0])
    assert pairs.trace == pytest.approx(float(matrix.trace()))
    assert pairs.complement == 0.0


def test_a_zero_operator_gives_zero_pairs():
    pairs = arnoldi(torch.zeros_like, 9, steps=4, keep=2, probes=1)
    assert pairs.values.tolist() == [0.0]
    assert pairs.residuals.tolist() == [0.0]


def test_a_product_that_is_not_finite_names_its_step():
    matrix = symmetric(DIM)
    calls = []

    def matvec(vector):
        calls.append(1)
        return matrix @ vector * (float("nan") if len(calls) == 4 else 1.0)

    with pytest.raises(InputError, match="step 3: the curvature product is not finite"):
        arnoldi(matvec, DIM, settings=SETTINGS, dtype="float64")


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="keep=3 needs at least that many steps"):
        arnoldi(torch.clone, 9, steps=2, keep=3)
    with pytest.raises(ValueError, match="do not exist in 9 dimensions"):
        arnoldi(torch.clone, 9, steps=20, keep=10)
    with pytest.raises(ValueError, match="dtype"):
        ArnoldiSettings(dtype="float16")
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        arnoldi(lambda v: v[:3], 9, steps=2, keep=1)
    with pytest.raises(InputError, match=rf"a ndarray of shape \({DIM},\)"):
        arnoldi(lambda v: v.numpy(), DIM, settings=SETTINGS)


def test_trace_is_the_kept_values_plus_hutchinsons_estimate_of_the_rest():
    matrix = symmetric(DIM)
    pairs = arnoldi(matrix.mv, DIM, steps=30, keep=6, probes=400, dtype="float64")
    assert pairs.trace == pytest.approx(float(matrix.trace()), abs=4 * pairs.trace_error)
    assert pairs.trace_error < 0.3
    exact = max(0.0, (float(matrix.trace()) - float(pairs.values.sum())) / (DIM - 6))
    assert pairs.complement == pytest.approx(exact, abs=4 * pairs.trace_error / (DIM - 6))


def test_probes_leave_out_the_kept_vectors_exactly():
    vectors = torch.linalg.qr(symmetric(DIM))[0][:, :3].T.contiguous()
    inside = vectors.T @ vectors
    mean, _ = complement_trace(inside.mv, vectors, probes=5)
    assert abs(mean) < 1e-12
    mean, error = complement_trace((torch.eye(DIM).double() - inside).mv, vectors, probes=50)
    assert mean == pytest.approx(DIM - 3, abs=4 * error)
    outside, _ = complement_trace((-torch.eye(DIM).double()).mv, vectors, probes=5)
    assert outside < 0
    negative = arnoldi(
        (-torch.eye(DIM).double()).mv, DIM, steps=1, keep=1, probes=3, dtype="float64"
    )
    assert negative.complement == 0.0


def test_fresh_samples_at_each_step_arrive_in_order():
    matrices = [symmetric(DIM, 0) + 1e-4 * symmetric(DIM, seed) for seed in range(1, 21)]
    stream = iter(matrices)
    noisy = arnoldi(lambda v: next(stream) @ v, DIM, settings=SETTINGS, probes=0, dtype="float64")
    exact = by_magnitude(symmetric(DIM))[0][:6]
    assert float((noisy.values - exact).abs().max()) < 5e-3
    assert 1e-8 < noisy.asymmetry < 1e-2
